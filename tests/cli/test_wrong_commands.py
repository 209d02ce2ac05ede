"""Commands with a mistake: one suggestion each, and it works when typed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jobs

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import wrong_commands  # noqa: E402


@pytest.fixture
def folder() -> Iterator[Path]:
    with wrong_commands.example_folder() as path:
        yield path


def test_there_are_enough_of_them() -> None:
    assert len(set(wrong_commands.WRONG_COMMANDS)) >= 20


@pytest.mark.parametrize("command", wrong_commands.WRONG_COMMANDS)
def test_the_suggestion_works_when_typed(folder: Path, command: str) -> None:
    code, error, hint = wrong_commands.answer(command)
    assert code in (1, 2)
    assert error
    suggestion = wrong_commands.suggested_command(command, hint)
    if suggestion.startswith("mkdir -p missing && "):
        (folder / "missing").mkdir()
        suggestion = suggestion.partition(" && ")[2]
    assert suggestion not in ("", command) or "missing" in command, hint
    assert wrong_commands.answer(suggestion) == (0, "", "")


def test_an_option_of_another_kind_is_not_suggested() -> None:
    ended = jobs.run("bench", "in.jsonl", "--walkers", "2")
    assert ended.code == 2
    assert ended.err.endswith("hint: `embedcli bench --help` lists the options\n"), ended.err
