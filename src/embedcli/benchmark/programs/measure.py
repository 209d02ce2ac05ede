"""Run a command and measure its time and memory. Runs without embedcli.

usage: measure.py RESULT.json COMMAND...

A process inherits the peak memory of the process that starts it. This one is small, so the command's own peak counts.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    target, *command = sys.argv[1:]
    started = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024
    result = {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss * unit / 1e6,
    }
    with open(target, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
