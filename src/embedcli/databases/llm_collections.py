"""The collections of llm, Simon Willison's command line tool for language models, in its SQLite file.

A table is a collection: a row of `collections`, and the rows of `embeddings` with its number. Kept columns and the
digest are the JSON object `metadata` of a row; a kept column `text` is its `content`. `llm similar` reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.analysis.similarities import normalize, score_rows
from embedcli.core.constants import HOSTED_PREFIX
from embedcli.core.errors import OutputError, UsageError, first_line
from embedcli.databases.columns import to_json_text
from embedcli.databases.locks import LOCK_ENDING, lock_table
from embedcli.databases.payloads import (
    dense_column,
    is_kept_text,
    join_vectors,
    make_keys,
    make_payloads,
    payloads_to_table,
    stored_payload_type,
    view_dense_rows,
)
from embedcli.databases.target import VECTOR_COLUMN, DatabaseTarget, TableLayout, TargetBusyError

if TYPE_CHECKING:
    from embedcli.core.types import Precision
    from embedcli.databases.address import TargetAddress
    from embedcli.outputs.vector_columns import StoredVectors

CONTENT_COLUMN = "text"
RECORDS_TABLE = "embedcli_collections"
BUSY_TIMEOUT_SECONDS = 10
# Pages of a transaction in memory: fewer are read and written again.
CACHE_KIBIBYTES = 32 << 10
READ_ROWS = 20_000
# Keys per query: SQLite allows 32,766 parameters.
KEYS_PER_QUERY = 10_000
MIGRATION_SET = "llm.embeddings"
# What llm 0.36 creates, and the names under which it records that it has. It applies those that it does not find.
MIGRATIONS = (
    "m001_create_tables", "m002_foreign_key", "m003_add_updated", "m004_store_content_hash", "m005_add_content_blob",
)  # fmt: skip
SCHEMA = """
CREATE TABLE IF NOT EXISTS "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY, "migration_set" TEXT, "name" TEXT, "applied_at" TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
CREATE TABLE "collections" ("id" INTEGER PRIMARY KEY, "name" TEXT, "model" TEXT);
CREATE UNIQUE INDEX "idx_collections_name" ON "collections" ("name");
CREATE TABLE "embeddings" (
   "collection_id" INTEGER REFERENCES "collections"("id"), "id" TEXT, "embedding" BLOB, "content" TEXT,
   "content_blob" BLOB, "content_hash" BLOB, "metadata" TEXT, "updated" INTEGER, PRIMARY KEY ("collection_id", "id")
);
CREATE INDEX "idx_embeddings_content_hash" ON "embeddings" ("content_hash");
"""
NUMBER = "(SELECT id FROM collections WHERE name = ?)"


class LLMTarget(DatabaseTarget):
    """A SQLite file of llm. Searches compare the query with all vectors, exactly, as llm does."""

    title: ClassVar[str] = "llm"
    extra: ClassVar[str] = ""
    precisions: ClassVar[Mapping[str, Precision]] = {"float32": "float32", "float16": "float32"}
    # Each batch is a transaction, which waits for the disk.
    batch_bytes: ClassVar[int] = 32 << 20

    def __init__(self, address: TargetAddress, *, read_only: bool = False) -> None:
        self._path = address.location
        if read_only and not os.path.exists(self._path):
            raise UsageError(
                f"{storage.format_location(self._path)}: there is no such file", "create it with `embedcli load`"
            )
        with self._translate_errors():
            uri = f"{Path(self._path).absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._db = sqlite3.connect(
                uri, uri=True, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._query(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
        self._release: Callable[[], None] = lambda: None
        try:
            with self._translate_errors():
                self._check_tables()
            if not read_only:
                self._release = lock_table(
                    f"{self._path}{LOCK_ENDING}-", address.table, storage.format_location(self._path)
                )
        except BaseException:
            self._db.close()
            raise

    def _check_tables(self) -> None:
        """Raise UsageError unless the tables are those of a current llm, or none of them is there."""
        place = storage.format_location(self._path)
        found = []
        if self._has_table("_sqlite_migrations"):
            found = self._query("SELECT name FROM _sqlite_migrations WHERE migration_set = ?", MIGRATION_SET)
        missing = set(MIGRATIONS) - {name for (name,) in found}
        if found and missing:
            raise UsageError(
                f"{place}: was written by an older version of llm",
                f"run llm collections list -d {place} with a new version",
            )
        if missing and (self._has_table("embeddings") or self._has_table("collections")):
            raise UsageError(f"{place}: has tables of llm's names that are not llm's", "name another file")

    def close(self) -> None:
        self._db.close()
        self._release()

    def stored_type(self, kind: pa.DataType) -> pa.DataType | None:
        return stored_payload_type(kind)

    # Tables

    def read_record(self, table: str) -> dict[str, Any] | None:
        with self._translate_errors():
            if not self._has_table("collections") or not self._query("SELECT 1 FROM collections WHERE name = ?", table):
                return None
            has_records = self._has_table(RECORDS_TABLE)
            found = self._query(f"SELECT record FROM {RECORDS_TABLE} WHERE name = ?", table) if has_records else []
        return json.loads(found[0][0]) if found else {}

    def write_record(self, table: str, record: Mapping[str, Any]) -> None:
        with self._transaction():
            self._write_record(table, record)

    def _write_record(self, table: str, record: Mapping[str, Any]) -> None:
        self._query(f"CREATE TABLE IF NOT EXISTS {RECORDS_TABLE} (name TEXT PRIMARY KEY, record TEXT NOT NULL)")
        self._query(f"INSERT OR REPLACE INTO {RECORDS_TABLE} VALUES (?, ?)", table, json.dumps(record))

    def create_table(self, table: str, layout: TableLayout, record: Mapping[str, Any]) -> None:
        with self._transaction():
            if not self._has_table("collections"):
                self._create_tables()
            model = choose_llm_model(record["vector_space"])
            self._query("INSERT INTO collections (name, model) VALUES (?, ?)", table, model)
            self._write_record(table, record)

    def _create_tables(self) -> None:
        for statement in SCHEMA.split(";"):
            self._query(statement)
        now = str(datetime.now(UTC))
        for name in MIGRATIONS:
            columns = "(migration_set, name, applied_at)"
            self._query(f"INSERT INTO _sqlite_migrations {columns} VALUES (?, ?, ?)", MIGRATION_SET, name, now)

    def drop_table(self, table: str) -> None:
        with self._transaction():
            if self._has_table("collections"):
                self._drop_table(table)

    def _drop_table(self, table: str) -> None:
        self._query(f"DELETE FROM embeddings WHERE collection_id = {NUMBER}", table)
        self._query("DELETE FROM collections WHERE name = ?", table)
        if self._has_table(RECORDS_TABLE):
            self._query(f"DELETE FROM {RECORDS_TABLE} WHERE name = ?", table)

    def replace_table(self, new: str, old: str, layout: TableLayout) -> None:
        with self._transaction():
            self._drop_table(old)
            self._query("UPDATE collections SET name = ? WHERE name = ?", old, new)
            self._query(f"UPDATE {RECORDS_TABLE} SET name = ? WHERE name = ?", old, new)

    # Rows

    def count_rows(self, table: str) -> int:
        with self._translate_errors():
            return int(self._query(f"SELECT count(*) FROM embeddings WHERE collection_id = {NUMBER}", table)[0][0])

    def upsert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        payloads = make_payloads(rows, layout)
        has_content = is_kept_text(layout, CONTENT_COLUMN)
        contents = [payload.pop(CONTENT_COLUMN, None) if has_content else None for payload in payloads]
        vectors, now = view_dense_rows(rows.column(VECTOR_COLUMN)), int(time.time())
        columns = "(collection_id, id, embedding, content, content_hash, metadata, updated)"
        with self._transaction():
            number = self._query("SELECT id FROM collections WHERE name = ?", table)
            if not number:
                place = storage.format_location(self._path)
                raise OutputError(f"{place}: the collection {table} is no longer there", "run the same command again")
            self._db.executemany(
                f"INSERT OR REPLACE INTO embeddings {columns} VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    (number[0][0], key, vector, content, hash_content(content), to_json_text(payload), now)
                    for key, vector, content, payload in zip(
                        make_keys(rows, layout), vectors, contents, payloads, strict=True
                    )
                ),
            )

    def delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        with self._transaction():
            self._db.executemany(
                f"DELETE FROM embeddings WHERE collection_id = {NUMBER} AND id = ?",
                ((table, key) for key in make_keys(keys, layout)),
            )

    def read_digests(self, table: str, layout: TableLayout) -> Iterator[pa.Table]:
        fields = layout.digest_columns
        last = 0
        while True:
            with self._translate_errors():
                rows = self._query(
                    f"SELECT rowid, id, metadata FROM embeddings WHERE collection_id = {NUMBER} AND rowid > ? "
                    f"ORDER BY rowid LIMIT {READ_ROWS}",
                    table,
                    last,
                )
            if not rows:
                return
            last = rows[-1][0]
            yield payloads_to_table([parse_payload(key, metadata, None, layout) for _, key, metadata in rows], fields)

    def read_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> pa.Table:
        names = make_keys(keys, layout)
        parts = [names[start : start + KEYS_PER_QUERY] for start in range(0, len(names), KEYS_PER_QUERY)]
        found: list[Any] = []
        with self._translate_errors():
            for part in parts:
                marks = ", ".join("?" * len(part))
                found += self._query(
                    "SELECT id, metadata, content, embedding FROM embeddings "
                    f"WHERE collection_id = {NUMBER} AND id IN ({marks})",
                    table,
                    *part,
                )
        return build_table(found, layout, layout.schema.names)

    def find_nearest(
        self, table: str, layout: TableLayout, query: StoredVectors, count: int, columns: Sequence[str]
    ) -> pa.Table:
        wanted = normalize(np.asarray(query, np.float32))
        numbers, scores, last = [np.empty(0, np.int64)], [np.empty(0, np.float32)], 0
        with self._translate_errors():
            while rows := self._query(
                # Rows of another length were not loaded by embedcli.
                f"SELECT rowid, embedding FROM embeddings WHERE collection_id = {NUMBER} AND rowid > ? "
                f"AND length(embedding) = ? ORDER BY rowid LIMIT {READ_ROWS}",
                table,
                last,
                4 * layout.dim,
            ):
                last = rows[-1][0]
                vectors = np.frombuffer(b"".join(row[1] for row in rows), "<f4").reshape(-1, layout.dim)
                numbers.append(np.array([row[0] for row in rows], np.int64))
                scores.append(score_rows(wanted, vectors.astype(np.float32, copy=False), "cosine")[0])
            best = np.concatenate(numbers)[np.argsort(-np.concatenate(scores), kind="stable")[:count]].tolist()
            found = [
                self._query("SELECT id, metadata, content, embedding FROM embeddings WHERE rowid = ?", rowid)[0]
                for rowid in best
            ]
        return build_table(found, layout, columns)

    # Statements

    def _has_table(self, name: str) -> bool:
        return bool(self._query("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", name))

    def _query(self, statement: str, *values: Any) -> list[Any]:
        return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translate_errors():
            self._query("BEGIN IMMEDIATE")
            try:
                yield
                self._query("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._query("ROLLBACK")
                raise

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        place = storage.format_location(self._path)
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise TargetBusyError(
                    f"{place}: another program is writing to the database", "run again when it has finished"
                ) from None
            if code == sqlite3.SQLITE_NOTADB:
                raise UsageError(f"{place}: is not a SQLite database", "name another file") from None
            raise OutputError(f"{place}: {first_line(error)}", "check the file, its folder and the disk") from error


def choose_llm_model(vector_space: Mapping[str, Any]) -> str:
    """Return the name by which llm knows the model of a vector space, for `llm similar COLLECTION -c TEXT`.

    Models of OpenAI have their own names there. The others are those of the plugin llm-sentence-transformers, which
    puts `sentence-transformers/` before the name under which a model was registered.
    """
    model = str(vector_space["model"])
    if model.startswith(HOSTED_PREFIX):
        name = model.removeprefix(HOSTED_PREFIX)
        return f"{name}-{vector_space['truncate_dim']}" if vector_space.get("truncate_dim") else name
    return "sentence-transformers/" + model.removeprefix("sentence-transformers/")


def hash_content(content: str | None) -> bytes | None:
    """Return the MD5 by which llm knows texts that it has embedded already."""
    return None if content is None else hashlib.md5(content.encode(), usedforsecurity=False).digest()


def parse_payload(key: str, metadata: str | None, content: str | None, layout: TableLayout) -> dict[str, Any]:
    """Return the columns of a row but the vector. A row that llm has added has its id and its content only."""
    try:
        payload = json.loads(metadata or "{}")
    except ValueError:
        payload = {}
    payload = payload if isinstance(payload, dict) else {}
    if len(layout.key) == 1 and layout.key[0] not in payload:
        payload[layout.key[0]] = key
    return {**payload, CONTENT_COLUMN: content} if is_kept_text(layout, CONTENT_COLUMN) else payload


def build_table(rows: Sequence[tuple[Any, ...]], layout: TableLayout, columns: Sequence[str]) -> pa.Table:
    """Build the named columns from rows of id, metadata, content and embedding."""
    payloads = [parse_payload(key, metadata, content, layout) for key, metadata, content, _ in rows]
    found = payloads_to_table(payloads, [layout.schema.field(name) for name in columns if name != VECTOR_COLUMN])
    if VECTOR_COLUMN not in columns:
        return found
    vectors = np.frombuffer(b"".join(row[3] for row in rows), "<f4")
    return join_vectors(found, dense_column(vectors, layout), layout, columns)
