"""Peak throughput of GPUs, from the makers' data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuPeak:
    """Dense (without sparsity) peak throughput of a GPU.

    Attributes:
        half_tflops: TFLOP/s in float16 and bfloat16 with float32 accumulation.
        single_tflops: TFLOP/s in float32.
        source: The document that gives both.
    """

    half_tflops: float
    single_tflops: float
    source: str

    def gflops_by_dtype(self) -> dict[str, float]:
        """GFLOP/s by number format."""
        half = 1000 * self.half_tflops
        return {"bfloat16": half, "float16": half, "float32": 1000 * self.single_tflops}


# The first pattern found in the device name that the driver reports decides. Data sheets give most half-precision
# peaks with sparsity: these are half of those.
GPU_PEAKS: tuple[tuple[str, GpuPeak], ...] = (
    (r"H200", GpuPeak(989.5, 67, "NVIDIA H200 data sheet, SXM")),
    (r"H100 (NVL|.*NVL)", GpuPeak(835.5, 60, "NVIDIA H100 data sheet, NVL")),
    (r"H100.*PCIe", GpuPeak(756.5, 51, "NVIDIA H100 data sheet, PCIe")),
    (r"H100", GpuPeak(989.5, 67, "NVIDIA H100 data sheet, SXM")),
    (r"A100", GpuPeak(312, 19.5, "NVIDIA A100 data sheet")),
    (r"L40S", GpuPeak(362, 91.6, "NVIDIA L40S data sheet")),
    (r"L40", GpuPeak(181, 90.5, "NVIDIA L40 data sheet")),
    (r"L4\b", GpuPeak(121, 30.3, "NVIDIA L4 data sheet")),
    (r"A10G", GpuPeak(70, 35, "NVIDIA A10G data sheet")),
    (r"A10\b", GpuPeak(125, 31.2, "NVIDIA A10 data sheet")),
    (r"V100", GpuPeak(125, 15.7, "NVIDIA V100 data sheet, SXM2")),
    (r"\bT4\b", GpuPeak(65, 8.1, "NVIDIA T4 data sheet")),
    (r"RTX 4090", GpuPeak(165.2, 82.6, "NVIDIA Ada architecture white paper, GeForce RTX 4090")),
    (r"RTX 3090(?! Ti)", GpuPeak(71, 35.6, "NVIDIA Ampere GA102 white paper, GeForce RTX 3090")),
)


def find_peak(device_name: str) -> GpuPeak | None:
    """Find the peak of a GPU by the name its driver reports; None if the GPU is not in the table."""
    return next((peak for pattern, peak in GPU_PEAKS if re.search(pattern, device_name)), None)
