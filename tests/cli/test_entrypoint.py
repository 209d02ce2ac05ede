"""Start and end of the process: malloc arenas, exit without unloading libraries, and errors on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import jobs
from embedcli.cli import entrypoint
from embedcli.core.errors import InputError
from embedcli.core.signals import InterruptedBySignal

PROGRAM = """
import atexit, sys, threading, time
from embedcli.cli.entrypoint import run_and_exit_fast

class Unloaded:
    def __del__(self):
        print("unloaded", flush=True)

held = Unloaded()

def program():
    atexit.register(print, "a library's exit handler")
    threading.Thread(target=lambda: (time.sleep(0.2), print("a thread's last line"))).start()
    sys.stdout.write("data that is not flushed\\n")
    {last}

run_and_exit_fast(program)
"""
OUTPUT = ["data that is not flushed", "a thread's last line", "a library's exit handler"]


def run_program(last: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(last=last)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=jobs.PATIENCE)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75, 130])
def test_exit_code_and_output_are_kept(code: int) -> None:
    done = run_program(f"sys.exit({code})")
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (code, OUTPUT, "")


@pytest.mark.parametrize(
    ("last", "code", "message"),
    [("raise ValueError('a defect')", 1, "ValueError: a defect"), ("sys.exit('why')", 1, "why")],
)
def test_other_ends_are_left_to_python(last: str, code: int, message: str) -> None:
    done = run_program(last)
    assert done.returncode == code
    assert message in done.stderr
    assert done.stdout.splitlines() == [*OUTPUT, "unloaded"]


def test_a_failed_last_flush_is_reported() -> None:
    with open("/dev/full", "w") as full:
        done = run_program("sys.exit(0)", full.fileno())
    assert done.returncode != 0
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("code", [1, 141])
def test_a_failed_command_reports_no_second_error_for_its_last_flush(code: int) -> None:
    program = f"""
import sys
from embedcli.cli.entrypoint import run_and_exit_fast
def program():
    try:
        sys.stdout.write("data")
        sys.stdout.flush()
    except OSError:
        sys.exit({code})
run_and_exit_fast(program)
"""
    with open("/dev/full", "w") as full:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (code, "")


def test_control_characters_of_an_error_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    code = entrypoint.report_error(InputError("a\x1b[31m\u202e.csv: cannot\nbe read \udcff", "rename\x07 it"))
    assert code == 1
    assert capsys.readouterr().err == "error: a\\x1b[31m\\u202e.csv: cannot be read \\udcff\nhint: rename\\x07 it\n"


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGHUP", 75)])
def test_a_signal_has_its_exit_code(name: str, code: int) -> None:
    assert entrypoint.describe_error(InterruptedBySignal(name))[2] == code
    assert entrypoint.describe_error(KeyboardInterrupt())[2] == 130


def test_malloc_arenas_are_limited_unless_the_user_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=lambda *call: calls.append(call)))
    for name in ("MALLOC_ARENA_MAX", "ARROW_DEFAULT_MEMORY_POOL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    entrypoint.limit_malloc_arenas()
    assert os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "system"
    assert calls == [(entrypoint.M_ARENA_MAX, int(os.environ["MALLOC_ARENA_MAX"]))]
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "mimalloc")
    entrypoint.limit_malloc_arenas()
    assert os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "mimalloc"
    assert calls[1] == (entrypoint.M_ARENA_MAX, 7)


def test_blas_threads_are_limited_unless_the_user_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    entrypoint.limit_blas_threads()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    entrypoint.limit_blas_threads()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "3"


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace())
    entrypoint.limit_malloc_arenas()
