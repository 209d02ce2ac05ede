"""DuckDB: a table with an array of floats, in which a search compares the query with all rows."""

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
from embedcli.databases.locks import LOCK_ENDING, has_record_lock, in_use_error, lock_database
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

ROWS_VIEW = "embedcli_rows"
READ_ROWS = 100_000
DAY_MICROSECONDS = 86_400_000_000
# DuckDB would fetch extensions from its own server when a file or a function seems to need one.
NO_DOWNLOADS = {"autoinstall_known_extensions": "false"}


def is_duckdb_or_new(path: str) -> bool:
    """Whether DuckDB would read a file as its own. It would attach a file of SQLite, if its extension is installed."""
    if not os.path.isfile(path) or not os.path.getsize(path):
        return True
    with open(path, "rb") as file:
        # https://duckdb.org/docs/stable/internals/storage: 4 magic bytes after a checksum of 8.
        return file.read(12)[8:] == b"DUCK"


class DuckDBTarget(DatabaseTarget):
    """A DuckDB file. Searches compare the query with all vectors, exactly."""

    title: ClassVar[str] = "DuckDB"
    extra: ClassVar[str] = "duckdb"
    precisions: ClassVar[Mapping[str, Precision]] = {"float32": "float32", "float16": "float32"}
    # A larger batch costs no more memory than a row group, and fewer commits.
    batch_bytes: ClassVar[int] = 32 << 20
    has_case_sensitive_columns: ClassVar[bool] = False
    stores_repeated_map_keys: ClassVar[bool] = False
    reserved_tables: ClassVar[str] = ROWS_VIEW
    max_dimensions: ClassVar[Mapping[str, int]] = {"float32": 100_000}

    def __init__(self, address: TargetAddress, *, read_only: bool = False) -> None:
        self._client = import_client("duckdb", self.title, self.extra)
        self._path = address.location
        if read_only and not os.path.exists(self._path):
            raise UsageError(
                f"{storage.format_location(self._path)}: there is no such file", "create it with `embedcli load`"
            )
        place, lock = storage.format_location(self._path), f"{self._path}{LOCK_ENDING}"
        if not is_duckdb_or_new(self._path):
            raise UsageError(f"{place}: is not a DuckDB database", "name another file")
        self._release: Callable[[], None] = lambda: None
        if not read_only:
            self._release = lock_database(lock, place)
        try:
            with self._translate_errors():
                try:
                    self._db = self._client.connect(self._path, read_only=read_only, config=NO_DOWNLOADS)
                except self._client.IOException:
                    if os.path.isfile(self._path) and has_record_lock(self._path, is_reader=read_only):
                        raise in_use_error(place, lock if read_only else None) from None
                    raise
                self._run("SET TimeZone = 'UTC'")
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        self._db.close()
        self._release()

    def stored_type(self, kind: pa.DataType) -> pa.DataType | None:
        if pa.types.is_nested(kind):
            return kind if is_native(kind) else None
        if pa.types.is_date(kind):
            return pa.date32()
        if pa.types.is_timestamp(kind) and kind.tz is not None and kind.unit != "ns":
            return pa.timestamp("us", kind.tz)
        if pa.types.is_duration(kind) and kind.unit != "ns":
            return pa.duration("us")
        return kind if is_native(kind) else pa.string()

    # Tables

    def read_record(self, table: str) -> dict[str, Any] | None:
        with self._translate_errors():
            found = self._run(
                "SELECT table_name, comment FROM duckdb_tables() WHERE schema_name = 'main' AND NOT internal "
                "AND database_name = current_database() AND lower(table_name) = lower($1) UNION ALL "
                "SELECT view_name, NULL FROM duckdb_views() WHERE schema_name = 'main' AND NOT internal "
                "AND database_name = current_database() AND lower(view_name) = lower($1)",
                [table],
            )
        if not found:
            return None
        name, comment = found[0]
        try:
            record = json.loads(comment or "{}")
        except ValueError:
            return {}  # a comment by the user
        if not isinstance(record, dict) or "vector_space" not in record:
            return {}
        if name != table:
            raise same_name_error(self.title, table, name)
        return record

    def write_record(self, table: str, record: Mapping[str, Any]) -> None:
        with self._translate_errors():
            self._comment(table, record)

    def _comment(self, table: str, record: Mapping[str, Any]) -> None:
        text = json.dumps(record).replace("'", "''")
        self._run(f"COMMENT ON TABLE {quote(table)} IS '{text}'")

    def create_table(self, table: str, layout: TableLayout, record: Mapping[str, Any]) -> None:
        # The types of the columns are those that DuckDB gives to Arrow's.
        key = ", ".join(map(quote, layout.key))
        with self._translate_errors(), self._transaction():
            self._db.register(ROWS_VIEW, layout.schema.empty_table())
            self._run(f"CREATE TABLE {quote(table)} AS FROM {ROWS_VIEW}")
            self._db.unregister(ROWS_VIEW)
            self._run(f"ALTER TABLE {quote(table)} ADD PRIMARY KEY ({key})")
            self._comment(table, record)

    def drop_table(self, table: str) -> None:
        with self._translate_errors():
            self._run(f"DROP TABLE IF EXISTS {quote(table)}")

    def replace_table(self, new: str, old: str, layout: TableLayout) -> None:
        with self._translate_errors(), self._transaction():
            self._run(f"DROP TABLE IF EXISTS {quote(old)}")
            self._run(f"ALTER TABLE {quote(new)} RENAME TO {quote(old)}")

    def finish_load(self, table: str, layout: TableLayout) -> None:
        with self._translate_errors():
            self._run("CHECKPOINT")

    # Rows

    def count_rows(self, table: str) -> int:
        with self._translate_errors():
            return int(self._run(f"SELECT count(*) FROM {quote(table)}")[0][0])

    def insert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        try:
            self._write_rows("INSERT", table, rows)
        except self._client.ConstraintException:
            self.upsert_rows(table, layout, rows)

    def upsert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        self._write_rows("INSERT OR REPLACE", table, rows)

    def _write_rows(self, statement: str, table: str, rows: pa.Table) -> None:
        names = ", ".join(map(quote, rows.column_names))
        with self._translate_errors(), self._view(rows):
            self._run(f"{statement} INTO {quote(table)} ({names}) SELECT {names} FROM {ROWS_VIEW}")

    def delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        with self._translate_errors(), self._view(keys):
            self._run(f"DELETE FROM {quote(table)} AS t USING {ROWS_VIEW} AS k WHERE {same_key(layout)}")

    def read_digests(self, table: str, layout: TableLayout) -> Iterator[pa.Table]:
        fields = layout.digest_columns
        with self._translate_errors():
            names = ", ".join(quote(field.name) for field in fields)
            # A cursor of its own: other statements may run before the last batch is read.
            found = self._db.cursor().sql(f"SELECT {names} FROM {quote(table)}").to_arrow_reader(READ_ROWS)
            for batch in found:
                yield pa.Table.from_batches([batch]).cast(pa.schema(fields))

    def read_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> pa.Table:
        names = ", ".join(f"t.{quote(name)}" for name in layout.schema.names)
        with self._translate_errors(), self._view(keys):
            found = self._db.sql(f"SELECT {names} FROM {quote(table)} AS t JOIN {ROWS_VIEW} AS k ON {same_key(layout)}")
            return to_stored_types(found.to_arrow_table(), layout.schema)

    def find_nearest(
        self, table: str, layout: TableLayout, query: StoredVectors, count: int, columns: Sequence[str]
    ) -> pa.Table:
        names = ", ".join(map(quote, columns))
        width = layout.schema.field(VECTOR_COLUMN).type.list_size
        with self._translate_errors():
            found = self._db.sql(
                f"SELECT {names} FROM {quote(table)} "
                f"ORDER BY array_cosine_distance({VECTOR_COLUMN}, ?::FLOAT[{width}]) LIMIT ?",
                params=[np.asarray(query)[0].tolist(), count],
            )
            schema = pa.schema([layout.schema.field(name) for name in columns])
            return to_stored_types(found.to_arrow_table(), schema)

    # Statements

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Run a statement and return its rows, all of them: an unfinished result blocks the connection."""
        return list(self._db.execute(statement, list(values)).fetchall())

    @contextmanager
    def _view(self, rows: pa.Table) -> Iterator[None]:
        self._db.register(ROWS_VIEW, rows)
        try:
            yield
        finally:
            self._db.unregister(ROWS_VIEW)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run("BEGIN")
        try:
            yield
        except BaseException:
            self._run("ROLLBACK")
            raise
        self._run("COMMIT")

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except self._client.ConstraintException:
            raise
        except self._client.TransactionException as error:
            raise TargetBusyError(
                f"{storage.format_location(self._path)}: {first_line(error)}", "run the same command again"
            ) from error
        except self._client.Error as error:
            raise OutputError(
                f"{storage.format_location(self._path)}: {first_line(error)}", "check the file, its folder and the disk"
            ) from error


def quote(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def to_stored_types(found: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast what DuckDB returned. Its intervals, of months, days and nanoseconds, become durations."""
    for position, field in enumerate(schema):
        if pa.types.is_duration(field.type):
            values = [
                None if value is None else value.days * DAY_MICROSECONDS + value.nanoseconds // 1000
                for value in found.column(position).to_pylist()
            ]
            found = found.set_column(position, field, pa.array(values, pa.int64()).cast(field.type))
    return found.cast(schema)


def same_key(layout: TableLayout) -> str:
    return " AND ".join(f"t.{quote(name)} = k.{quote(name)}" for name in layout.key)


def is_native(kind: pa.DataType) -> bool:
    """Whether DuckDB has a type that holds all values of an Arrow type, at any depth."""
    types = pa.types
    if types.is_null(kind) or types.is_duration(kind) or types.is_interval(kind) or types.is_union(kind):
        return False
    if types.is_float16(kind) or types.is_decimal256(kind):
        return False
    if types.is_time(kind) or types.is_timestamp(kind):
        return not (kind.unit == "ns" and (types.is_time(kind) or kind.tz is not None))
    if types.is_struct(kind) and kind.num_fields != len({field.name.lower() for field in kind} - {""}):
        return False
    return (not types.is_struct(kind) or kind.num_fields > 0) and all(
        is_native(kind.field(i).type) for i in range(kind.num_fields)
    )
