"""Kept columns of rare types: each database has the best type that it knows for them, or text by a standard."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backends import BACKENDS, Backend
from embedcli.databases.columns import convert_column, format_duration
from embedcli.databases.target import JSON_FIELD
from loads import check, load, loaded, make_backend
from sample_outputs import make_output, unit_vectors

NAMES = ["a", "b", "c", "d"]
HOUR = 3_600_000_000
COLUMNS = {
    "took": pa.array([26 * HOUR + 1, -HOUR, None, 0], pa.duration("us")),
    "seconds": pa.array([90_000, -1, None, 0], pa.duration("s")),
    "nanos": pa.array([1, -1_500_000_000, None, 0], pa.duration("ns")),
    "large": pa.array([2**64 - 1, 0, None, 2**63], pa.uint64()),
    "counts": pa.array([[("x", 1), ("y", None)], [], None, [("é", -1)]], pa.map_(pa.string(), pa.int64())),
    "numbers": pa.array([[(1, ["p"])], [], None, [(-2, None)]], pa.map_(pa.int32(), pa.list_(pa.string()))),
    "ratio": pa.array([float("nan"), float("inf"), None, 0.5], pa.float64()),
    "half": pa.array([float("nan"), -float("inf"), None, 0.5], pa.float32()),
}


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    yield from make_backend(request.param, tmp_path)


def write_output(path: Path, columns: dict[str, pa.Array]) -> Path:
    """An output with kept columns of any Arrow type."""
    kept = {name: ["text"] * 4 for name in columns}
    table = pq.read_table(make_output(path, unit_vectors(4, 16), ids=NAMES, kept=kept))
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("name", COLUMNS)
def test_values_come_back(tmp_path: Path, backend: Backend, name: str) -> None:
    output = loaded(write_output(tmp_path / "out.parquet", {name: COLUMNS[name]}), backend)
    done = check(output, backend)
    assert (done.code, done.err) == (0, ""), done.out
    assert "4 rows fetched, 0 with other values" in done.out
    assert load(output, backend).counts == (0, 4)


@pytest.mark.parametrize(
    ("scheme", "types"),
    [
        ("postgresql", ("interval", "numeric", "jsonb", "double precision")),
        ("duckdb", ("INTERVAL", "UBIGINT", "MAP(VARCHAR, BIGINT)", "DOUBLE")),
    ],
)
def test_sql_databases_have_types_of_their_own(tmp_path: Path, scheme: str, types: tuple[str, ...]) -> None:
    columns = {name: COLUMNS[name] for name in ("took", "large", "counts", "ratio")}
    output = write_output(tmp_path / "out.parquet", columns)
    day = datetime.timedelta(hours=26, microseconds=1)
    for database in make_backend(scheme, tmp_path):
        loaded(output, database)
        found: Any = database
        rows = found.run("SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'docs'")
        assert tuple(dict(rows)[name] for name in columns) == types
        assert found.run("SELECT took FROM docs WHERE id = 'a'") == [(day,)]


def test_values_out_of_range_are_refused_by_column(tmp_path: Path) -> None:
    output = write_output(tmp_path / "out.parquet", {"took": pa.array([2**62, 0, 0, 0], pa.duration("s"))})
    for database in make_backend("duckdb", tmp_path):
        done = load(output, database)
        assert done.code == 2
        assert "column 'took' has a value that the type duration[us] of the database does not hold" in done.err


@pytest.mark.parametrize(
    ("count", "unit", "text"),
    [
        (0, "s", "PT0S"), (93_784_500, "ms", "PT93784.5S"), (-1, "ns", "PT-0.000000001S"), (-90, "s", "PT-90S"),
        (10_000_000, "us", "PT10S"),
    ],
)  # fmt: skip
def test_durations_are_seconds_by_iso_8601(count: int, unit: str, text: str) -> None:
    assert format_duration(count, unit) == text


def test_maps_are_json_objects() -> None:
    field = pa.field("m", pa.string(), metadata=JSON_FIELD)
    inner = pa.map_(pa.string(), pa.duration("us"))
    values = [[{"m": [("a", 1_500_000)]}, {"m": None}], None]
    nested = pa.array(values, pa.list_(pa.struct([("m", inner)])))
    assert convert_column(nested, field).to_pylist() == ['[{"m":{"a":"PT1.5S"}},{"m":null}]', None]
    repeated = pa.array([[("a", 1), ("a", 2)], [("b", 3)]], pa.map_(pa.string(), pa.int64()))
    assert convert_column(repeated, field).to_pylist() == ['[["a",1],["a",2]]', '{"b":3}']
