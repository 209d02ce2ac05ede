"""What a measurement ran on: the processor, its cores and memory, and the versions of what was timed."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from embedcli.core.cpu import cores

PACKAGES = (
    "embedcli",
    "numpy",
    "tokenizers",
    "openvino",
    "torch",
    "transformers",
    "sentence-transformers",
    "model2vec",
    "fastembed",
    "onnxruntime",
)
# What Linux calls bfloat16 arithmetic on x86 and on ARM.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def describe() -> dict[str, Any]:
    """The machine as JSON: names, counts, GB of memory, versions."""
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_gb": memory_gb(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(),
    }


def processor() -> str:
    """The processor's own name with its family and model, which tell generations of one name apart."""
    facts = _cpuinfo()
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.removeprefix('cpu ')} {facts[key]}" for key in ("cpu family", "model") if facts.get(key)]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def memory_gb() -> float | None:
    """Physical memory in GB (10**9 bytes), where the system tells."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (ValueError, OSError):
        return None


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked for any program so far, where the system tells."""
    try:
        user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:8]
    except (OSError, ValueError):
        return None
    ticks = [user, nice, system, *interrupts]
    return sum(map(int, ticks)) / float(os.sysconf("SC_CLK_TCK"))


def versions() -> dict[str, str]:
    """The installed ones of the packages that are timed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def computes_bfloat16() -> bool:
    """Whether the processor has bfloat16 arithmetic, as far as the system tells."""
    facts = _cpuinfo()
    return bool(BFLOAT16_FLAGS & set((facts.get("flags") or facts.get("Features") or "").split()))


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
