"""One process, run and measured from outside: wall seconds, processor seconds, peak memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from embedcli.benchmark import machine

MEASURE = Path(__file__).parent / "programs" / "measure.py"
# Settings of the user reach a measured embedcli as flags, once; only where its cache is stays in the environment.
KEPT = {"EMBEDCLI_CACHE"}


@dataclass(frozen=True)
class Finished:
    """How a process ended. `seconds` is from start to exit; `peak_mb` its largest resident size in 10**6 bytes.

    `others_share` is what all other programs took of the machine's processors meanwhile, None where not known.
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    stderr: str
    others_share: float | None = None

    @property
    def last_words(self) -> str:
        """The last line that it wrote to stderr."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")]
        return (errors or lines or [f"exit code {self.code}"])[-1]


def run(command: Sequence[str], log: Path) -> Finished:
    """Run a command to its end, its stderr kept in the file `log`. It is killed if we are interrupted.

    Raises OSError when there is no such command.
    """
    result = log.with_name(log.name + ".json")
    result.unlink(missing_ok=True)
    measured = [sys.executable, "-S", "-E", str(MEASURE), str(result), *command]
    nothing = subprocess.DEVNULL
    before = machine.busy_seconds()
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            measured, stdin=nothing, stdout=nothing, stderr=stderr, env=environment(), start_new_session=True
        )
        try:
            process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    told = log.read_text("utf-8", "replace")
    if not result.exists():
        raise OSError(f"{command[0]} could not be run: {told.strip().rpartition(chr(10))[2]}")
    done = Finished(**json.loads(result.read_text("utf-8")), stderr=told)
    return replace(done, others_share=others(done, before, machine.busy_seconds()))


def others(done: Finished, before: float | None, after: float | None) -> float | None:
    """The share of the processors' time that went to other programs, from busy seconds before and after."""
    if before is None or after is None:
        return None
    return min(1.0, max(0.0, (after - before - done.cpu_seconds) / (done.seconds * (os.cpu_count() or 1))))


def environment() -> dict[str, str]:
    """The environment of every measured process: no model hub, no settings of ours but the cache."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("EMBEDCLI_") or key in KEPT}
    return {**kept, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
