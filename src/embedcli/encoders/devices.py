"""Whether a job runs on the CPU, found without importing torch where that is certain."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Literal

from embedcli.contracts import Job


def on_cpu(job: Job) -> bool:
    """Whether the job computes on a CPU. Imports torch only where the machine shows signs of an accelerator."""
    if job.device != "auto":
        return job.device == "cpu"
    if not _signs():
        return True
    from embedcli.encoders.transformer import choose_device

    return choose_device("auto") == "cpu"


def dtype_class(job: Job) -> Literal["float32", "half"]:
    """What identities record: half-precision vectors differ from float32 ones, bfloat16 and float16 are alike."""
    if job.dtype == "auto":
        return "float32" if on_cpu(job) else "half"
    return "float32" if job.dtype == "float32" else "half"


def _signs() -> bool:
    """Whether this machine may have an accelerator that the installed torch can use."""
    try:
        build = metadata.version("torch").partition("+")[2]
    except metadata.PackageNotFoundError:
        return False
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    if build == "cpu":
        return False
    if build == "xpu" or platform.system() == "Windows":
        return True
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    devices = Path("/dev")
    return any(devices.glob("nvidia[0-9]*")) or (devices / "kfd").exists() or (devices / "dxg").exists()
