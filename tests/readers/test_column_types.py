"""Columns whose types differ between Parquet files, or that hold nothing: told at once, or rejected row by row."""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedcli.readers.arrow_types import keeps_values, unify_types
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
        (pa.array([1]), pa.array([Decimal("0.10")])),
        (pa.array([Decimal("0.10")]), pa.array([0.5])),
    ],
    ids=[
        "int64, double",
        "uint64, int64",
        "timestamps",
        "durations",
        "int64, string",
        "int64, decimal",
        "decimal, double",
    ],
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


def extremes() -> dict[str, pa.Array]:
    """The values of many types that are most likely to change in another type."""
    found = {}
    for bits in (8, 16, 32, 64):
        found[f"int{bits}"] = pa.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1], f"int{bits}")
        found[f"uint{bits}"] = pa.array([0, 2**bits - 1], f"uint{bits}")
    found |= {"float32": pa.array([3e38, 0.1], pa.float32()), "float64": pa.array([1e300, 0.1])}
    found |= {f"decimal{n}": pa.array([Decimal("1234567.89")], pa.decimal128(n, 2)) for n in (9, 25, 38)}
    found |= {"string": pa.array(["x"]), "large": pa.array(["x"], pa.large_string()), "bytes": pa.array([b"\xff"])}
    for unit in ("s", "ms", "us", "ns"):
        found[f"timestamp {unit}"] = pa.array([2**62]).cast(pa.timestamp(unit))
        found[f"duration {unit}"] = pa.array([2**62]).cast(pa.duration(unit))
    found["bool"] = pa.array([True])
    for name, values in list(found.items()):
        found[f"list of {name}"] = pa.ListArray.from_arrays([0, len(values)], values)
        found[f"struct of {name}"] = pa.StructArray.from_arrays([values], names=["field"])
    return found


def test_a_unified_type_holds_the_extremes_of_every_type_that_is_said_to_fit() -> None:
    fitting = 0
    for (one, values), (other, others) in permutations(extremes().items(), 2):
        unified = unify_types([values.type, others.type])
        if unified is None or values.type == others.type:
            continue
        try:
            kept = values.cast(unified).cast(values.type).equals(values)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            kept = False
        if keeps_values(values.type, unified):
            fitting += 1
            assert kept, (one, other)
    assert fitting > 100


@pytest.mark.parametrize(
    ("rows", "column", "kept"),
    [
        ([1, 2], pa.array([3], pa.int32()), pa.int64()),
        ([1, 2], pa.array([0.5], pa.float32()), pa.float64()),
        ([None], pa.array([3], pa.int16()), pa.int64()),
        ([None], pa.array(["x"], pa.large_string()), pa.large_string()),
        (["x"], pa.array(["y"]).dictionary_encode(), pa.string()),
        ([0.5], pa.array([3], pa.int64()), None),
        ([None], pa.array([0], pa.date32()), None),
        (["1"], pa.array([1]), None),
    ],
    ids=str,
)
def test_a_kept_column_of_jsonl_and_parquet(
    tmp_path: Path, rows: list[Any], column: pa.Array, kept: pa.DataType | None
) -> None:
    a, b = tmp_path / "a.jsonl", write(tmp_path, "b.parquet", text=pa.array(["word2"] * len(column)), n=column)
    a.write_text("".join(json.dumps({"text": "word1", "n": value}) + "\n" for value in rows))
    ended = encode(tmp_path, a, b, "--keep", "n", "--offline")
    if kept is None:
        assert ended.code == 2
        assert f"in {a} and {column.type} in {b}" in ended.err
        return
    assert ended.code == 0, ended.err
    result = pq.read_table(tmp_path / "out.parquet")["n"]
    assert result.type == kept
    assert result.to_pylist() == [*rows, *column.to_pylist()]


def test_a_kept_column_that_one_parquet_file_lacks_is_refused_with_its_columns(tmp_path: Path) -> None:
    a = write(tmp_path, "a.parquet", text=pa.array(["word1"]), n=pa.array([1]))
    b = write(tmp_path, "b.parquet", m=pa.array([1]), text=pa.array(["word2"]))
    ended = encode(tmp_path, a, b, "--keep", "n", "--offline")
    assert ended.code == 2
    assert f"{b}: --keep: there is no column 'n'; its columns are 'm', 'text'" in ended.err


def test_columns_may_be_in_another_order_in_every_file(tmp_path: Path) -> None:
    a = write(tmp_path, "a.parquet", id=pa.array([1], pa.int32()), text=pa.array(["word1"]), n=pa.array(["x"]))
    b = write(tmp_path, "b.parquet", n=pa.array(["y"]), text=pa.array(["word2"], pa.large_string()), id=pa.array([2]))
    assert encode(tmp_path, a, b, "--keep", "n").code == 0
    result = pq.read_table(tmp_path / "out.parquet")
    assert (result["id"].to_pylist(), result["n"].to_pylist()) == ([1, 2], ["x", "y"])
