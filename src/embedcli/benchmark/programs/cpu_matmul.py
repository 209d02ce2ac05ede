"""Measure the processor's fastest matrix products, in GFLOP/s by number format. Runs without embedcli.

usage: cpu_matmul.py RESULT.json [THREADS]    oneDNN's kernels through OpenVINO, best of several shapes and attempts
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# rows x inner x columns: those of a small encoder's layers, and squares that fit into the caches.
SHAPES = ((2048, 384, 1536), (2048, 768, 3072), (1024, 1024, 1024), (2048, 2048, 2048))
ATTEMPTS = 5
# Operations of one attempt: about 0.1 s at 200 GFLOP/s, long enough to time and short enough to find a quiet moment.
ATTEMPT_FLOP = 2e10


def main() -> None:
    threads = {"INFERENCE_NUM_THREADS": int(sys.argv[2])} if len(sys.argv) > 2 else {}
    capabilities = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    # Without instructions for it, bfloat16 takes minutes, and nobody computes in it.
    hints = {"float32": "f32"} | ({"bfloat16": "bf16"} if "BF16" in capabilities else {})
    products = {dtype: max(measure_gflops(shape, hint, threads) for shape in SHAPES) for dtype, hint in hints.items()}
    Path(sys.argv[1]).write_text(json.dumps(products), "utf-8")


def measure_gflops(shape: tuple[int, int, int], hint: str, threads: dict[str, Any]) -> float:
    """The best GFLOP/s of one shape."""
    rows, inner, columns = shape
    flop = 2.0 * rows * inner * columns
    queue = compile_product(shape, {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "THROUGHPUT"} | threads)
    left = np.random.default_rng(0).standard_normal((rows, inner), np.float32)
    count = max(2, round(ATTEMPT_FLOP / flop))
    measure_seconds(queue, left, len(queue))
    return max(count * flop / measure_seconds(queue, left, count) for _ in range(ATTEMPTS)) / 1e9


def import_openvino() -> Any:
    # OpenVINO reports its use unless its telemetry package cannot be imported; nothing may be sent from here.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


def compile_product(shape: tuple[int, int, int], config: dict[str, Any]) -> Any:
    openvino = import_openvino()
    opset13 = openvino.opset13
    rows, inner, columns = shape
    weights = np.random.default_rng(1).standard_normal((inner, columns), np.float32)
    left = opset13.parameter([rows, inner], np.float32)
    model = openvino.Model([opset13.matmul(left, opset13.constant(weights), False, False)], [left])
    return openvino.AsyncInferQueue(openvino.Core().compile_model(model, "CPU", config))


def measure_seconds(queue: Any, left: Any, count: int) -> float:
    """Seconds of `count` matrix products."""
    started = time.perf_counter()
    for _ in range(count):
        queue.start_async([left])
    queue.wait_all()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
