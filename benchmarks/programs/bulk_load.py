"""Load the ids and vectors of a Parquet file into a new table by the fastest path of a database, written by hand.

    python bulk_load.py ROWS.parquet ADDRESS TABLE

No resuming, no checks: what `embedcli load` is compared with. ADDRESS is one of `embedcli load`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 5_000


def batches(path: str, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    yield from pq.ParquetFile(path).iter_batches(rows, columns=["id", "embedding"])


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


def load_llm(path: str, address: str, table: str) -> None:
    """One transaction into a collection in the tables of llm, in a file of its own."""
    import sqlite3

    file = Path(address.removeprefix("llm:") + ".by-hand")
    file.unlink(missing_ok=True)
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("CREATE TABLE IF NOT EXISTS collections (id INTEGER PRIMARY KEY, name TEXT, model TEXT)")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS embeddings (collection_id INTEGER, id TEXT, embedding BLOB, content TEXT, "
        "content_blob BLOB, content_hash BLOB, metadata TEXT, updated INTEGER, PRIMARY KEY (collection_id, id))"
    )
    connection.execute("CREATE INDEX IF NOT EXISTS idx_embeddings_content_hash ON embeddings (content_hash)")
    number = connection.execute("INSERT INTO collections (name, model) VALUES (?, 'none')", [table]).lastrowid
    for batch in batches(path):
        rows = zip(batch.column(0).to_pylist(), (row.tobytes() for row in vectors_of(batch)), strict=True)
        statement = f"INSERT INTO embeddings (collection_id, id, embedding) VALUES ({number}, ?, ?)"
        connection.executemany(statement, rows)
    connection.execute("COMMIT")


def load_chroma(path: str, address: str, table: str) -> None:
    """The largest batches that the client takes, as one array each."""
    import chromadb

    if "://" in address:
        host, port = urlsplit(address).hostname, urlsplit(address).port
        client: Any = chromadb.HttpClient(host=str(host), port=port or 8000)
    else:
        client = chromadb.PersistentClient(address.removeprefix("chroma:"))
    collection = client.create_collection(table, embedding_function=None, configuration={"hnsw": {"space": "ip"}})
    for batch in batches(path, client.get_max_batch_size()):
        collection.add(ids=batch.column(0).to_pylist(), embeddings=vectors_of(batch))
    client.close()


def load_milvus(path: str, address: str, table: str) -> None:
    """Inserts of whole rows, as large as a message may be."""
    from pymilvus import DataType, MilvusClient

    dim = pq.read_schema(path).field("embedding").type.list_size
    url = address.replace("milvus", "http", 1) if "://" in address else address.removeprefix("milvus:")
    client = MilvusClient(url)
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
    index = MilvusClient.prepare_index_params()
    index.add_index("embedding", index_type="AUTOINDEX", metric_type="COSINE")
    client.create_collection(table, schema=schema, index_params=index)
    for batch in batches(path):
        rows = zip(batch.column(0).to_pylist(), vectors_of(batch), strict=True)
        client.insert(table, [{"id": id, "embedding": vector} for id, vector in rows])
    client.flush(table)
    client.close()


def load_qdrant_edge(path: str, address: str, table: str) -> None:
    """One shard with numbers as ids, flushed once."""
    import shutil

    import qdrant_edge

    dim = pq.read_schema(path).field("embedding").type.list_size
    folder = Path(address.removeprefix("qdrant-edge:")) / table
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parameters = qdrant_edge.EdgeVectorParams(dim, qdrant_edge.Distance.Dot)
    shard = qdrant_edge.EdgeShard.create(str(folder), qdrant_edge.EdgeConfig(vectors=parameters))
    number = 0
    for batch in batches(path):
        points = [
            qdrant_edge.Point(number + row, vector, {"id": id})
            for row, (id, vector) in enumerate(zip(batch.column(0).to_pylist(), vectors_of(batch), strict=True))
        ]
        number += len(points)
        shard.update(qdrant_edge.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.close()


def load_redis(path: str, address: str, table: str) -> None:
    """Pipelines without transactions."""
    import redis

    parts = urlsplit(address)
    client: Any = redis.Redis(host=str(parts.hostname), port=parts.port or 6379)
    for batch in batches(path, 1_000):
        pipeline = client.pipeline(transaction=False)
        for id, vector in zip(batch.column(0).to_pylist(), vectors_of(batch), strict=True):
            pipeline.execute_command("VADD", table, "FP32", vector.tobytes(), id, "NOQUANT")
        pipeline.execute()


if __name__ == "__main__":
    file, address, table = sys.argv[1:]
    globals()[f"load_{address.partition(':')[0].replace('-', '_')}"](file, address, table)
