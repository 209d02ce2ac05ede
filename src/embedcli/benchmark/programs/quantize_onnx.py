"""Quantize an ONNX file's weights to int8, activations while it runs. Runs without embedcli; needs onnxruntime and onnx.

usage: quantize_onnx.py SOURCE.onnx TARGET.onnx full|reduced

A scale per output channel. `reduced` uses 7 bits: some processors add two products of 8 bits in 16 bits, which overflows.
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
