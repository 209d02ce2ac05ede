"""The rows of a comparison: read once as embedcli reads them, and given to everyone as the same plain JSONL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedcli.benchmark.statistics import spread
from embedcli.core.errors import InputError
from embedcli.core.job import Job

if TYPE_CHECKING:
    from collections.abc import Iterator

# A job that is all start: what a person waits for with a few texts.
FEW = 10
# Rows on which peers choose their batch size: enough for each to be fed, few enough to take seconds.
CHOOSING = 384


@dataclass(frozen=True)
class Rows:
    """The texts of a comparison, by row number, and JSONL files that hold all, the first ten, and a spread choice."""

    texts: Sequence[str]
    every: Path
    few: Path
    some: Path


def gather(job: Job, limit: int | None, folder: Path) -> Rows:
    """Write the job's good rows, at most `limit`, into `folder`. Raises InputError if there are none."""
    texts = list(good_texts(job, limit))
    if not texts:
        raise InputError(f"{', '.join(job.inputs)} holds no row to encode", "see `embedcli inspect`")
    every, few, some = folder / "rows.jsonl", folder / "few.jsonl", folder / "some.jsonl"
    write(every, texts)
    write(few, texts[:FEW])
    write(some, [texts[row] for row in spread(len(texts), CHOOSING)])
    return Rows(texts, every, few, some)


def good_texts(job: Job, limit: int | None) -> Iterator[str]:
    """The texts that embedcli would encode, in order, until there are `limit`."""
    from embedcli import readers

    plan = readers.plan(job)
    left = limit
    for chunk in readers.read(job, plan, plan.pieces):
        texts = chunk.texts[:left]
        yield from texts
        if left is not None:
            left -= len(texts)
            if left <= 0:
                return


def write(path: Path, texts: Sequence[str], first: int = 0) -> None:
    """JSONL with the row number, from `first`, as `id`, and `text`."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts, first))
