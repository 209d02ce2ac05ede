"""The number of processor cores that the process may use: CPU affinity and the CPU quota of a container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

# Linux control groups, version 2 and 1: they limit the processor time of containers and services.
CGROUP_ROOT, PROCESS_CGROUP_FILE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def count_usable_cores() -> int:
    """The number of cores that this process may use; often fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, cpu_quota() or cores)


def cpu_quota() -> int | None:
    """The CPU quota of the process in cores, rounded up; None without a quota.

    With more threads than that, Linux stops all of them until the next period begins.
    """
    cores = [-(-quota // period) for quota, period in _quotas() if quota > 0 < period]
    return max(1, min(cores)) if cores else None


def _quotas() -> Iterator[tuple[int, int]]:
    """Microseconds of processor time per period, and the period, of the control group and of its parents."""
    for folder in _control_group_folders():
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text("ascii").split()
            yield int(quota), int(period)
        with suppress(OSError, ValueError):
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((folder / name).read_text("ascii") for name in names)
            yield int(quota), int(period)


def _control_group_folders() -> Iterator[Path]:
    """Folders that may have a quota. In a container its own group is the root, whatever the path says."""
    try:
        lines = [line.split(":", 2) for line in PROCESS_CGROUP_FILE.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        lines = []
    roots = {CGROUP_ROOT: "/", CGROUP_ROOT / "cpu": "/"}
    for _, controllers, group in (line for line in lines if len(line) == 3):
        if controllers == "" or "cpu" in controllers.split(","):
            roots[CGROUP_ROOT / controllers] = group
    for root, group in roots.items():
        inside = PurePosixPath(group.lstrip("/"))
        yield from (root / folder for folder in (inside, *inside.parents))
