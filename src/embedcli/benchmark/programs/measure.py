"""Runs a command and writes what it took: a program of its own.

usage: measure.py RESULT.json COMMAND...

A process starts with the peak memory of the one that starts it. This one is small, so that a command's own peak shows.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    target, *command = sys.argv[1:]
    begun = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - begun
    unit = 1 if sys.platform == "darwin" else 1024
    made = {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * unit / 1e6,
    }
    with open(target, "w", encoding="utf-8") as file:
        json.dump(made, file)


if __name__ == "__main__":
    main()
