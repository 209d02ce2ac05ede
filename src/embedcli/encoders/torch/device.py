"""Which device and dtype a job runs with. `torch` is handed in: one module owns that import.

Whether it is the CPU is found without importing torch where that is certain.
"""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embedcli.core.errors import UsageError
from embedcli.core.job import Job

if TYPE_CHECKING:
    pass


def runs_on_cpu(job: Job) -> bool:
    """Whether the job computes on a CPU. Imports torch only where the machine shows signs of an accelerator."""
    if job.device != "auto":
        return job.device == "cpu"
    if not _signs():
        return True
    from embedcli.encoders.torch.device import choose_device

    return choose_device("auto") == "cpu"


def precision_class(job: Job) -> Literal["float32", "half"]:
    """What identities record: half-precision vectors differ from float32 ones, bfloat16 and float16 are alike."""
    if job.dtype == "auto":
        return "float32" if runs_on_cpu(job) else "half"
    return "float32" if job.dtype == "float32" else "half"


def select_device(torch: Any, name: str) -> str:
    """The torch device for --device; auto is the best that is here. UsageError for one that is not here."""
    there = available_devices(torch)
    if name == "auto":
        return there[0]
    wanted = f"{name}:0" if name in ("cuda", "xpu") else name
    if wanted not in there:
        raise UsageError(f"there is no device {name!r} here", f"--device can be: {', '.join(['auto', *there])}")
    return wanted


def available_devices(torch: Any) -> list[str]:
    """Every torch device of this machine, best first, with its index."""
    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        there += [f"xpu:{i}" for i in range(torch.xpu.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    return [*there, "cpu"]


def select_dtype(torch: Any, name: str, device: str) -> str:
    """The torch dtype for --dtype; auto is float32 on a CPU, else bfloat16 where the device has it, else float16."""
    if device == "cpu":
        if name == "bfloat16" and not cpu_supports(torch, "bf16"):
            raise UsageError("this CPU has no bfloat16 instructions", "use --dtype float32")
        if name == "float16" and not cpu_supports(torch, "fp16"):
            raise UsageError("this CPU has no float16 instructions", "use --dtype float32")
        return "float32" if name == "auto" else name
    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.startswith("xpu") else "float16"


def cpu_supports(torch: Any, kind: str) -> bool:
    """Whether this CPU has instructions for `kind`, bf16 or fp16."""
    ask = getattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", None)
    return bool(ask and ask())


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


def choose_device(name: str) -> str:
    """The torch device for --device; auto is the first of cuda, xpu, mps, cpu that is here."""
    import torch

    return select_device(torch, name)
