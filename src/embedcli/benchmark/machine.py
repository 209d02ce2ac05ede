"""The machine of a measurement: its processor, cores and memory, and the versions of the measured packages."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from embedcli.core.cpu import count_usable_cores

TIMED_PACKAGES = (
    "embedcli",
    "numpy",
    "tokenizers",
    "openvino",
    "torch",
    "transformers",
    "sentence-transformers",
    "model2vec",
    "fastembed",
    "light-embed",
    "onnxruntime",
)
# Linux's names for bfloat16 arithmetic on x86 and on ARM.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# The same for products of 8-bit integers that are summed in 32 bits.
INT8_PRODUCT_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


def describe_machine() -> dict[str, Any]:
    """Describe the machine as JSON: names, counts, GB of memory, versions."""
    return {
        "processor": processor_name(),
        "cores": count_usable_cores(),
        "memory_gb": memory_gb(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": installed_versions(),
    }


def processor_name() -> str:
    """The processor's name with its family and model, which distinguish generations of the same name."""
    facts = _read_cpuinfo()
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.removeprefix('cpu ')} {facts[key]}" for key in ("cpu family", "model") if facts.get(key)]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def memory_gb() -> float | None:
    """Physical memory in GB (10**9 bytes); None if unknown."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None


def busy_seconds() -> float | None:
    """Seconds that all cores together have spent on any program so far; None if unknown."""
    try:
        user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:8]
    except (OSError, ValueError):
        return None
    ticks = [user, nice, system, *interrupts]
    return sum(map(int, ticks)) / float(os.sysconf("SC_CLK_TCK"))


def installed_versions() -> dict[str, str]:
    """The versions of the measured packages that are installed."""
    versions = {}
    for name in TIMED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def has_bfloat16() -> bool:
    """Whether the processor is known to have bfloat16 arithmetic."""
    return bool(BFLOAT16_FLAGS & _read_flags())


def has_int8_products() -> bool:
    """Whether the processor is known to sum products of 8-bit integers without overflow."""
    return bool(INT8_PRODUCT_FLAGS & _read_flags())


def _read_flags() -> set[str]:
    facts = _read_cpuinfo()
    return set((facts.get("flags") or facts.get("Features") or "").split())


def _read_cpuinfo() -> dict[str, str]:
    """Read the first processor of /proc/cpuinfo; empty if there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
