"""Measure an accelerator's fastest matrix products, in GFLOP/s by number format. Runs without embedcli.

usage: gpu_matmul.py RESULT.json DEVICE    torch's own products, best of several sizes and attempts
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")
SIZES = {"cpu": (128,)}
ATTEMPTS = 3
PRODUCTS = 10


def main() -> None:
    torch = importlib.import_module("torch")
    device = sys.argv[2]
    torch.set_float32_matmul_precision("highest")
    sizes = sizes_for(device)
    products = {dtype: max(measure_gflops(torch, device, dtype, size) for size in sizes) for dtype in DTYPES}
    Path(sys.argv[1]).write_text(json.dumps({"name": get_device_name(torch, device), "products": products}), "utf-8")


def sizes_for(device: str) -> tuple[int, ...]:
    return SIZES.get(device, (2048, 4096, 8192))


def get_device_name(torch: Any, device: str) -> str:
    backend = getattr(torch, device.partition(":")[0], None)
    get_name = getattr(backend, "get_device_name", None)
    return str(get_name(device)) if get_name is not None else device


def measure_gflops(torch: Any, device: str, dtype: str, size: int) -> float:
    """The best GFLOP/s of square matrices of one size."""
    left = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    right = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    flop = 2.0 * size**3
    measure_seconds(torch, device, left, right)
    return max(PRODUCTS * flop / measure_seconds(torch, device, left, right) for _ in range(ATTEMPTS)) / 1e9


def measure_seconds(torch: Any, device: str, left: Any, right: Any) -> float:
    """Seconds of PRODUCTS matrix products."""
    synchronize = getattr(getattr(torch, device.partition(":")[0], None), "synchronize", lambda: None)
    synchronize()
    started = time.perf_counter()
    for _ in range(PRODUCTS):
        torch.mm(left, right)
    synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
