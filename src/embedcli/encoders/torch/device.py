"""Choose the device and the number format of a job.

Torch is imported only where the machine may have an accelerator.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Literal

from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.models.traits import installed_version


def runs_on_cpu(job: Job) -> bool:
    """Whether the job computes on a CPU. Imports torch only if the machine may have an accelerator."""
    if job.device != "auto":
        return job.device == "cpu"
    return not _may_have_accelerator() or select_device("auto") == "cpu"


def precision_class(job: Job) -> Literal["float32", "half"]:
    """The number format in the vector space metadata: bfloat16 and float16 vectors may be mixed, float32 ones not."""
    if job.dtype == "auto":
        return "float32" if runs_on_cpu(job) else "half"
    return "float32" if job.dtype == "float32" else "half"


def select_device(name: str) -> str:
    """Resolve --device.

    Args:
        name: auto, cpu, cuda, cuda:N, xpu, xpu:N or mps.

    Returns:
        The torch device with its index; for auto the first of `available_devices`.

    Raises:
        UsageError: This machine has no such device.
    """
    available = available_devices()
    if name == "auto":
        return available[0]
    device = f"{name}:0" if name in ("cuda", "xpu") else name
    if device not in available:
        raise UsageError(f"there is no device {name!r} here", f"--device can be: {', '.join(['auto', *available])}")
    return device


def available_devices() -> list[str]:
    """All torch devices of this machine with their index, the fastest kind first; the last is the CPU."""
    import torch

    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        devices += [f"xpu:{i}" for i in range(torch.xpu.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def select_dtype(name: str, device: str) -> str:
    """Resolve --dtype for a device: auto is float32 on a CPU, bfloat16 where a device has it, float16 elsewhere.

    Args:
        name: auto, float32, bfloat16 or float16.
        device: What `select_device` returned.

    Raises:
        UsageError: This CPU has no instructions for the number format and would be slower than in float32.
    """
    if device == "cpu":
        if name == "bfloat16" and not cpu_supports("bf16"):
            raise UsageError("this CPU has no bfloat16 instructions", "use --dtype float32")
        if name == "float16" and not cpu_supports("fp16"):
            raise UsageError("this CPU has no float16 instructions", "use --dtype float32")
        return "float32" if name == "auto" else name
    if name != "auto":
        return name
    if device.startswith("cuda"):
        import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.startswith("xpu") else "float16"


def cpu_supports(number_format: Literal["bf16", "fp16"]) -> bool:
    """Whether oneDNN has kernels for a number format on this CPU. torch has no public function that tells."""
    import torch

    is_supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{number_format}_supported", None)
    return bool(is_supported and is_supported())


def _may_have_accelerator() -> bool:
    """Whether this machine may have an accelerator that the installed torch can use; found without importing torch."""
    version = installed_version("torch")
    if version is None:
        return False
    build = version.partition("+")[2]
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


def set_thread_count(count: int | None) -> None:
    """Compute on this many threads of the CPU; None or 0 leaves torch's own number."""
    import torch

    if count:
        torch.set_num_threads(count)


def torch_version() -> str:
    """The version of torch, with its build."""
    import torch

    return str(torch.__version__)
