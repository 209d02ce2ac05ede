"""An accelerator's name and its fastest matrix products, in GFLOP/s by number format: a program of its own.

usage: card.py RESULT.json DEVICE    torch's own products, best of several sizes and tries
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

FORMATS = ("float32", "bfloat16", "float16")
SIZES = {"cpu": (128,)}
TRIES = 3
TIMES = 10


def main() -> None:
    torch = importlib.import_module("torch")
    device = sys.argv[2]
    torch.set_float32_matmul_precision("highest")
    made = {name: max(speed(torch, device, name, size) for size in sizes(device)) for name in FORMATS}
    Path(sys.argv[1]).write_text(json.dumps({"name": name_of(torch, device), "products": made}), "utf-8")


def sizes(device: str) -> tuple[int, ...]:
    return SIZES.get(device, (2048, 4096, 8192))


def name_of(torch: Any, device: str) -> str:
    backend = getattr(torch, device.partition(":")[0], None)
    ask = getattr(backend, "get_device_name", None)
    return str(ask(device)) if ask is not None else device


def speed(torch: Any, device: str, name: str, size: int) -> float:
    """The best GFLOP/s of squares of one size."""
    left = torch.randn(size, size, device=device, dtype=getattr(torch, name))
    right = torch.randn(size, size, device=device, dtype=getattr(torch, name))
    flop = 2.0 * size**3
    timed(torch, device, left, right)
    return max(TIMES * flop / timed(torch, device, left, right) for _ in range(TRIES)) / 1e9


def timed(torch: Any, device: str, left: Any, right: Any) -> float:
    """Seconds of TIMES products."""
    wait = getattr(getattr(torch, device.partition(":")[0], None), "synchronize", lambda: None)
    wait()
    begun = time.perf_counter()
    for _ in range(TIMES):
        torch.mm(left, right)
    wait()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
