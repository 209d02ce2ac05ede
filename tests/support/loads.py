"""Loads for tests: a database, `embedcli` in this process, and loads that are killed at a chosen call."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import jobs
from backends import BACKENDS, TABLE, Backend
from embedcli.cli import app
from embedcli.databases import connect, parse_target
from embedcli.databases.rejects import load_rejects_path


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def counts(self) -> tuple[int, int]:
        """Rows sent and unchanged, by the summary."""
        words = next(line for line in self.err.splitlines() if " in the output, " in line).replace(",", "").split()
        return int(words[words.index("sent") - 1]), int(words[words.index("unchanged") - 1])


def make_backend(name: str, tmp_path: Path) -> Iterator[Backend]:
    kind = BACKENDS[name]
    missing = kind.missing_packages()
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    folder = tmp_path / "database"
    folder.mkdir()
    made = kind(folder)
    yield made
    made.close()


def run(*args: object) -> Done:
    result = CliRunner().invoke(app, list(map(str, args)))
    return Done(result.exit_code, result.stdout, result.stderr)


def load(output: object, backend: Backend, *options: str) -> Done:
    done = run("load", output, backend.address, "--table", TABLE, *options)
    assert done.out == ""
    return done


def read_rejects(output: Path, backend: Backend) -> list[dict[str, Any]]:
    """The rejects of the last load into the table."""
    path = load_rejects_path(str(output), parse_target(backend.address, TABLE))
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def check(output: object, backend: Backend, *options: str) -> Done:
    return run("verify", output, backend.address, "--table", TABLE, "--all", *options)


def loaded(output: Path, backend: Backend, *options: str) -> Path:
    done = load(output, backend, *options)
    assert done.code == 0, done.err
    return output


def names(count: int) -> list[str]:
    return [f"r{i}" for i in range(count)]


KILLED = """
import os, signal, sys, threading
from importlib import import_module
from embedcli.cli import app
from embedcli.databases import connect, parse_target
module = import_module(sys.argv[1])
for thing in vars(module).values():
    if isinstance(thing, type) and thing.__module__ == module.__name__ and hasattr(thing, "batch_bytes"):
        thing.batch_bytes = 5000
left, method, count = int(sys.argv[2]), sys.argv[3], 0
def is_inside(frame):
    while frame is not None and frame.f_code.co_name != method:
        frame = frame.f_back
    return frame is not None
def on_event(frame, event, value):
    global count
    if frame.f_code.co_filename == module.__file__ and (not method or is_inside(frame)):
        count += 1
        if count == left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(on_event)
threading.setprofile(on_event)
try:
    app(sys.argv[4:], prog_name="embedcli")
except SystemExit as end:
    print(count)
    os._exit(end.code or 0)
"""


def load_until(event: int, output: Path, backend: Backend, *options: str, inside: str = "") -> bool:
    """Load in a process that is killed at a call in the code of the database's module.

    Args:
        event: The number of the call.
        output: The output.
        backend: The database.
        options: More options of the command.
        inside: Only calls within this method count.

    Returns:
        Whether the process was killed, and did not end before.
    """
    return count_calls(event, output, backend, TABLE, *options, inside=inside) is None


def count_calls(event: int, output: Path, backend: Backend, table: str, *options: str, inside: str = "") -> int | None:
    """Load in a process that is killed at a call; return how many calls there were, None if it was killed."""
    command = ["load", str(output), backend.address, "--table", table, *options]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, backend.module, str(event), inside, *command],
        capture_output=True, text=True, timeout=jobs.PATIENCE, check=False,
    )  # fmt: skip
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def rehearse(output: Path, backend: Backend, *options: str, inside: str = "") -> int:
    """Load into another table, and return how many calls a whole load has."""
    calls = count_calls(-1, output, backend, f"rehearsal_{inside or 'of_all'}", *options, inside=inside)
    assert calls, "the load did nothing"
    return calls


def drop(backend: Backend) -> None:
    with connect(parse_target(backend.address, TABLE)) as database:
        database.drop_table(TABLE)
