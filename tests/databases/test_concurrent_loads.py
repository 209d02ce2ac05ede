"""Two loads into one table at the same time: the second is refused, or the first one notices it; no row is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends import BACKENDS, TABLE, Backend
from loads import check, load, make_backend, names
from sample_outputs import make_output, unit_vectors

DIM = 16
COUNT = 300
# A load that waits for a line on stdin after its first batch, while no other batch is under way.
HELD = """
import sys
from importlib import import_module
from embedcli.cli import app
from embedcli.databases.loader import Loader
module = import_module(sys.argv[1])
for thing in vars(module).values():
    if isinstance(thing, type) and thing.__module__ == module.__name__ and hasattr(thing, "batch_bytes"):
        thing.batch_bytes, thing.parallel_requests = 5000, 1
count_sent, is_held = Loader.count_sent, []
def hold(self, rows):
    count_sent(self, rows)
    if not is_held:
        is_held.append(True)
        print("held", flush=True)
        sys.stdin.readline()
Loader.count_sent = hold
app(sys.argv[2:], prog_name="embedcli")
"""


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    yield from make_backend(request.param, tmp_path)


@contextmanager
def held_load(output: Path, backend: Backend, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A load in a process of its own that has sent its first batch, and goes on when a line is written to its stdin."""
    command = ["load", str(output), backend.address, "--table", TABLE, *options]
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HELD, backend.module, *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "held\n", process.communicate()
        yield process


@pytest.mark.parametrize("option", [[], ["--swap"]], ids=["plain", "swap"])
def test_a_second_load_is_refused_or_noticed(tmp_path: Path, backend: Backend, option: list[str]) -> None:
    if option and not backend.can_swap:
        option = ["--sync"]
    first = make_output(tmp_path / "first.parquet", unit_vectors(COUNT, DIM), ids=names(COUNT))
    second = make_output(tmp_path / "second.parquet", unit_vectors(COUNT, DIM, seed=2), ids=names(COUNT))
    with held_load(first, backend, *option) as process:
        done = load(second, backend, *option)
        _, said = process.communicate("go on\n")
    if backend.refusal:
        assert (done.code, f"{backend.refusal}{process.pid})" in done.err) == (1, True), done.err
        assert "hint: run the same command again when it has finished" in done.err
        assert process.returncode == 0, said
        assert check(first, backend).code == 0
    else:
        assert done.code == 0, done.err
        assert process.returncode == 1
        assert "another load of this table has begun meanwhile" in said, said
    for _ in range(2):
        assert load(second, backend, *option).code == 0
        assert sorted(backend.ids()) == sorted(names(COUNT))
        assert check(second, backend).code == 0


@pytest.mark.parametrize("name", ["duckdb", "milvus", "qdrant-edge"])
def test_readers_of_an_engine_with_one_program_are_told_about_a_load(tmp_path: Path, name: str) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(COUNT, DIM), ids=names(COUNT))
    for backend in make_backend(name, tmp_path):
        with held_load(output, backend) as process:
            done = check(output, backend)
            process.communicate("go on\n")
        assert done.code == 1
        assert f": a load is running (process {process.pid})" in done.err
        assert check(output, backend).code == 0


@pytest.mark.parametrize("name", sorted(name for name, backend in BACKENDS.items() if backend.refusal))
def test_a_killed_load_keeps_no_lock(tmp_path: Path, name: str) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(COUNT, DIM), ids=names(COUNT))
    for backend in make_backend(name, tmp_path):
        with held_load(output, backend) as process:
            process.kill()
        done = load(output, backend)
        assert done.code == 0, done.err
        assert check(output, backend).code == 0
        left = [path.name for path in tmp_path.rglob("*embedcli-lock-*")]
        assert not left
