"""Run embedcli's command line, and keep in a file how many seconds its calls of fsync have taken so far.

    python timed_sync.py SECONDS.txt ARGUMENT...

The file is written after every call, because embedcli ends without the interpreter's clean-up.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time
from pathlib import Path


class SyncTimer:
    """`os.fsync`, timed."""

    def __init__(self, target: Path) -> None:
        self._target, self._fsync = target, os.fsync
        self._seconds, self._lock = 0.0, threading.Lock()
        target.write_text("0", "ascii")

    def __call__(self, descriptor: int) -> None:
        """Flush a file to disk."""
        started = time.perf_counter()
        try:
            self._fsync(descriptor)
        finally:
            with self._lock:
                self._seconds += time.perf_counter() - started
                self._target.write_text(f"{self._seconds:.6f}", "ascii")


if __name__ == "__main__":
    target = Path(sys.argv.pop(1))
    os.fsync = SyncTimer(target)  # type: ignore[assignment]
    runpy.run_module("embedcli", run_name="__main__", alter_sys=True)
