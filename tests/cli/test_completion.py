"""Completion in real shells: flags with what they mean, values of a choice, and file names where a file belongs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jobs

SHELLS = ("bash", "zsh", "fish")
# How each shell completes a line without a terminal. zsh's own listing needs one: its helper prints what it was given.
DRIVERS = {
    "bash": "source {script}; COMP_WORDS=({line} {last}); COMP_CWORD={at}; _embedcli_completion embedcli; "
    'printf "%s\\n" "${{COMPREPLY[@]}}"',
    "zsh": 'compdef() {{ }}; _arguments() {{ print -rl -- "$@" }}; _files() {{ print files }}; words=({line} {last}); '
    "CURRENT=$(({at} + 1)); source {script}; _embedcli_completion",
    "fish": "source {script}; complete --do-complete '{line} {unquoted}'",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `embedcli`, which must be on the PATH for its completion, and the script of each shell."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "embedcli"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m embedcli "$@"\n')
    script.chmod(0o755)
    # Typer asks the running shell which one it is, unless it is told.
    env = environment(folder) | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    for shell in SHELLS:
        done = subprocess.run([script, "--show-completion", shell], env=env, capture_output=True, text=True, check=True)
        (folder / shell).write_text(done.stdout)
    return folder


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}


def completed(shell: str, program: Path, line: str, last: str) -> str:
    """What a shell offers for the last word of a line."""
    if shutil.which(shell) is None:
        pytest.skip(f"not installed: {shell}")
    quoted = f"'{last}'"
    code = DRIVERS[shell].format(script=program / shell, line=line, last=quoted, unquoted=last, at=len(line.split()))
    done = subprocess.run(
        [shell, "-c", code],
        env=environment(program),
        cwd=program,
        capture_output=True,
        text=True,
        timeout=jobs.PATIENCE,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "last", "offered", "other"),
    [
        ("embedcli", "enc", "encode", "search"),
        ("embedcli encode", "--prec", "--precision", "--prompt"),
        ("embedcli encode --precision", "int", "int8", "float32"),
    ],
)
def test_what_fits_is_offered(shell: str, program: Path, line: str, last: str, offered: str, other: str) -> None:
    out = completed(shell, program, line, last)
    assert offered in out
    assert other not in out


def test_a_file_is_completed_where_a_file_belongs(program: Path) -> None:
    """bash falls back to file names when nothing is offered."""
    assert "-o default" in (program / "bash").read_text()
    assert completed("bash", program, "embedcli encode", "in") == "\n"


def test_completing_loads_no_heavy_library(program: Path) -> None:
    code = "import sys; from embedcli.cli import main\ntry: main()\nexcept SystemExit: pass\nprint(*sys.modules)"
    env = environment(program) | {
        "_EMBEDCLI_COMPLETE": "complete_bash", "COMP_WORDS": "embedcli encode --prec", "COMP_CWORD": "2",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    offered, _, modules = done.stdout.partition("\n")
    assert offered == "--precision"
    assert {"torch", "numpy", "pyarrow", "openvino", "rich", "tomllib"} & set(modules.split()) == set()


@pytest.mark.parametrize("shell", SHELLS)
def test_models_and_columns_are_offered(shell: str, program: Path) -> None:
    (program / "rows.jsonl").write_text('{"key": "a", "body": "one", "lang": "en"}\n')
    assert "e5-small-v2" in completed(shell, program, "embedcli encode --model", "e5-s")
    out = completed(shell, program, "embedcli encode rows.jsonl --text-column", "bo")
    assert "body" in out
    assert "lang" not in out
    assert "body" not in completed(shell, program, "embedcli encode absent.jsonl --text-column", "bo")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("line", ["pull", "search out.parquet --model", "verify out.parquet -m", "eval rows.jsonl -m"])
def test_models_are_offered_wherever_one_is_named(shell: str, program: Path, line: str) -> None:
    out = completed(shell, program, f"embedcli {line}", "e5-s")
    assert "e5-small-v2" in out
    assert "gte-small" not in out


@pytest.mark.parametrize("shell", SHELLS)
def test_search_offers_the_kept_columns(shell: str, program: Path) -> None:
    jobs.word_model(program)
    rows = [{"id": 1, "text": "word1", "language": "en", "lake": "Garda"}]
    jobs.write_jsonl(program / "kept.jsonl", rows)
    output = program / "kept.parquet"
    kept = ("--keep", "language", "--keep", "text")
    done = jobs.run("encode", program / "kept.jsonl", output, "-m", program / "words.txt", *kept, "--overwrite")
    assert done.code == 0, done.err
    out = completed(shell, program, "embedcli search kept.parquet word --show", "la")
    assert "language" in out
    assert "lake" not in out
    assert "language" not in completed(shell, program, "embedcli search absent.parquet word --show", "la")
