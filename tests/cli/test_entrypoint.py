"""The process: few heaps while it runs, and at its end nothing is lost by not taking the libraries down."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import jobs
from embedcli.cli import entrypoint

PROGRAM = """
import atexit, sys, threading, time
from embedcli.cli.entrypoint import ended_at_once

class Torn:
    def __del__(self):
        print("taken down", flush=True)

held = Torn()

def program():
    atexit.register(print, "a library's own end")
    threading.Thread(target=lambda: (time.sleep(0.2), print("a thread's last word"))).start()
    sys.stdout.write("data that is not flushed\\n")
    {last}

ended_at_once(program)
"""
SAID = ["data that is not flushed", "a thread's last word", "a library's own end"]


def ended(last: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(last=last)]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=jobs.PATIENCE)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75, 130])
def test_the_exit_code_and_all_that_was_said_stay(code: int) -> None:
    done = ended(f"sys.exit({code})")
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (code, SAID, "")


@pytest.mark.parametrize(
    ("last", "code", "told"),
    [("raise ValueError('a defect')", 1, "ValueError: a defect"), ("sys.exit('why')", 1, "why")],
)
def test_what_is_no_exit_code_ends_as_python_ends(last: str, code: int, told: str) -> None:
    done = ended(last)
    assert done.returncode == code
    assert told in done.stderr
    assert done.stdout.splitlines() == [*SAID, "taken down"]


def test_a_last_flush_that_fails_is_told() -> None:
    with open("/dev/full", "w") as full:
        done = ended("sys.exit(0)", full.fileno())
    assert done.returncode != 0
    assert "No space left on device" in done.stderr


def test_few_heaps_are_kept_unless_the_user_wants_others(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=lambda *call: asked.append(call)))
    for name in ("MALLOC_ARENA_MAX", "ARROW_DEFAULT_MEMORY_POOL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    entrypoint.limit_malloc_arenas()
    assert os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "system"
    assert asked == [(entrypoint.M_ARENA_MAX, int(os.environ["MALLOC_ARENA_MAX"]))]
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "mimalloc")
    entrypoint.limit_malloc_arenas()
    assert os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "mimalloc"
    assert asked[1] == (entrypoint.M_ARENA_MAX, 7)


def test_a_c_library_without_heaps_to_count_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace())
    entrypoint.limit_malloc_arenas()
