"""A job whose batches wait for the test: `python -c "import gated_run; gated_run.main()" STYLE GATE LOG JOB`.

Each batch takes one byte from the pipe GATE before its vectors are there, and then appends its number of rows to LOG.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from embedcli.core.job import Job
from fakes import FakeEncoder


class GatedEncoder(FakeEncoder):
    """Waits for a byte before each batch is there."""

    def __init__(self, gate: str, log: str) -> None:
        super().__init__(batch_tokens=200)
        self.gate, self.log = gate, log

    def collect(self, output: Any) -> Any:
        vectors = super().collect(output)
        pass_gate(self.gate, self.log, len(vectors))
        return vectors


def pass_gate(gate: str, log: str, rows: int) -> None:
    """Wait for a byte, then note the rows."""
    while not read_byte(gate):
        pass  # the writer has closed the pipe after the byte of another batch
    with open(log, "a") as out:
        out.write(f"{rows}\n")


def read_byte(gate: str) -> bytes:
    """Wait for a writer and read a byte; nothing if it has written none."""
    descriptor = os.open(gate, os.O_RDONLY)
    try:
        return os.read(descriptor, 1)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class GatedLoader:
    """Loads the encoder, in worker processes too."""

    gate: str
    log: str

    def __call__(self, job: Job, notify: Callable[[str], None]) -> GatedEncoder:
        return GatedEncoder(self.gate, self.log)


def main() -> None:
    from embedcli.cli.encode import run_job_with_reporting

    style, gate, log, options = sys.argv[1:]
    values: dict[str, Any] = json.loads(options)
    values["inputs"] = tuple(values["inputs"])
    sys.exit(run_job_with_reporting(Job(**values), None, style, False, load=GatedLoader(gate, log)))
