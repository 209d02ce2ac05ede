"""Commands with a mistake that people make, each answered with one suggestion that works when typed.

A test types every suggestion; `make docs` shows them in tests/error_texts.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

# The commands run in a folder with in.jsonl, in.csv, out.parquet and the word vectors words.txt.
WRONG_COMMANDS = (
    "embedcli encod in.jsonl new.parquet --model words.txt",
    "embedcli embed in.jsonl new.parquet --model words.txt",
    "embedcli in.jsonl new.parquet --model words.txt",
    "embedcli encode in.jsonl new.parquet --modle words.txt",
    "embedcli encode in.jsonl new.parquet --model=words.txt --text_column=text",
    "embedcli encode in.jsonl new.parquet --model words.txt --column text",
    "embedcli encode in.jsonl new.parquet --model words.txt --columns text",
    "embedcli encode in.jsonl out.parquet --model words.txt --force",
    "embedcli encode in.jsonl new.parquet --model words.txt --dry-run",
    "embedcli encode in.jsonl --output new.parquet --model words.txt",
    "embedcli encode new.parquet --input in.jsonl --model words.txt",
    "embedcli encode in.jsonl new.parquet --model words.txt --batch-size 32",
    "embedcli encode in.jsonl new.parquet --model words.txt --num-workers 2",
    "embedcli encode in.jsonl new.parquet --model words.txt --resume",
    "embedcli encode in.jsonl new.parquet --model words.txt --gpu",
    "embedcli encode in.jsonl new.parquet --model words.txt --bf16",
    "embedcli encode in.jsonl new.parquet --model words.txt --precision int7",
    "embedcli encode in.csv new.parquet --model words.txt --sep comma",
    "embedcli plan in.jsonl --model words.txt --quiet",
    "embedcli inspect in.jsonl out.parquet",
    "embedcli search out.parquet word1 --top-k 3",
    "embedcli search out.parquet word1 --workers 2",
    "embedcli info out.parquet",
    "embedcli encode in.jsonl new.parquet --model words.txt --fp16",
    "embedcli encode in.jsonl missing/new.parquet --model words.txt",
    "EMBEDCLI_MODLE=words.txt embedcli encode in.jsonl new.parquet",
    "embedcli encode in.jsonl new.parquet --offline --model all-MiniLM-L6-v1",
)


def answer(command: str) -> tuple[int, str, str]:
    """Run a command line in the current folder; return its exit code, and the last error and hint that it prints."""
    from typer.testing import CliRunner

    from embedcli.cli import app

    words = shlex.split(command)
    start = words.index("embedcli")
    variables: Mapping[str, str] = dict(word.split("=", 1) for word in words[:start])
    done = CliRunner().invoke(app, words[start + 1 :], prog_name="embedcli", env={"NO_COLOR": "1", **variables})
    found = [re.findall(rf"^{label}: (.*)$", done.stderr, re.MULTILINE) for label in ("error", "hint")]
    error, hint = (lines[-1] if lines else "" for lines in found)
    return done.exit_code, error, hint


def suggested_command(command: str, hint: str) -> str:
    """Return the command line that a hint suggests to type in place of `command`."""
    if found := re.search(r"\bembedcli .*$", hint):
        return found[0]
    if found := re.search(r"\bmkdir -p \S+$", hint):
        return f"{found[0]} && {command}"
    if found := re.search(r"did you mean --model (\S+)\?$", hint):
        return re.sub(r"--model \S+", f"--model {found[1]}", command)
    if found := re.search(r"did you mean (EMBEDCLI_\w+)\?$", hint):
        return re.sub(r"^EMBEDCLI_\w+", found[1], command)
    return ""


@contextlib.contextmanager
def example_folder() -> Iterator[Path]:
    """Work in a new folder with the files that the commands name."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [(f"r{i}", f"word{i} word{i + 1}") for i in range(6)]
        jsonl = "".join(f'{{"id": "{key}", "text": "{text}"}}\n' for key, text in rows)
        (folder / "in.jsonl").write_text(jsonl, "utf-8")
        (folder / "in.csv").write_text("id,text\n" + "".join(f"{key},{text}\n" for key, text in rows), "utf-8")
        vectors = "".join(f"word{i} {i + 1} {7 - i} {i % 3} 1\n" for i in range(7))
        (folder / "words.txt").write_text("7 4\n" + vectors, "utf-8")
        os.chdir(folder)
        try:
            code, error, _ = answer("embedcli encode in.jsonl out.parquet --model words.txt --quiet")
            assert code == 0, error
            yield folder
        finally:
            os.chdir(here)


def section() -> str:
    """Return the section of tests/error_texts.md that shows each command and its error."""
    lines = ["\n## Wrong commands\n", "\nEach is answered with one suggestion, and a test types it.\n\n"]
    with example_folder():
        for command in WRONG_COMMANDS:
            _, error, hint = answer(command)
            lines.append(f"- `{command}`\n  - error: {error}\n  - hint: {hint}\n")
    return "".join(lines)
