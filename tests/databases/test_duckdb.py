"""DuckDB alone: who keeps others away from the file, and types of its own."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from backends import Backend
from loads import check, load, loaded, make_backend
from sample_outputs import make_output, unit_vectors

# A program that opens the file until its stdin ends.
HOLDER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Backend]:
    yield from make_backend("duckdb", tmp_path)


def test_a_file_that_is_open_elsewhere_is_named(tmp_path: Path, database: Backend) -> None:
    output = loaded(make_output(tmp_path / "out.parquet", unit_vectors(6, 8)), database)
    path = database.address.partition(":")[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        for done in (load(output, database), check(output, database)):
            assert done.code == 1
            assert f"error: {path}: another program has opened it, and only one at a time can\n" in done.err
            assert "hint: run the same command again when that program has closed it" in done.err
            assert "IO Error" not in done.err
        process.communicate("")
    assert load(output, database).code == 0


def test_a_row_whose_map_has_a_key_twice_is_rejected_and_the_others_are_loaded(
    tmp_path: Path, database: Backend
) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(4, 8), ids=["a", "b", "c", "d"], kept={"m": ["x"] * 4})
    maps = pa.array([[("x", 1)], [("x", 1), ("y", 2), ("x", 3)], None, []], pa.map_(pa.string(), pa.int64()))
    table = pq.read_table(output)
    pq.write_table(table.set_column(table.column_names.index("m"), "m", maps), output)
    done = load(output, database)
    assert done.code == 3
    (rejects,) = tmp_path.glob("out.parquet.load-rejects-duckdb-*.jsonl")
    (reject,) = map(json.loads, rejects.read_text("utf-8").splitlines())
    assert (reject["id"], reject["reason"]) == ("b", "map has a key twice, which the database cannot store")
    assert "3 rows" in check(output, database).out


@pytest.mark.parametrize("content", ["SQLite", "text"])
def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "v.db"
    if content == "SQLite":
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE a (i INTEGER)")
    else:
        path.write_text("no database at all\n" * 1000)
    before = path.read_bytes()
    done = jobs.run("load", make_output(tmp_path / "out.parquet", unit_vectors(3, 8)), f"duckdb:{path}")
    assert done.code == 2
    assert "v.db: is not a DuckDB database" in done.err
    assert path.read_bytes() == before
