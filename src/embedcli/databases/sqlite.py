"""SQLite with sqlite-vec: a table of the columns, and beside it a virtual table of the vectors with the same row ids.

`docs` has the columns and `vector_rowid`, `docs_vectors` the vectors: sqlite-vec searches its own tables only, and
those hold few types of columns. apsw brings its own SQLite, because that of Python often cannot load extensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import OutputError, UsageError, first_line
from embedcli.databases.columns import combine_chunks, to_fast_list_type, view_rows
from embedcli.databases.locks import LOCK_ENDING, lock_table
from embedcli.databases.target import (
    VECTOR_COLUMN,
    DatabaseTarget,
    TableLayout,
    TargetBusyError,
    import_client,
    same_name_error,
)

if TYPE_CHECKING:
    from embedcli.core.types import Precision
    from embedcli.databases.address import TargetAddress
    from embedcli.outputs.vector_columns import StoredVectors

ROWID_COLUMN = "vector_rowid"
VECTORS_SUFFIX = "_vectors"
# sqlite-vec adds tables of its own to each of its tables; those of such names are in its way.
VECTORS_SUFFIXES = (VECTORS_SUFFIX, *(f"{VECTORS_SUFFIX}_{name}" for name in ("info", "chunks", "rowids")))
RECORDS_TABLE = "embedcli_tables"
BUSY_TIMEOUT_MS = 10_000
# Pages of a transaction in memory: sqlite-vec changes the same pages for each of 1,024 vectors.
CACHE_KIBIBYTES = 32 << 10
# Rows per query: each key column of each row is a parameter, of which SQLite allows 32,766.
READ_ROWS = 5_000
# The most neighbours that sqlite-vec returns.
MAX_NEIGHBOURS = 4096


class SQLiteTarget(DatabaseTarget):
    """A SQLite file. Searches compare the query with all vectors, exactly."""

    title: ClassVar[str] = "SQLite"
    extra: ClassVar[str] = "sqlite"
    precisions: ClassVar[Mapping[str, Precision]] = {
        "float32": "float32", "float16": "float32", "binary": "ubinary", "ubinary": "ubinary",
    }  # fmt: skip
    # Each batch is a transaction, which waits for the disk.
    batch_bytes: ClassVar[int] = 32 << 20
    max_dimensions: ClassVar[Mapping[str, int]] = {"float32": 8192, "ubinary": 8192 * 8}
    has_case_sensitive_columns: ClassVar[bool] = False
    reserved_tables: ClassVar[str] = rf"sqlite_.*|{RECORDS_TABLE}"
    reserved_columns: ClassVar[frozenset[str]] = frozenset({ROWID_COLUMN, "rowid", "oid", "_rowid_"})

    def __init__(self, address: TargetAddress, *, read_only: bool = False) -> None:
        self._apsw = import_client("apsw", self.title, self.extra)
        extension = import_client("sqlite_vec", self.title, self.extra)
        self._path = address.location
        if read_only and not os.path.exists(self._path):
            raise UsageError(
                f"{storage.format_location(self._path)}: there is no such file", "create it with `embedcli load`"
            )
        mode = self._apsw.SQLITE_OPEN_READONLY if read_only else self._apsw.SQLITE_OPEN_READWRITE
        with self._translate_errors():
            self._db = self._apsw.Connection(
                self._path, flags=mode if read_only else mode | self._apsw.SQLITE_OPEN_CREATE
            )
            self._db.set_busy_timeout(BUSY_TIMEOUT_MS)
            self._query(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
            self._db.enable_load_extension(True)
            self._db.load_extension(extension.loadable_path())
            self._query("SELECT count(*) FROM sqlite_master")  # reads the header of the file
        self._release: Callable[[], None] = lambda: None
        if not read_only:
            try:
                self._release = lock_table(
                    f"{self._path}{LOCK_ENDING}-", address.table, storage.format_location(self._path)
                )
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        self._db.close()
        self._release()

    # Tables

    def read_record(self, table: str) -> dict[str, Any] | None:
        with self._translate_errors():
            if not self._has_name(table):
                self._check_vectors(table)
                return None
            if not self._has_name(RECORDS_TABLE):
                return {}
            found = self._query(f"SELECT name, record FROM {RECORDS_TABLE} WHERE lower(name) = lower(?)", [table])
        if not found:
            return {}
        name, record = found[0]
        if name != table:
            raise same_name_error(self.title, table, name)
        return dict(json.loads(record))

    def _check_vectors(self, table: str) -> None:
        """Raise UsageError if something else has the name of the table of the vectors of a new table."""
        for name in (table + suffix for suffix in VECTORS_SUFFIXES):
            if self._has_name(name):
                raise UsageError(
                    f"{self.title} table {table}: its vectors need the name {name}, which another table has",
                    "choose another name with --table",
                )

    def write_record(self, table: str, record: Mapping[str, Any]) -> None:
        with self._translate_errors(), self._db:
            self._write_record(table, record)

    def _write_record(self, table: str, record: Mapping[str, Any]) -> None:
        self._query(f"CREATE TABLE IF NOT EXISTS {RECORDS_TABLE} (name TEXT PRIMARY KEY, record TEXT NOT NULL)")
        self._query(f"INSERT OR REPLACE INTO {RECORDS_TABLE} VALUES (?, ?)", [table, json.dumps(record)])

    def create_table(self, table: str, layout: TableLayout, record: Mapping[str, Any]) -> None:
        columns = [f"{quote(field.name)} {column_type(field.type)}" for field in layout.plain_columns]
        unique = f"UNIQUE ({', '.join(map(quote, layout.key))})"
        with self._translate_errors(), self._db:
            self._query(
                f"CREATE TABLE {quote(table)} ({', '.join([f'{ROWID_COLUMN} INTEGER PRIMARY KEY', *columns, unique])})"
            )
            self._create_vectors(table, layout)
            self._write_record(table, record)

    def _create_vectors(self, table: str, layout: TableLayout) -> None:
        width = layout.schema.field(VECTOR_COLUMN).type.list_size
        kind = f"bit[{width * 8}]" if layout.precision == "ubinary" else f"float[{width}] distance_metric=cosine"
        self._query(f"CREATE VIRTUAL TABLE {vectors_of(table)} USING vec0({VECTOR_COLUMN} {kind})")

    def drop_table(self, table: str) -> None:
        with self._translate_errors(), self._db:
            self._drop_table(table)

    def _drop_table(self, table: str) -> None:
        self._query(f"DROP TABLE IF EXISTS {vectors_of(table)}")
        self._query(f"DROP TABLE IF EXISTS {quote(table)}")
        if self._has_name(RECORDS_TABLE):
            self._query(f"DELETE FROM {RECORDS_TABLE} WHERE name = ?", [table])

    def replace_table(self, new: str, old: str, layout: TableLayout) -> None:
        with self._translate_errors(), self._db:
            self._drop_table(old)
            self._query(f"ALTER TABLE {quote(new)} RENAME TO {quote(old)}")
            # sqlite-vec cannot rename its tables: the vectors are copied within the transaction.
            self._create_vectors(old, layout)
            value = self._vector_parameter(layout, VECTOR_COLUMN)
            self._query(
                f"INSERT INTO {vectors_of(old)} (rowid, {VECTOR_COLUMN}) SELECT rowid, {value} FROM {vectors_of(new)}"
            )
            self._query(f"DROP TABLE {vectors_of(new)}")
            self._query(f"UPDATE {RECORDS_TABLE} SET name = ? WHERE name = ?", [old, new])

    # Rows

    def count_rows(self, table: str) -> int:
        with self._translate_errors():
            return int(self._query(f"SELECT count(*) FROM {quote(table)}")[0][0])

    def insert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        try:
            self._write_rows(table, layout, rows, replaces=False)
        except self._apsw.ConstraintError:
            self.upsert_rows(table, layout, rows)

    def upsert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        self._write_rows(table, layout, rows, replaces=True)

    def _write_rows(self, table: str, layout: TableLayout, rows: pa.Table, *, replaces: bool) -> None:
        names = [field.name for field in layout.plain_columns]
        columns = [to_fast_list_type(combine_chunks(rows.column(name))).to_pylist() for name in names]
        vectors = [blob for chunk in rows.column(VECTOR_COLUMN).chunks for blob in vector_blobs(chunk)]
        marks = ", ".join(["?"] * (len(names) + 1))
        value = self._vector_parameter(layout, "?")
        with self._translate_errors(), self._db:
            if replaces:
                self._delete_rows(table, layout, rows.select(list(layout.key)))
            start = self._query(f"SELECT coalesce(max({ROWID_COLUMN}), 0) + 1 FROM {quote(table)}")[0][0]
            numbers = range(start, start + rows.num_rows)
            self._db.executemany(
                f"INSERT INTO {quote(table)} ({', '.join([ROWID_COLUMN, *map(quote, names)])}) VALUES ({marks})",
                zip(numbers, *columns, strict=True),
            )
            self._db.executemany(
                f"INSERT INTO {vectors_of(table)} (rowid, {VECTOR_COLUMN}) VALUES (?, {value})",
                zip(numbers, vectors, strict=True),
            )

    def delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        with self._translate_errors(), self._db:
            self._delete_rows(table, layout, keys)

    def _delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        for rowids in self._find(table, layout, keys, [ROWID_COLUMN]):
            self._db.executemany(f"DELETE FROM {vectors_of(table)} WHERE rowid = ?", rowids)
            self._db.executemany(f"DELETE FROM {quote(table)} WHERE {ROWID_COLUMN} = ?", rowids)

    def read_digests(self, table: str, layout: TableLayout) -> Iterator[pa.Table]:
        fields = layout.digest_columns
        names = ", ".join(quote(field.name) for field in fields)
        last = 0
        while True:
            with self._translate_errors():
                rows = self._query(
                    f"SELECT {ROWID_COLUMN}, {names} FROM {quote(table)} WHERE {ROWID_COLUMN} > ? "
                    f"ORDER BY {ROWID_COLUMN} LIMIT 100000",
                    [last],
                )
            if not rows:
                return
            last = rows[-1][0]
            yield build_table([row[1:] for row in rows], fields)

    def read_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> pa.Table:
        plain = layout.plain_columns
        names = [ROWID_COLUMN, *(field.name for field in plain)]
        tables = [layout.schema.empty_table()]
        with self._translate_errors():
            for rows in self._find(table, layout, keys, names):
                found = build_table([row[1:] for row in rows], plain)
                vectors = [self._read_vector(table, row[0]) for row in rows]
                tables.append(add_vectors(found, vectors, layout))
        return pa.concat_tables(tables)

    def _find(self, table: str, layout: TableLayout, keys: pa.Table, names: Sequence[str]) -> Iterator[list[Any]]:
        """Yield the named columns of the rows with some keys."""
        key = ", ".join(map(quote, layout.key))
        for start in range(0, keys.num_rows, READ_ROWS):
            rows = keys.slice(start, READ_ROWS)
            values = list(zip(*(rows.column(name).to_pylist() for name in layout.key), strict=True))
            marks = ", ".join(["(" + ", ".join("?" * len(layout.key)) + ")"] * len(values))
            yield self._query(
                f"SELECT {', '.join(map(quote, names))} FROM {quote(table)} WHERE ({key}) IN (VALUES {marks})",
                [value for row in values for value in row],
            )

    def _read_vector(self, table: str, rowid: int) -> bytes:
        found = self._query(f"SELECT {VECTOR_COLUMN} FROM {vectors_of(table)} WHERE rowid = ?", [rowid])
        return bytes(found[0][0])

    def find_nearest(
        self, table: str, layout: TableLayout, query: StoredVectors, count: int, columns: Sequence[str]
    ) -> pa.Table:
        fields = [layout.schema.field(name) for name in columns if name != VECTOR_COLUMN]
        names = ", ".join(f"t.{quote(name)}" for name in [ROWID_COLUMN, *(field.name for field in fields)])
        value = self._vector_parameter(layout, "?")
        with self._translate_errors():
            rows = self._query(
                f"SELECT {names} FROM {vectors_of(table)} AS v JOIN {quote(table)} AS t ON t.{ROWID_COLUMN} = v.rowid "
                f"WHERE v.{VECTOR_COLUMN} MATCH {value} AND v.k = ? ORDER BY v.distance",
                [np.ascontiguousarray(query).tobytes(), min(count, MAX_NEIGHBOURS)],
            )
            found = build_table([row[1:] for row in rows], fields)
            if VECTOR_COLUMN in columns:
                found = add_vectors(found, [self._read_vector(table, row[0]) for row in rows], layout)
        return found.select(list(columns))

    # Statements

    def _vector_parameter(self, layout: TableLayout, value: str) -> str:
        return f"vec_bit({value})" if layout.precision == "ubinary" else value

    def _has_name(self, name: str) -> bool:
        """Whether there is a table, view, index or trigger of this name."""
        return bool(self._query("SELECT 1 FROM sqlite_master WHERE lower(name) = lower(?)", [name]))

    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return list(self._db.execute(statement, values))

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except self._apsw.ConstraintError:
            raise
        except self._apsw.BusyError:
            raise TargetBusyError(
                f"{storage.format_location(self._path)}: another program is writing to the database",
                "run again when it has finished",
            ) from None
        except self._apsw.NotADBError:
            raise UsageError(
                f"{storage.format_location(self._path)}: is not a SQLite database", "name another file"
            ) from None
        except self._apsw.Error as error:
            raise OutputError(
                f"{storage.format_location(self._path)}: {first_line(error)}", "check the file, its folder and the disk"
            ) from error


def quote(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def vectors_of(table: str) -> str:
    return quote(table + VECTORS_SUFFIX)


def column_type(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "INTEGER"
    if pa.types.is_boolean(kind):
        return "BOOLEAN"
    if pa.types.is_floating(kind):
        return "REAL"
    return "TEXT" if pa.types.is_string(kind) else "BLOB"


def build_table(rows: Sequence[Sequence[Any]], fields: Sequence[pa.Field]) -> pa.Table:
    """Build a table from the rows that SQLite returned."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(fields)
    arrays = [
        pa.array([None if value is None else bool(value) for value in column], field.type)
        if pa.types.is_boolean(field.type)
        else pa.array(column, field.type)
        for column, field in zip(columns, fields, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=pa.schema(list(fields)))


def vector_blobs(vectors: pa.Array) -> list[memoryview]:
    """Return the bytes of each vector of a fixed-size list column."""
    numbers = vectors.flatten().to_numpy(zero_copy_only=False)
    return view_rows(numbers.reshape(len(vectors), vectors.type.list_size))


def add_vectors(rows: pa.Table, vectors: Sequence[bytes], layout: TableLayout) -> pa.Table:
    """Add the column of vectors to rows, in the order of the layout."""
    kind = layout.schema.field(VECTOR_COLUMN).type
    numbers = np.frombuffer(b"".join(vectors), kind.value_type.to_pandas_dtype())
    array = pa.FixedSizeListArray.from_arrays(pa.array(numbers, kind.value_type), type=kind)
    names = [*rows.column_names, VECTOR_COLUMN]
    table = pa.Table.from_arrays(
        [*rows.columns, array], schema=pa.schema([layout.schema.field(name) for name in names])
    )
    return table.select([name for name in layout.schema.names if name in names])
