"""Signals at every moment of a process, one or many: the exit code of the table, the state kept, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import jobs
from embedcli.core import signals

ROWS = jobs.rows(20_000)
CODES = {"SIGINT": 130, "SIGTERM": 75, "SIGHUP": 75}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jobs.word_model(tmp_path)
    jobs.write_jsonl(tmp_path / "in.jsonl", ROWS)
    return tmp_path


def start(folder: Path, *flags: object, ignored: int | None = None) -> subprocess.Popen[bytes]:
    """A job in a process group of its own, with many small checkpoints."""
    arguments = ["in.jsonl", "out/", "-m", "words.txt", "--chunk-rows", 100, "--part-size", 20_000, "--report", "r"]
    return subprocess.Popen(
        jobs.command("encode", *arguments, *flags),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=(lambda: signal.signal(ignored, signal.SIG_IGN) and None) if ignored else None,  # noqa: PLW1509
    )


def part_files(folder: Path) -> int:
    return len(list(folder.glob("out/_parts/**/part-*")))


@pytest.mark.parametrize("flags", [(), ("--workers", 2)], ids=["alone", "workers"])
@pytest.mark.parametrize("name", CODES)
def test_a_signal_to_the_group_keeps_the_state(folder: Path, name: str, flags: tuple[object, ...]) -> None:
    process = start(folder, *flags)
    jobs.wait_for(lambda: part_files(folder) >= 3, process)
    os.killpg(process.pid, signal.Signals[name])
    out, err = process.communicate(timeout=jobs.PATIENCE)
    assert (process.returncode, out) == (CODES[name], b""), err.decode()
    assert b"run the same command again" in err
    assert b"Traceback" not in err
    assert json.loads((folder / "r").read_text())["reason"].startswith(f"stopped by {name}: ")
    done = start(folder)
    done.communicate(timeout=jobs.PATIENCE)
    assert done.returncode == 0
    assert pq.read_table(folder / "out", columns=["id"]).num_rows == len(ROWS)
    assert json.loads((folder / "r").read_text())["rows"]["resumed"] > 0


@pytest.mark.parametrize("flags", [(), ("--workers", 2)], ids=["alone", "workers"])
def test_a_storm_of_signals(folder: Path, flags: tuple[object, ...]) -> None:
    process = start(folder, *flags)
    jobs.wait_for(lambda: part_files(folder) >= 3, process)
    for number in [signal.SIGTERM, signal.SIGINT, signal.SIGHUP] * 17:
        if process.poll() is None:
            os.killpg(process.pid, number)
    out, err = process.communicate(timeout=jobs.PATIENCE)
    assert process.returncode in (75, 130), err.decode()
    assert out == b""
    assert b"Traceback" not in err
    assert b"ignored" not in err
    assert json.loads((folder / "r").read_text())["exit_code"] == process.returncode


def test_a_hang_up_that_nohup_ignores(folder: Path) -> None:
    process = start(folder, ignored=signal.SIGHUP)
    jobs.wait_for(lambda: part_files(folder) >= 3, process)
    os.killpg(process.pid, signal.SIGHUP)
    _, err = process.communicate(timeout=jobs.PATIENCE)
    assert process.returncode == 0, err.decode()


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("module", ["typer", "embedcli.cli.encode", "embedcli.runners", "pyarrow"])
def test_a_signal_while_modules_are_imported(folder: Path, module: str, name: str) -> None:
    code = f"""
import os, signal, sys

class Interrupter:
    def find_spec(self, fullname, path=None, target=None):
        if fullname == {module!r}:
            os.kill(os.getpid(), signal.{name})

sys.meta_path.insert(0, Interrupter())
sys.argv = ["embedcli", "encode", "in.jsonl", "out.parquet", "-m", "words.txt"]
from embedcli.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (CODES[name], b""), done.stderr.decode()
    assert done.stderr.decode().endswith(
        "error: interrupted\nhint: run the same command again; encode and load continue where they stopped\n"
    )
    assert b"Traceback" not in done.stderr
    assert not (folder / "out.parquet").exists()


def test_an_exception_of_a_signal_is_raised_once_and_again_if_it_was_lost() -> None:
    stop = signals.StopAtOnce()
    with pytest.raises(signals.InterruptedBySignal):
        stop("SIGTERM")
    stop("SIGTERM")
    with pytest.raises(signals.InterruptedBySignal):
        stop.raise_if_lost()
    stop.raise_if_lost()


def test_an_exception_that_python_has_replaced_is_found() -> None:
    def replaced() -> Any:
        try:
            raise signals.InterruptedBySignal("SIGINT")
        except BaseException as error:
            raise RuntimeError("Error calling __set_name__") from error

    with pytest.raises(RuntimeError) as raised:
        replaced()
    assert isinstance(signals.find_interruption(raised.value), signals.InterruptedBySignal)
    plain = ValueError()
    assert signals.find_interruption(plain) is plain
    plain.__cause__ = plain  # as pymilvus raises its errors
    assert signals.find_interruption(plain) is plain
