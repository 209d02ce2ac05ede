"""One process, run and measured from outside: wall seconds, processor seconds, peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Settings of the user reach a measured embedcli as flags, once; only where its cache is stays in the environment.
KEPT = {"EMBEDCLI_CACHE"}


@dataclass(frozen=True)
class Finished:
    """How a process ended. `seconds` is from start to exit; `peak_mb` its largest resident size in 10**6 bytes."""

    code: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    stderr: str

    @property
    def last_words(self) -> str:
        """The last line that it wrote to stderr."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or [f"exit code {self.code}"])[-1]


def run(command: Sequence[str], log: Path) -> Finished:
    """Run a command to its end, its stderr kept in the file `log`. It is killed if we are interrupted."""
    with log.open("wb") as stderr:
        begun = time.perf_counter()
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=environment()
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(
        process.returncode,
        seconds,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * unit / 1e6,
        log.read_text("utf-8", "replace"),
    )


def environment() -> dict[str, str]:
    """The environment of every measured process: no model hub, no settings of ours but the cache."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("EMBEDCLI_") or key in KEPT}
    return {**kept, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
