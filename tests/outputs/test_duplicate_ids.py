"""Ids that appear more than once are counted and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import jobs
from embedcli.outputs.duplicate_ids import hash_ids

# "b" is there three times, "d" twice.
IDS: list[Any] = ["a", "b", "c", "b", "d", "b", "d"]


def encode(folder: Path, ids: list[Any], name: str, *more: object) -> tuple[int | None, str]:
    rows = [{"id": each, "text": f"word{number} word2"} for number, each in enumerate(ids, 1)]
    source = jobs.write_jsonl(folder / "in.jsonl", rows)
    report = folder / "run.json"
    done = jobs.run("encode", source, f"{folder}/{name}", "-m", jobs.word_model(folder), "--report", report, *more)
    assert done.code == 0, done.err
    return json.loads(report.read_text())["duplicate_ids"], done.err


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "out.arrow", "out/"])
@pytest.mark.parametrize("chunk_rows", [2, 100])
def test_each_repeated_id_counts_once(tmp_path: Path, name: str, chunk_rows: int) -> None:
    count, said = encode(tmp_path, IDS, name, "--chunk-rows", chunk_rows, "--part-size", "1KB")
    assert count == 2
    assert "2 ids appear more than once in the output; embedcli inspect shows examples" in said


def test_unique_ids_are_not_mentioned(tmp_path: Path) -> None:
    count, said = encode(tmp_path, [-1, -2, 3], "out.parquet")
    assert count == 0
    assert "more than once" not in said


def test_windows_of_one_text_are_no_duplicates(tmp_path: Path) -> None:
    count, _ = encode(tmp_path, IDS, "out.parquet", "--overflow", "split", "--max-seq-length", 1)
    assert count == 2


def test_formats_without_columns_and_generated_ids_are_not_counted(tmp_path: Path) -> None:
    assert encode(tmp_path, IDS, "out.jsonl")[0] is None
    assert encode(tmp_path, IDS, "b.parquet", "--id-column", "")[0] is None


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([-1, -2, 0, 1]),
        pa.array([-1.0, -2.0, 0.5, 1.0]),
        pa.array([2**63, 2**63 + 1, 0, 1], pa.uint64()),
        pa.array(["-1", "-2", "", "a"]),
    ],
)
def test_different_ids_have_different_hashes(ids: pa.Array) -> None:
    assert len(np.unique(hash_ids(ids))) == 4
