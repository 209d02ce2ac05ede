"""Options and commands that people know from other programs, and what embedcli has in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedcli.core.constants import TOKENS_PER_TEXT


@dataclass(frozen=True)
class ForeignOption:
    """An option of other programs.

    Attributes:
        advice: What to do instead.
        replacement: What to write in its place; `{}` stands for its value.
        takes_value: Whether it has a value.
        position: Where the replacement goes: in place, or before or after all arguments.
        factor: What its value, a number, is multiplied by.
    """

    advice: str
    replacement: tuple[str, ...] = ()
    takes_value: bool = False
    position: Literal["here", "first", "last"] = "here"
    factor: int = 1


def renamed(name: str) -> ForeignOption:
    return ForeignOption(f"use {name}", (name, "{}"), takes_value=True)


def switch(*replacement: str) -> ForeignOption:
    return ForeignOption(f"use {' '.join(replacement)}", replacement)


OUTPUT = ForeignOption("give the output as the last argument", ("{}",), takes_value=True, position="last")
INPUT = ForeignOption("give the input as the first argument", ("{}",), takes_value=True, position="first")
ONE_PROCESS = ForeignOption(
    "leave it out: this command runs in one process, which uses all processor cores", takes_value=True
)
NO_RESUME = ForeignOption("leave it out: the same command resumes an interrupted run")
BATCH_SIZE = ForeignOption(
    f"use --batch-tokens, {TOKENS_PER_TEXT} per text",
    ("--batch-tokens", "{}"),
    takes_value=True,
    factor=TOKENS_PER_TEXT,
)
DRY_RUN = "--dry-run"
FOREIGN_OPTIONS: dict[str, ForeignOption] = {
    "--force": switch("--overwrite"),
    "-f": switch("--overwrite"),
    "--output": OUTPUT,
    "--out": OUTPUT,
    "--output-file": OUTPUT,
    "-o": OUTPUT,
    "--input": INPUT,
    "--input-file": INPUT,
    "-i": INPUT,
    "--batch-size": BATCH_SIZE,
    "-b": BATCH_SIZE,
    "--num-workers": renamed("--threads"),
    "--num-proc": renamed("--threads"),
    "--jobs": renamed("--threads"),
    "-j": renamed("--threads"),
    "--workers": ONE_PROCESS,
    "--column": renamed("--text-column"),
    "--columns": renamed("--text-column"),
    "--field": renamed("--text-column"),
    "--text-field": renamed("--text-column"),
    "--text": renamed("--text-column"),
    "--id": renamed("--id-column"),
    "--id-field": renamed("--id-column"),
    "--fp16": switch("--dtype", "float16"),
    "--half": switch("--dtype", "float16"),
    "--bf16": switch("--dtype", "bfloat16"),
    "--gpu": ForeignOption("leave it out: a GPU is used where there is one"),
    "--cuda": ForeignOption("leave it out: a GPU is used where there is one"),
    "--cpu": switch("--device", "cpu"),
    "--resume": NO_RESUME,
    "--continue": NO_RESUME,
    "--silent": switch("--quiet"),
    "--quiet": ForeignOption("leave it out: this command prints no progress"),
    "--model-name": renamed("--model"),
    "--model-name-or-path": renamed("--model"),
    "--dim": renamed("--truncate-dim"),
    "--dimensions": renamed("--truncate-dim"),
    "--sep": renamed("--delimiter"),
    "--separator": renamed("--delimiter"),
    "--max-length": renamed("--max-seq-length"),
    "--prefix": renamed("--prompt"),
    "--instruction": renamed("--prompt"),
    "--head": renamed("--limit"),
    "--nrows": renamed("--limit"),
    "--top-k": renamed("--count"),
}
FOREIGN_COMMANDS = {
    "embed": "encode", "run": "encode", "estimate": "plan", "info": "inspect", "describe": "inspect",
    "show": "inspect", "query": "search", "diff": "compare", "check": "verify", "validate": "verify",
    "evaluate": "eval", "benchmark": "bench", "list": "models", "download": "pull", "visualize": "plot", "map": "plot",
}  # fmt: skip
