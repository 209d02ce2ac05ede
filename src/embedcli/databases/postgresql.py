"""PostgreSQL with pgvector: rows by binary COPY, into the table itself or through a temporary one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from embedcli.core.errors import OutputError, UsageError, first_line
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.databases.columns import to_json_text
from embedcli.databases.postgresql_binary import decode_vectors, encode_copy
from embedcli.databases.postgresql_types import column_type, native_type, operator_class, vector_type
from embedcli.databases.target import (
    JSON_FIELD,
    VECTOR_COLUMN,
    DatabaseTarget,
    TableLayout,
    TargetBusyError,
    import_client,
)

if TYPE_CHECKING:
    from embedcli.core.types import Precision, VectorKind
    from embedcli.databases.address import TargetAddress
    from embedcli.outputs.vector_columns import StoredVectors

CONNECT_SECONDS = 30
STAGED_ROWS = "embedcli_rows"
FETCHED_ROWS = 50_000
# Conditions after which the same statement may succeed: errors of transactions (40), too many connections, a server
# that starts or stops, and locks (Appendix A of the manual).
BUSY_STATES = ("40001", "40P01", "53300", "55P03", "57P01", "57P02", "57P03")
# An index entry is at most a third of a page of 8 kB.
MAX_ID_BYTES = 2600
# The defaults of pgvector; its README recommends HNSW over IVFFlat for recall and speed of searches.
HNSW = "hnsw (m = 16, ef_construction = 64)"
# The most dimensions that an HNSW index of pgvector holds, by the precision of the vectors.
MAX_INDEXED_DIMENSIONS = {"float32": 2_000, "float16": 4_000, "ubinary": 64_000}
# Candidates of a search by HNSW: the default, and the largest value.
MIN_EF_SEARCH, MAX_EF_SEARCH = 40, 1_000


class PostgreSQLTarget(DatabaseTarget):
    """A PostgreSQL database with the extension pgvector. Passwords come from PGPASSWORD, PGPASSFILE or ~/.pgpass."""

    title: ClassVar[str] = "PostgreSQL"
    extra: ClassVar[str] = "postgresql"
    precisions: ClassVar[Mapping[str, Precision]] = {
        "float32": "float32", "float16": "float16", "binary": "ubinary", "ubinary": "ubinary",
    }  # fmt: skip
    kinds: ClassVar[frozenset[VectorKind]] = frozenset({"dense", "sparse"})
    # The next batches are put together while the server writes one. Each thread has a connection.
    parallel_requests: ClassVar[int] = 3
    has_index: ClassVar[bool] = True
    has_schemas: ClassVar[bool] = True
    stores_nul: ClassVar[bool] = False
    longest_id_bytes: ClassVar[int | None] = MAX_ID_BYTES
    longest_name_bytes: ClassVar[int] = 63
    # A field, and the message that has the row, hold up to 1 GB.
    largest_row_bytes: ClassVar[int | None] = 500 << 20
    # A temporary table hides others of its name.
    reserved_tables: ClassVar[str] = rf"(.*\.)?{STAGED_ROWS}"
    reserved_columns: ClassVar[frozenset[str]] = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})

    def __init__(self, address: TargetAddress, *, read_only: bool = False) -> None:
        self._client = import_client("psycopg", self.title, self.extra)
        self._sql = import_client("psycopg.sql", self.title, self.extra)
        self._address = address
        self._connections: dict[int, Any] = {}
        try:
            self._prepare_connection()
            if not read_only:
                self._require_extension()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> Any:
        try:
            connection = self._client.connect(
                self._address.location, autocommit=True, connect_timeout=CONNECT_SECONDS, application_name="embedcli"
            )
        except self._client.Error as error:
            raise OutputError(
                f"{self._address}: {first_line(error)}",
                "check the address; the password is read from PGPASSWORD or ~/.pgpass",
            ) from None
        connection.execute("SET TimeZone = 'UTC'")
        return connection

    def _require_extension(self) -> None:
        with self._translate_errors():
            if self._fetch("SELECT to_regtype('vector') IS NOT NULL")[0][0]:
                return
            try:
                self._run("CREATE EXTENSION IF NOT EXISTS vector")
            except self._client.Error as error:
                raise UsageError(
                    f"{self._address}: the extension pgvector is missing: {first_line(error)}",
                    "install pgvector on the server, and run CREATE EXTENSION vector as its administrator",
                ) from None

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    @property
    def _db(self) -> Any:
        """The connection of this thread."""
        return self._connections[threading.get_ident()]

    def _prepare_connection(self) -> None:
        """Connect, unless this thread has a connection that is open."""
        connection = self._connections.get(threading.get_ident())
        if connection is None or connection.closed:
            self._connections[threading.get_ident()] = self._connect()

    def stored_type(self, kind: pa.DataType) -> pa.DataType | None:
        return native_type(kind) or super().stored_type(kind)

    # Tables

    def read_record(self, table: str) -> dict[str, Any] | None:
        name = self._name(table).as_string(None)
        with self._translate_errors():
            found = self._fetch("SELECT obj_description(to_regclass(%s), 'pg_class'), to_regclass(%s)", [name, name])
        comment, oid = found[0]
        if oid is None:
            return None
        try:
            record = json.loads(comment or "{}")
        except ValueError:
            return {}  # a comment by the user
        return record if isinstance(record, dict) and "vector_space" in record else {}

    def write_record(self, table: str, record: Mapping[str, Any]) -> None:
        with self._translate_errors():
            self._comment(table, record)

    def _comment(self, table: str, record: Mapping[str, Any]) -> None:
        text = self._sql.Literal(json.dumps(record))
        self._run(self._sql.SQL("COMMENT ON TABLE {} IS {}").format(self._name(table), text))

    def create_table(self, table: str, layout: TableLayout, record: Mapping[str, Any]) -> None:
        columns = [
            self._sql.SQL("{} {}").format(
                self._sql.Identifier(field.name),
                self._sql.SQL(column_type(field, layout) + ("" if field.nullable else " NOT NULL")),
            )
            for field in layout.schema
        ]
        key = self._sql.SQL("PRIMARY KEY ({})").format(self._names(layout.key))
        statement = self._sql.SQL("CREATE TABLE {} ({})").format(
            self._name(table), self._sql.SQL(", ").join([*columns, key])
        )
        with self._translate_errors(), self._db.transaction():
            self._run(statement)
            # Vectors hardly shrink: compression would cost time alone.
            self._run(
                self._sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET STORAGE EXTERNAL").format(
                    self._name(table), self._sql.Identifier(VECTOR_COLUMN)
                )
            )
            self._comment(table, record)

    def drop_table(self, table: str) -> None:
        with self._translate_errors():
            self._run(self._sql.SQL("DROP TABLE IF EXISTS {}").format(self._name(table)))

    def replace_table(self, new: str, old: str, layout: TableLayout) -> None:
        name = self._sql.Identifier(old.rpartition(".")[2])
        with self._translate_errors(), self._db.transaction():
            self._run(self._sql.SQL("DROP TABLE IF EXISTS {}").format(self._name(old)))
            self._run(self._sql.SQL("ALTER TABLE {} RENAME TO {}").format(self._name(new), name))

    def finish_load(self, table: str, layout: TableLayout) -> None:
        # Statistics, and the visibility map, by which rows are counted in the index alone.
        with self._translate_errors():
            self._run(self._sql.SQL("VACUUM (ANALYZE) {}").format(self._name(table)))

    def build_index(self, table: str, layout: TableLayout) -> str:
        limit = MAX_INDEXED_DIMENSIONS[layout.precision]
        if layout.kind == "dense" and layout.dim > limit:
            raise UsageError(
                f"{self.title}: an index holds {layout.precision} vectors of at most {limit:,} dimensions, these have "
                f"{layout.dim:,}",
                "leave out --index, or encode with --precision float16 or --truncate-dim",
            )
        name = self._name(table).as_string(None)
        with self._translate_errors():
            has_index = self._fetch(
                "SELECT 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam "
                "WHERE i.indrelid = %s::regclass AND i.indisvalid AND a.amname IN ('hnsw', 'ivfflat')",
                [name],
            )
            if not has_index:
                statement = f"CREATE INDEX ON {{}} USING hnsw ({{}} {operator_class(layout)})"
                self._run(self._sql.SQL(statement).format(self._name(table), self._sql.Identifier(VECTOR_COLUMN)))
        return "was there already" if has_index else HNSW

    # Rows

    def count_rows(self, table: str) -> int:
        with self._translate_errors():
            return int(self._fetch(self._sql.SQL("SELECT count(*) FROM {}").format(self._name(table)))[0][0])

    def insert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        try:
            with self._translate_errors():
                self._copy(self._name(table), layout, rows)
        except self._client.errors.UniqueViolation:
            self.upsert_rows(table, layout, rows)

    def upsert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        staged = self._sql.Identifier(STAGED_ROWS)
        names = self._names(rows.column_names)
        others = [name for name in rows.column_names if name not in layout.key]
        changes = self._sql.SQL(", ").join(
            self._sql.SQL("{0} = EXCLUDED.{0}").format(self._sql.Identifier(name)) for name in others
        )
        with self._translate_errors(), self._db.transaction():
            self._run(self._sql.SQL("CREATE TEMP TABLE {} (LIKE {}) ON COMMIT DROP").format(staged, self._name(table)))
            self._copy(staged, layout, rows)
            self._run(
                self._sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT ({}) DO UPDATE SET {}").format(
                    self._name(table), names, names, staged, self._names(layout.key), changes
                )
            )

    def _copy(self, table: Any, layout: TableLayout, rows: pa.Table) -> None:
        statement = self._sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)")
        with self._db.cursor().copy(statement.format(table, self._names(rows.column_names))) as copy:
            copy.write(encode_copy(rows, layout))

    def delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        statement = self._sql.SQL("DELETE FROM {} AS t USING {} WHERE {}").format(
            self._name(table), self._key_rows(layout), self._same_key(layout)
        )
        with self._translate_errors():
            self._run(statement, key_lists(keys, layout))

    def read_digests(self, table: str, layout: TableLayout) -> Iterator[pa.Table]:
        fields = layout.digest_columns
        statement = self._sql.SQL("SELECT {} FROM {}").format(
            self._names([field.name for field in fields]), self._name(table)
        )
        with (
            self._translate_errors(),
            self._db.transaction(),
            self._db.cursor(name="embedcli_digests", binary=True) as cursor,
        ):
            cursor.execute(statement)
            while rows := cursor.fetchmany(FETCHED_ROWS):
                yield pa.table(
                    [
                        pa.array(column, field.type)
                        for column, field in zip(zip(*rows, strict=True), fields, strict=True)
                    ],
                    schema=pa.schema(fields),
                )

    def read_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> pa.Table:
        statement = self._sql.SQL("SELECT {} FROM {} AS t JOIN {} ON {}").format(
            self._names(layout.schema.names, "t"), self._name(table), self._key_rows(layout), self._same_key(layout)
        )
        with self._translate_errors(), self._db.cursor(binary=True) as cursor:
            rows = cursor.execute(statement, key_lists(keys, layout)).fetchall()
        return build_table(rows, layout.schema.names, layout)

    def find_nearest(
        self, table: str, layout: TableLayout, query: StoredVectors, count: int, columns: Sequence[str]
    ) -> pa.Table:
        operator = {"cosine": "<=>", "dot": "<#>", "hamming": "<~>"}[layout.distance]
        statement = self._sql.SQL(f"SELECT {{}} FROM {{}} ORDER BY {{}} {operator} {{}} LIMIT %s").format(
            self._names(columns),
            self._name(table),
            self._sql.Identifier(VECTOR_COLUMN),
            self._sql.SQL(f"%s::{vector_type(layout)}"),
        )
        candidates = min(MAX_EF_SEARCH, max(MIN_EF_SEARCH, 2 * count))
        with self._translate_errors(), self._db.transaction(), self._db.cursor(binary=True) as cursor:
            cursor.execute(f"SET LOCAL hnsw.ef_search = {candidates}")
            cursor.execute("SET LOCAL hnsw.iterative_scan = strict_order")
            rows = cursor.execute(statement, [format_query(query), count]).fetchall()
        return build_table(rows, columns, layout)

    # Statements

    def _name(self, table: str) -> Any:
        return self._sql.Identifier(*table.split("."))

    def _names(self, names: Sequence[str], table: str | None = None) -> Any:
        parts = [(name,) if table is None else (table, name) for name in names]
        return self._sql.SQL(", ").join(self._sql.Identifier(*part) for part in parts)

    def _key_rows(self, layout: TableLayout) -> Any:
        """The keys of `key_lists` as a table `k`."""
        arrays = [
            self._sql.SQL("%s::" + ("bigint[]" if pa.types.is_integer(layout.schema.field(name).type) else "text[]"))
            for name in layout.key
        ]
        return self._sql.SQL("unnest({}) AS k ({})").format(self._sql.SQL(", ").join(arrays), self._names(layout.key))

    def _same_key(self, layout: TableLayout) -> Any:
        return self._sql.SQL(" AND ").join(
            self._sql.SQL("t.{0} = k.{0}").format(self._sql.Identifier(name)) for name in layout.key
        )

    def _run(self, statement: Any, values: Sequence[Any] = ()) -> Any:
        return self._db.execute(statement, list(values) or None)

    def _fetch(self, statement: Any, values: Sequence[Any] = ()) -> list[Any]:
        return list(self._run(statement, values).fetchall())

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        self._prepare_connection()
        try:
            yield
        except self._client.errors.UniqueViolation:
            raise
        except self._client.Error as error:
            problem = f"{self._address}: {first_line(error)}"
            if self._db.closed or error.sqlstate in BUSY_STATES:
                raise TargetBusyError(problem, "run the same command again: it goes on where it stopped") from error
            raise OutputError(problem, "check the permissions and the log of the server") from error


def format_query(query: Any) -> str:
    """Return a query vector as text of its type; dimensions of sparsevec count from 1."""
    if isinstance(query, SparseVectors):
        entries = zip(query.indices.tolist(), query.values.tolist(), strict=True)
        return "{" + ",".join(f"{index + 1}:{value!r}" for index, value in entries) + f"}}/{query.dim}"
    if query.dtype == np.uint8:
        return "".join(map(str, np.unpackbits(query[0]).tolist()))
    return str(query[0].tolist())


def key_lists(keys: pa.Table, layout: TableLayout) -> list[list[Any]]:
    return [keys.column(name).to_pylist() for name in layout.key]


def build_table(rows: Sequence[Sequence[Any]], names: Sequence[str], layout: TableLayout) -> pa.Table:
    """Build a table from rows that were fetched in the binary format."""
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    fields = [layout.schema.field(name) for name in names]
    arrays = []
    for values, field in zip(columns, fields, strict=True):
        if field.name == VECTOR_COLUMN:
            arrays.append(decode_vectors(values, layout))
        elif field.metadata == JSON_FIELD:
            arrays.append(pa.array([None if value is None else to_json_text(value) for value in values], field.type))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))
