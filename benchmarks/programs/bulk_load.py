"""Load the ids and vectors of a Parquet file into a new table by the fastest path of a database, written by hand.

    python bulk_load.py ROWS.parquet ADDRESS TABLE

No resuming, no checks: what `embedcli load` is compared with. ADDRESS is one of `embedcli load`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 5_000


def batches(path: str) -> Iterator[pa.RecordBatch]:
    yield from pq.ParquetFile(path).iter_batches(BATCH_ROWS, columns=["id", "embedding"])


def vectors_of(batch: pa.RecordBatch) -> Any:
    column = batch.column(1)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def load_postgresql(path: str, address: str, table: str) -> None:
    """One binary COPY in one transaction, with the messages put together by numpy."""
    import psycopg

    dim = pq.read_schema(path).field("embedding").type.list_size
    size, head = struct.pack("!i", 4 + 4 * dim), struct.pack("!hh", dim, 0)
    with psycopg.connect(address) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TABLE {table} (id text PRIMARY KEY, embedding vector({dim}) NOT NULL)")
        with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT binary)") as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0))
            for batch in batches(path):
                rows = np.ascontiguousarray(vectors_of(batch).astype(">f4")).view(np.uint8)
                parts = []
                for id, row in zip(batch.column(0).cast(pa.binary()).to_pylist(), rows, strict=True):
                    parts += [struct.pack("!hi", 2, len(id)), id, size, head, memoryview(row)]
                copy.write(b"".join(parts))
            copy.write(struct.pack("!h", -1))


def load_lancedb(path: str, address: str, table: str) -> None:
    """One table from one reader."""
    import lancedb

    schema = pq.read_schema(path)
    fields = pa.schema([schema.field("id"), schema.field("embedding")])
    reader = pa.RecordBatchReader.from_batches(fields, batches(path))
    lancedb.connect(address.removeprefix("lancedb:")).create_table(table, data=reader)


def load_duckdb(path: str, address: str, table: str) -> None:
    """DuckDB reads the file itself."""
    import duckdb

    dim = pq.read_schema(path).field("embedding").type.list_size
    with duckdb.connect(address.removeprefix("duckdb:")) as connection:
        connection.execute(f"CREATE TABLE {table} (id VARCHAR PRIMARY KEY, embedding FLOAT[{dim}])")
        connection.execute(f"INSERT INTO {table} SELECT id, embedding::FLOAT[{dim}] FROM '{path}'")


def load_sqlite(path: str, address: str, table: str) -> None:
    """One transaction into a table of sqlite-vec."""
    import apsw
    import sqlite_vec

    dim = pq.read_schema(path).field("embedding").type.list_size
    connection = apsw.Connection(address.removeprefix("sqlite:"))
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    connection.execute(
        f"CREATE VIRTUAL TABLE {table} USING vec0(id TEXT PRIMARY KEY, embedding float[{dim}] distance_metric=cosine)"
    )
    with connection:
        for batch in batches(path):
            rows = zip(batch.column(0).to_pylist(), (row.tobytes() for row in vectors_of(batch)), strict=True)
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)


if __name__ == "__main__":
    file, address, table = sys.argv[1:]
    globals()[f"load_{address.partition(':')[0]}"](file, address, table)
