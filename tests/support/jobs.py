"""Whole jobs for tests: a word-vector model that starts fast, rows, and `embedcli` in and out of this process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embedcli.core.types import RunObserver

DIM = 16
# Seconds after which a process hangs, on however slow and busy a machine.
PATIENCE = 600
WORDS = [f"word{i}" for i in range(120)]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and what it printed where."""

    code: int
    out: str
    err: str


def word_model(folder: Path) -> Path:
    """A word2vec text file of random vectors in `folder`."""
    chance = random.Random(5)
    lines = [f"{len(WORDS)} {DIM}"]
    lines += [f"{word} " + " ".join(f"{chance.gauss(0, 1):.5f}" for _ in range(DIM)) for word in WORDS]
    path = folder / "words.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def rows(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """`count` rows of known words, each with an id and a number of its own."""
    chance = random.Random(seed)
    return [{"id": f"r{i}", "text": " ".join(chance.choices(WORDS, k=1 + i % 12)), "n": i} for i in range(count)]


def write_jsonl(path: Path, made: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), "utf-8")
    return path


def enter_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> Path:
    """Make `folder` the current folder, with the model `words.txt` and `in.jsonl` of `count` rows."""
    monkeypatch.chdir(folder)
    word_model(folder)
    write_jsonl(folder / "in.jsonl", rows(count))
    return folder


def mixed_inputs(folder: Path) -> None:
    """In `folder`: the model, and 900 good rows and four bad ones as JSONL, CSV and Parquet of row groups of 40."""
    word_model(folder)
    made = rows(900)
    lines = [json.dumps(row) for row in made[:500]]
    lines[7:7] = ["{broken", "", '{"id": 5, "text": null}', '{"id": "unknown", "text": "zzz"}']
    (folder / "in.a.jsonl").write_text("\n".join(lines) + "\n")
    header = "id,text,n\n"
    (folder / "in.b.csv").write_text(header + "".join(f"{r['id']},{r['text']},{r['n']}\n" for r in made[500:700]))
    pq.write_table(pa.Table.from_pylist(made[700:]), folder / "in.c.parquet", row_group_size=40)


def mixed_paths(folder: Path) -> tuple[str, ...]:
    return tuple(str(folder / name) for name in ("in.a.jsonl", "in.b.csv", "in.c.parquet"))


class Silent(RunObserver):
    """A watch that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def notify(self, text: str) -> None:
        self.lines.append(text)


def run(*arguments: object) -> Ended:
    """`embedcli ARGUMENTS` in this process."""
    from embedcli.cli import app

    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return Ended(done.exit_code, done.stdout, done.stderr)


def command(*arguments: object) -> list[str]:
    """The same as a command of its own."""
    return [sys.executable, "-m", "embedcli", *map(str, arguments)]


def run_apart(*arguments: object, stdin: bytes | None = None, **environment: str) -> Ended:
    """`embedcli ARGUMENTS` in a process of its own."""
    done = subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        env=os.environ | environment,
        check=False,
        timeout=PATIENCE,
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = PATIENCE) -> None:
    """Wait until a process has come so far; fail if it ends or takes longer than it possibly can."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process ended early"
        assert time.monotonic() < until, "the process never came so far"
        time.sleep(0.01)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal (SigCgt in /proc/PID/status, man 5 proc)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = int(next(line.split()[1] for line in lines if line.startswith("SigCgt")), 16)
    own = caught >> (int(number) - 1) & 1
    return bool(own) and (number != signal.SIGINT or bool(caught >> (int(signal.SIGTERM) - 1) & 1))


def left_in(folder: Path) -> list[str]:
    """The names of everything in a folder, except the inputs of these tests."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(("in.", "words.")))


def contents(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(path.iterdir())] if path.is_dir() else [path.read_bytes()]
