"""How many cores there are to use: of the machine, of this process's own set, and of its share of time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

# Control groups, by which containers and services are held to a share of time: version 2, and 1 where it still is.
CGROUP_ROOT, PROCESS_CGROUP_FILE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def count_usable_cores() -> int:
    """The cores that this process may use, which may be fewer than the machine has."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, cpu_quota() or there)


def cpu_quota() -> int | None:
    """The cores that a limit on processor time comes to, rounded up; None without one.

    More threads than that only take each other's time, and the system then stops all of them until the next period.
    """
    found = [-(-share // period) for share, period in _limits() if share > 0 < period]
    return max(1, min(found)) if found else None


def _limits() -> Iterator[tuple[int, int]]:
    """Microseconds of processor time in each period: of the group of this process, and of those that hold it."""
    for folder in _folders():
        with suppress(OSError, ValueError):
            share, period = (folder / "cpu.max").read_text("ascii").split()
            yield int(share), int(period)
        with suppress(OSError, ValueError):
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            share, period = ((folder / name).read_text("ascii") for name in names)
            yield int(share), int(period)


def _folders() -> Iterator[Path]:
    """Where limits may be told. Inside a container its own group is the root, whatever the path says."""
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
        yield from (root / each for each in (inside, *inside.parents))
