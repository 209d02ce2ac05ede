"""The rows of a comparison: read once, as embedcli reads them, and written for every contender as plain JSONL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedcli.benchmark.statistics import pick_evenly
from embedcli.core.errors import InputError
from embedcli.core.job import Job

if TYPE_CHECKING:
    from collections.abc import Iterator

# A job that is dominated by its start.
FEW_ROWS = 10
# Rows to choose a batch size on: enough to fill several batches, few enough to take seconds.
SAMPLE_ROWS = 384


@dataclass(frozen=True)
class BenchDataset:
    """The rows of a comparison.

    Attributes:
        texts: The texts by row number.
        all_rows: A JSONL file of all rows.
        first_rows: A JSONL file of the first FEW_ROWS.
        sample_rows: A JSONL file of at most SAMPLE_ROWS, evenly spaced.
    """

    texts: Sequence[str]
    all_rows: Path
    first_rows: Path
    sample_rows: Path


def write_dataset(job: Job, limit: int | None, folder: Path) -> BenchDataset:
    """Write the job's rows to `folder`, without rejects and at most `limit`.

    Raises:
        InputError: There are no rows.
    """
    texts = list(read_texts(job, limit))
    if not texts:
        raise InputError(f"{', '.join(job.inputs)}: no rows to encode", "see `embedcli inspect`")
    dataset = BenchDataset(texts, folder / "rows.jsonl", folder / "few.jsonl", folder / "some.jsonl")
    write_jsonl(dataset.all_rows, texts)
    write_jsonl(dataset.first_rows, texts[:FEW_ROWS])
    write_jsonl(dataset.sample_rows, [texts[row] for row in pick_evenly(len(texts), SAMPLE_ROWS)])
    return dataset


def read_texts(job: Job, limit: int | None) -> Iterator[str]:
    """Yield the texts that embedcli would encode, in order and at most `limit`."""
    from embedcli import readers

    plan = readers.plan_inputs(job)
    remaining = limit
    for chunk in readers.read_chunks(job, plan, plan.splits):
        texts = chunk.texts[:remaining]
        yield from texts
        if remaining is not None:
            remaining -= len(texts)
            if remaining <= 0:
                return


def write_jsonl(path: Path, texts: Sequence[str], first_id: int = 0) -> None:
    """Write rows with the columns `id`, a row number counted from `first_id`, and `text`."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts, first_id))
