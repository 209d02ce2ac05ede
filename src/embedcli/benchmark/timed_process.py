"""Run a process and measure it from outside: wall-clock seconds, processor seconds, peak memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from embedcli.benchmark.machine import busy_seconds

MEASURE_PROGRAM = Path(__file__).parent / "programs" / "measure.py"
# The user's settings reach a measured embedcli as options; of the environment only the place of its cache is kept.
KEPT_VARIABLES = {"EMBEDCLI_CACHE"}


@dataclass(frozen=True)
class ProcessResult:
    """How a process ended and what it used.

    Attributes:
        code: Its exit code, negative for a signal.
        seconds: Wall-clock seconds from start to exit.
        cpu_seconds: Seconds of processor time, children included.
        peak_mb: Its largest resident size, in 10**6 bytes.
        stderr: What it wrote to stderr.
        others_share: The share of the machine's processor time that other programs used meanwhile; None if unknown.
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    stderr: str
    others_share: float | None = None

    @property
    def last_error_line(self) -> str:
        """The last line of stderr that begins with `error:`, else its last line, else the exit code."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or [f"exit code {self.code}"])[-1]


def run_measured(command: Sequence[str], log: Path) -> ProcessResult:
    """Run a command to its end. It is killed if this process is interrupted.

    Args:
        command: The program and its arguments.
        log: The file that receives its stderr.

    Raises:
        OSError: There is no such program.
    """
    result_path = log.with_name(log.name + ".json")
    result_path.unlink(missing_ok=True)
    measured_command = [sys.executable, "-S", "-E", str(MEASURE_PROGRAM), str(result_path), *command]
    nothing = subprocess.DEVNULL
    busy_before = busy_seconds()
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            measured_command,
            stdin=nothing,
            stdout=nothing,
            stderr=stderr,
            env=child_environment(),
            start_new_session=True,
        )
        try:
            process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    output = log.read_text("utf-8", "replace")
    if not result_path.exists():
        raise OSError(f"{command[0]} could not be run: {output.strip().rpartition(chr(10))[2]}")
    result = ProcessResult(**json.loads(result_path.read_text("utf-8")), stderr=output)
    return replace(result, others_share=compute_others_share(result, busy_before, busy_seconds()))


def compute_others_share(result: ProcessResult, busy_before: float | None, busy_after: float | None) -> float | None:
    """The share of the processor time that other programs used, from the machine's busy seconds before and after."""
    if busy_before is None or busy_after is None:
        return None
    others = busy_after - busy_before - result.cpu_seconds
    return min(1.0, max(0.0, others / (result.seconds * (os.cpu_count() or 1))))


def child_environment() -> dict[str, str]:
    """The environment of every measured process: no model hub, and of embedcli's variables only the cache."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("EMBEDCLI_") or key in KEPT_VARIABLES}
    return {**kept, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
