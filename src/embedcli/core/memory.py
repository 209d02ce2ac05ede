"""The memory that the process may still use."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

MEMORY_FILE = Path("/proc/meminfo")
# Of a container's control group, version 2 and 1: the limit, and what is used.
CONTROL_GROUP_FILES = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def available_memory() -> int | None:
    """The bytes that the machine and the container have left for this process; None if they do not tell."""
    found: list[int] = []
    with suppress(OSError, ValueError):
        lines = MEMORY_FILE.read_text("ascii").splitlines()
        found.extend(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for limit, used in CONTROL_GROUP_FILES:
        # A group without a limit has the word "max".
        with suppress(OSError, ValueError):
            found.append(max(0, int(limit.read_text("ascii")) - int(used.read_text("ascii"))))
    return min(found, default=None)
