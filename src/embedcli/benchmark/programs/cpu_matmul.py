"""The fastest matrix product this machine can do, in GFLOP/s by number format: a program of its own.

usage: matmul.py RESULT.json [THREADS]    oneDNN's kernels as OpenVINO runs them, best of several shapes and tries
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# rows x inner x columns: what a small encoder's layers ask for, and squares that fit the caches.
SHAPES = ((2048, 384, 1536), (2048, 768, 3072), (1024, 1024, 1024), (2048, 2048, 2048))
TRIES = 5
# Operations of one try: about 0.1 s at 200 GFLOP/s, long enough for a clock and short enough to find a quiet moment.
TRY_FLOP = 2e10


def main() -> None:
    threads = {"INFERENCE_NUM_THREADS": int(sys.argv[2])} if len(sys.argv) > 2 else {}
    formats = {"float32": "f32", "bfloat16": "bf16"}
    made = {name: max(speed(shape, hint, threads) for shape in SHAPES) for name, hint in formats.items()}
    Path(sys.argv[1]).write_text(json.dumps(made), "utf-8")


def speed(shape: tuple[int, int, int], hint: str, threads: dict[str, Any]) -> float:
    """The best GFLOP/s of one shape."""
    rows, inner, columns = shape
    flop = 2.0 * rows * inner * columns
    queue = compiled(shape, {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "THROUGHPUT"} | threads)
    left = np.random.default_rng(0).standard_normal((rows, inner), np.float32)
    times = max(2, round(TRY_FLOP / flop))
    timed(queue, left, len(queue))
    return max(times * flop / timed(queue, left, times) for _ in range(TRIES)) / 1e9


def compiled(shape: tuple[int, int, int], config: dict[str, Any]) -> Any:
    # The package reports its use unless its telemetry cannot be imported; no connection may be tried here.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino
    from openvino import opset13

    rows, inner, columns = shape
    weights = np.random.default_rng(1).standard_normal((inner, columns), np.float32)
    left = opset13.parameter([rows, inner], np.float32)
    model = openvino.Model([opset13.matmul(left, opset13.constant(weights), False, False)], [left])
    return openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", config))


def timed(queue: Any, left: Any, times: int) -> float:
    """Seconds of `times` products."""
    begun = time.perf_counter()
    for _ in range(times):
        queue.start_async([left])
    queue.wait_all()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
