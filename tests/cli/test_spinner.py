"""Commands that take long show a spinner with the elapsed time on a terminal, and nothing elsewhere."""

from __future__ import annotations

import importlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import jobs
from embedcli.cli.spinner import show_spinner

# One line up and erase it: nothing of the spinner is left.
ERASED = "\x1b[1A\x1b[2K"


class FakeTerminal(io.StringIO):
    """A terminal that keeps what it shows."""

    def isatty(self) -> bool:
        return True


def make_terminal(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    """A terminal in the place of stderr. No fixture: between its fixtures and a test, pytest replaces stderr itself."""
    stream = FakeTerminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return stream


def wait_for(terminal: FakeTerminal, text: str) -> None:
    until = time.monotonic() + jobs.PATIENCE
    while text not in terminal.getvalue():
        assert time.monotonic() < until, terminal.getvalue()
        time.sleep(0.01)


def test_a_terminal_shows_what_happens_and_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    with show_spinner("checking out.parquet") as notify:
        wait_for(terminal, "checking out.parquet  0:00:0")
        notify("a note")
    assert "a note\n" in terminal.getvalue()
    assert terminal.getvalue().endswith(ERASED)


def test_an_error_removes_the_spinner(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)

    def fail() -> None:
        wait_for(terminal, "checking")
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"), show_spinner("checking"):
        fail()
    assert terminal.getvalue().endswith(ERASED)


def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = make_terminal(monkeypatch)
    with show_spinner("checking", quiet=True) as notify:
        notify("a note")
    assert terminal.getvalue() == ""


def test_a_pipe_gets_the_notes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with show_spinner("checking") as notify:
        notify("a note")
    assert capsys.readouterr().err == "a note\n"


@pytest.mark.parametrize(
    ("module", "arguments", "text"),
    [
        ("merge", ("merge", "absent/"), "merging absent/"),
        ("verify", ("verify", "absent.parquet"), "checking absent.parquet"),
        ("search", ("search", "out.parquet", "word1"), "searching out.parquet"),
        ("bench", ("bench", "absent.jsonl"), "measuring"),
    ],
)
def test_long_commands_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, arguments: tuple[str, ...], text: str
) -> None:
    jobs.enter_folder(tmp_path, monkeypatch, 5)
    assert jobs.run("encode", "in.jsonl", "out.parquet", "-m", "words.txt").code == 0
    shown = []

    @contextmanager
    def remember(what: str, quiet: bool = False) -> Iterator[Callable[[str], None]]:
        shown.append(what)
        yield print

    monkeypatch.setattr(importlib.import_module(f"embedcli.cli.{module}"), "show_spinner", remember)
    jobs.run(*arguments)
    assert shown == [text]
