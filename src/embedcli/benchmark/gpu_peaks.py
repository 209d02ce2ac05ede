"""What accelerators can do at best: dense peaks by the makers' data sheets."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """Dense (no sparsity) peaks of a card in TFLOP/s, half precision with float32 sums, and where they are from."""

    half: float
    single: float
    source: str

    def gflops(self) -> dict[str, float]:
        """GFLOP/s by number format."""
        return {"bfloat16": 1000 * self.half, "float16": 1000 * self.half, "float32": 1000 * self.single}


# The first pattern that is found in the name which the driver gives counts. Data sheets give most half-precision
# peaks with sparsity: these are the halves of those.
CARDS: tuple[tuple[str, Peak], ...] = (
    (r"H200", Peak(989.5, 67, "NVIDIA H200 data sheet, SXM")),
    (r"H100 (NVL|.*NVL)", Peak(835.5, 60, "NVIDIA H100 data sheet, NVL")),
    (r"H100.*PCIe", Peak(756.5, 51, "NVIDIA H100 data sheet, PCIe")),
    (r"H100", Peak(989.5, 67, "NVIDIA H100 data sheet, SXM")),
    (r"A100", Peak(312, 19.5, "NVIDIA A100 data sheet")),
    (r"L40S", Peak(362, 91.6, "NVIDIA L40S data sheet")),
    (r"L40", Peak(181, 90.5, "NVIDIA L40 data sheet")),
    (r"L4\b", Peak(121, 30.3, "NVIDIA L4 data sheet")),
    (r"A10G", Peak(70, 35, "NVIDIA A10G data sheet")),
    (r"A10\b", Peak(125, 31.2, "NVIDIA A10 data sheet")),
    (r"V100", Peak(125, 15.7, "NVIDIA V100 data sheet, SXM2")),
    (r"\bT4\b", Peak(65, 8.1, "NVIDIA T4 data sheet")),
    (r"RTX 4090", Peak(165.2, 82.6, "NVIDIA Ada architecture white paper, GeForce RTX 4090")),
    (r"RTX 3090(?! Ti)", Peak(71, 35.6, "NVIDIA Ampere GA102 white paper, GeForce RTX 3090")),
)


def peak(name: str) -> Peak | None:
    """The peak of a card by the name its driver gives; None for one that is not in the table."""
    return next((made for pattern, made in CARDS if re.search(pattern, name)), None)
