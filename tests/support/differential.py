"""Whole jobs over random inputs, compared with what the inputs hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs import run
from random_inputs import FORMATS, RandomInput, random_input


def check_jobs(seeds: Sequence[int], model: Path, folder: Path, formats: Sequence[str] = tuple(FORMATS)) -> None:
    """Run one job per seed; AssertionError with the choices and the command if its output is not what was written."""
    for seed in seeds:
        home = folder / f"job-{seed}"
        home.mkdir()
        check_job(random_input(seed, home, formats), model, home)
        shutil.rmtree(home)


def check_job(made: RandomInput, model: Path, home: Path) -> None:
    """Encode one random input and compare ids, texts, tags and counts."""
    if made.read is not None:
        found = [row for row in made.read() if row[1] is not None and row[1].strip()]
        assert [(str(row_id), *rest) for row_id, *rest in found] == [
            (str(row_id), *rest) for row_id, *rest in made.accepted
        ], f"the test itself is wrong: {made.description}"
    output = home / "out.parquet"
    keep = () if "--keep" in made.arguments else ("--keep", "text") + (("--keep", "tag") if made.has_tags else ())
    arguments = ("encode", made.path, output, "-m", model, "--progress", "none", *made.arguments, *keep)
    ended = run(*arguments)
    shown = f"{made.description}\nembedcli {' '.join(map(str, arguments))}\n{ended.err}"
    assert ended.code == (3 if made.rejected else 0), shown
    assert rows_of(output, made) == list(made.accepted), shown
    rejects = home / "out.parquet.rejects.jsonl"
    lines = rejects.read_text("utf-8").splitlines() if rejects.exists() else []
    assert len(lines) == made.rejected, shown
    assert all(json.loads(line)["reason"] for line in lines), shown


def rows_of(output: Path, made: RandomInput) -> list[tuple[Any, str, str | None]]:
    """Id, text and tag of each row of an output, in order; the columns of a file without a header have numbers."""
    table = pq.read_table(output)
    kept = [made.arguments[i + 1] for i, argument in enumerate(made.arguments) if argument == "--keep"]
    text, tag = kept or ("text", "tag")
    ids = table["id" if "id" in table.column_names else "row"].to_pylist()
    tags = table[tag].to_pylist() if made.has_tags else [None] * len(ids)
    return list(zip(ids, table[text].to_pylist(), tags, strict=True))
