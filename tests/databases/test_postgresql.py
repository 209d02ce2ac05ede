"""What only PostgreSQL has: schemas, permissions, types of its own, connections that are lost, an index."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from backends import PostgreSQLBackend
from embedcli.cli import app
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.databases import connect, parse_target
from embedcli.databases.record import parse_record
from embedcli.databases.sending import repeat_while_busy
from sample_outputs import make_output, sparse_vectors, unit_vectors

DIM = 16


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[PostgreSQLBackend]:
    missing = PostgreSQLBackend.missing_packages()
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    made = PostgreSQLBackend(tmp_path)
    yield made
    made.close()


def load(output: Path, backend: PostgreSQLBackend, table: str, *options: str) -> str:
    result = CliRunner().invoke(app, ["load", str(output), backend.address, "--table", table, *options])
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    return result.stderr


def names(count: int) -> list[str]:
    return [f"r{i}" for i in range(count)]


def test_columns_have_the_types_of_their_values(tmp_path: Path, backend: PostgreSQLBackend) -> None:
    numbers = ["0", "-1", "10000", "0.0001", "-12345678.9", "99999999.9999", "100.1", "0.01", "1000000"]
    count = len(numbers)
    kept: dict[str, Any] = {
        "price": pa.array([decimal.Decimal(text) for text in numbers], pa.decimal128(12, 4)),
        "day": [datetime.date(1999, 12, 31)] * count,
        "moment": [datetime.datetime(1969, 12, 31, 23, 59, 59, 1, datetime.UTC)] * count,
        "clock": [datetime.time(23, 59, 59, 999_999)] * count,
        "tags": [["a", 'b"']] * count,
        "small": pa.array(range(-4, count - 4), pa.int8()),
    }
    output = make_output(tmp_path / "out.parquet", unit_vectors(count, DIM), ids=names(count), kept=kept)
    load(output, backend, "docs")
    types = dict(backend.run("SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'docs'"))
    assert types == {
        "id": "text", "embedding": "USER-DEFINED", "price": "numeric", "day": "date", "row_digest": "bytea",
        "moment": "timestamp with time zone", "clock": "time without time zone", "tags": "jsonb", "small": "smallint",
    }  # fmt: skip
    assert [str(price) for (price,) in backend.run("SELECT price FROM docs ORDER BY id")] == [
        str(decimal.Decimal(text).quantize(decimal.Decimal("0.0001"))) for text in numbers
    ]
    assert backend.run("SELECT day, moment, clock, tags, small FROM docs WHERE id = 'r0'") == [
        (kept["day"][0], kept["moment"][0], kept["clock"][0], ["a", 'b"'], -4)
    ]


def test_a_table_may_be_in_a_schema(tmp_path: Path, backend: PostgreSQLBackend) -> None:
    backend.run("CREATE SCHEMA other")
    output = make_output(tmp_path / "out.parquet", unit_vectors(9, DIM), ids=names(9))
    load(output, backend, "other.docs")
    other = make_output(tmp_path / "out.parquet", unit_vectors(5, DIM, seed=1), ids=names(5))
    load(other, backend, "other.docs", "--swap")
    assert backend.run("SELECT count(*) FROM other.docs") == [(5,)]
    assert backend.run("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'docs%'") == [(1,)]


def test_a_lost_connection_is_opened_again(tmp_path: Path, backend: PostgreSQLBackend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(9, DIM), ids=names(9))
    load(output, backend, "docs")
    counts: list[int] = []
    with connect(parse_target(backend.address, "docs")) as database:
        backend.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'embedcli'")
        repeat_while_busy(lambda: counts.append(database.count_rows("docs")))
    assert counts == [9]


def test_an_index_is_used_and_built_once(tmp_path: Path, backend: PostgreSQLBackend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(300, DIM), ids=names(300))
    assert "hnsw (m = 16" in load(output, backend, "docs", "--index")
    assert "was there already" in load(output, backend, "docs", "--index")
    indexes = "SELECT indexdef FROM pg_indexes WHERE tablename = 'docs' AND indexdef LIKE '%%hnsw%%'"
    assert ["vector_cosine_ops" in definition for (definition,) in backend.run(indexes)] == [True]
    other = make_output(tmp_path / "out.parquet", unit_vectors(300, DIM, seed=1), ids=names(300))
    load(other, backend, "docs", "--index", "--swap")
    load(other, backend, "docs", "--index")
    assert len(backend.run(indexes)) == 1


def test_too_many_dimensions_for_an_index(tmp_path: Path, backend: PostgreSQLBackend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(2, 2001), ids=names(2))
    result = CliRunner().invoke(app, ["load", str(output), backend.address, "--table", "docs", "--index"])
    assert result.exit_code == 2
    assert "at most 2,000 dimensions" in result.stderr


def test_the_nearest_sparse_vectors_are_found(tmp_path: Path, backend: PostgreSQLBackend) -> None:
    vectors = sparse_vectors(50, 300, terms=30)
    load(make_output(tmp_path / "out.parquet", vectors, ids=names(50)), backend, "docs", "--index")
    scores = vectors.to_dense() @ vectors[7:8].to_dense()[0]
    with connect(parse_target(backend.address, "docs"), read_only=True) as database:
        layout = parse_record(database.read_record("docs") or {}, "docs").layout
        query = vectors[7:8]
        assert isinstance(query, SparseVectors)
        found = database.find_nearest("docs", layout, query, 5, ["id"])
    assert found.column("id").to_pylist() == [f"r{i}" for i in np.argsort(-scores)[:5]]


def test_a_user_who_may_not_create_the_extension_is_told(tmp_path: Path, backend: PostgreSQLBackend) -> None:
    backend.run("CREATE ROLE plain LOGIN")
    output = make_output(tmp_path / "out.parquet", unit_vectors(2, DIM), ids=names(2))
    address = backend.address.replace("postgres:@", "plain@")
    result = CliRunner().invoke(app, ["load", str(output), address, "--table", "docs"])
    backend.run("DROP ROLE plain")
    assert result.exit_code == 2
    assert "the extension pgvector is missing" in result.stderr
    assert "CREATE EXTENSION vector" in result.stderr


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(2, DIM), ids=names(2))
    result = CliRunner().invoke(app, ["load", str(output), f"postgresql:///db?host={tmp_path}"])
    assert result.exit_code == 1
    assert "~/.pgpass" in result.stderr
