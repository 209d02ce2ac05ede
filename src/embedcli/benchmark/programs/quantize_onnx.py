"""Quantize an ONNX file dynamically to int8. Runs without embedcli; needs onnxruntime and onnx.

usage: quantize_onnx.py SOURCE.onnx TARGET.onnx full|reduced

Weights get a scale per output channel, activations one per tensor while the model runs. `reduced` uses 7 bits, for
processors that add two products in 16 bits, which 8 bits would overflow.
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    source, target, number_range = sys.argv[1:]
    quantization = importlib.import_module("onnxruntime.quantization")
    quantization.quantize_dynamic(
        source,
        target,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=number_range == "reduced",
    )


if __name__ == "__main__":
    main()
