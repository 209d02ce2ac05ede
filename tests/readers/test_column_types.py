"""Columns whose types differ between Parquet files, or that hold nothing: told at once, or rejected row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import Ended, run, word_model


def write(folder: Path, name: str, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), folder / name)
    return folder / name


def encode(folder: Path, *arguments: Any) -> Ended:
    word_model(folder)
    return run("encode", *arguments, folder / "out.parquet", "--model", folder / "words.txt")


def rejects(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.parquet.rejects.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("options", [(), ("--text-column", "text")])
def test_a_file_without_any_text_is_rejected_row_by_row(tmp_path: Path, options: tuple[str, ...]) -> None:
    good = write(tmp_path, "a.parquet", id=pa.array([1, 2]), text=pa.array(["word1", "word2"]))
    empty = write(tmp_path, "b.parquet", id=pa.array([3, 4]), text=pa.nulls(2))
    for inputs in ((good, empty), (empty, good)):
        ended = encode(tmp_path, *inputs, "--overwrite", *options)
        assert ended.code == 3, ended.err
        assert sorted(pq.read_table(tmp_path / "out.parquet")["id"].to_pylist()) == [1, 2]
        assert [(reject["id"], reject["reason"]) for reject in rejects(tmp_path)] == [
            (3, "text is missing or null"),
            (4, "text is missing or null"),
        ]


def test_a_text_column_of_nulls_alone_is_rejected_too(tmp_path: Path) -> None:
    ended = encode(tmp_path, write(tmp_path, "a.parquet", id=pa.array([1, 2]), text=pa.nulls(2)))
    assert ended.code == 3, ended.err
    assert len(rejects(tmp_path)) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([2**53 + 1]), pa.array([0.5])),
        (pa.array([1], pa.uint64()), pa.array([-1])),
        (pa.array([0], pa.timestamp("us")), pa.array([0], pa.timestamp("ns"))),
        (pa.array([0], pa.duration("s")), pa.array([0], pa.duration("ns"))),
        (pa.array([1]), pa.array(["x"])),
    ],
    ids=["int64 and double", "uint64 and int64", "timestamps", "durations", "int64 and string"],
)
@pytest.mark.parametrize("option", ["--keep", "--id-column"])
def test_types_that_do_not_fit_are_told_first(tmp_path: Path, option: str, one: pa.Array, other: pa.Array) -> None:
    a = write(tmp_path, "a.parquet", text=pa.array(["word1"]), n=one)
    b = write(tmp_path, "b.parquet", text=pa.array(["word2"]), n=other)
    ended = encode(tmp_path, a, b, option, "n", "--offline")
    assert ended.code == 2
    assert "column 'n' is" in ended.err
    assert str(one.type) in ended.err
    assert str(other.type) in ended.err
    assert "embedding started" not in ended.err


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (pa.array([7], pa.int32()), pa.array([0.5]), pa.float64()),
        (pa.array([7], pa.int8()), pa.array([8], pa.uint8()), pa.int16()),
        (pa.array([7], pa.int32()), pa.array([8]), pa.int64()),
        (pa.nulls(1), pa.array([8]), pa.int64()),
    ],
)
def test_types_that_hold_all_values_are_unified(tmp_path: Path, one: Any, other: Any, expected: pa.DataType) -> None:
    a = write(tmp_path, "a.parquet", text=pa.array(["word1"]), n=one)
    b = write(tmp_path, "b.parquet", text=pa.array(["word2"]), n=other)
    assert encode(tmp_path, a, b, "--keep", "n").code == 0
    kept = pq.read_table(tmp_path / "out.parquet")["n"]
    assert kept.type == expected
    assert kept.to_pylist() == [one[0].as_py(), other[0].as_py()]
