"""Every error says what happened, where, and what to type next: rules over all error texts of the source.

The texts stand in tests/error_texts.md, to be read in one go; `make docs` writes it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import errors  # noqa: E402

TEXTS = errors.collected()
# What a hint begins with: a verb, or the program to type.
VERBS = (
    "add", "check", "choose", "compare", "copy", "correct", "decompress", "did", "drop", "encode", "export", "fetch",
    "fix", "free", "get", "give", "import", "install", "leave", "load", "look", "lower", "make", "name", "put",
    "raise", "read", "reinstall", "remove", "rename", "restore", "run", "save", "see", "set", "start", "take", "try",
    "use", "wait", "write",
)  # fmt: skip
PROGRAMS = ("embedcli", "pip")
NAMES = ("Parquet", "OpenVINO", "MtebModel", "Lance")
# Hints that begin with something else: a defect, which nothing to type cures, or a fact before the action.
NOT_ACTIONS = (
    "this is a defect",
    "this should never happen",
    "they are those of",
    "--device can be",
)


def literal(text: str) -> str:
    """A text without what is filled in."""
    return re.sub(r"\{[^{}]*(\{[^{}]*\}[^{}]*)*\}", "", text).strip()


def test_the_source_is_seen_whole() -> None:
    source = sum(
        len(re.findall(r"\b(?:Usage|Input|Output|Model|Resume)Error\(\n? *[f\"*]", path.read_text("utf-8")))
        for path in errors.PACKAGE.rglob("*.py")
    )
    assert len(TEXTS) >= source > 200
    assert {text.kind for text in TEXTS} >= {"UsageError", "InputError", "OutputError", "ModelError", "ResumeError"}


def faults(text: errors.ErrorText) -> Iterator[str]:
    """What is wrong with a text."""
    if not text.message:
        yield "says nothing"
    if not text.hint:
        yield "does not say what to type next"
    said = re.sub(r"^\W+", "", literal(text.message))
    if re.match(r"[A-Z][a-z]", said) and not said.startswith(NAMES):
        yield "begins with a capital"
    for part in (text.message, text.hint):
        if part.endswith((".", "!", " ", " ?")):
            yield "ends with a full stop: the boundary prints it on a line of its own"
        if re.search(r"\b(sorry|oops|invalid|illegal)\b", literal(part)):
            yield "does not say what is wrong"
    yield from (f"{hint!r} is nothing to do" for hint in text.hint.split(" | ") if not is_action(hint))


def is_action(hint: str) -> bool:
    words = re.match(r"[\w']+", literal(hint))
    if hint.startswith("{") or not hint:
        return True  # made elsewhere, or told already
    verb = words is not None and words[0] in (*VERBS, *PROGRAMS)
    return verb or "`embedcli" in hint or hint.startswith(NOT_ACTIONS)


def test_every_text_keeps_the_rules() -> None:
    assert [f"{text.module}: {text.message!r} {fault}" for text in TEXTS for fault in faults(text)] == []


@pytest.mark.parametrize(
    ("message", "hint", "fault"),
    [
        ("", "use --x", "says nothing"),
        ("no file", "", "does not say what to type next"),
        ("{path}: No file", "use --x", "begins with a capital"),
        ("no file.", "use --x", "full stop"),
        ("no file", "use --x.", "full stop"),
        ("invalid file", "use --x", "does not say what is wrong"),
        ("no file", "the file is not there", "nothing to do"),
    ],
)
def test_a_rule_that_is_broken_is_named(message: str, hint: str, fault: str) -> None:
    (found,) = faults(errors.ErrorText("a.py", "InputError", message, hint))
    assert fault in found


def test_exceptions_to_the_rule_are_used() -> None:
    hints = [hint for text in TEXTS for hint in text.hint.split(" | ")]
    assert [start for start in NOT_ACTIONS if not any(hint.startswith(start) for hint in hints)] == []


def test_a_bad_text_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        'class EmbedcliError(Exception): ...\nclass Own(EmbedcliError): ...\nHINT = "give up"\n'
        'def f(x):\n    text = f"{x!r} is bad"\n    raise Own(text, HINT)\n'
        'def g(x):\n    raise Own("no hint" if x else f"a {x}")\n'
    )
    found = [(text.kind, text.message, text.hint) for text in errors.collected(tmp_path)]
    assert found == [("Own", "{x!r} is bad", "give up"), ("Own", "no hint | a {x}", "")]
