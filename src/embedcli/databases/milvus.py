"""Milvus: a collection under an alias, in a file of Milvus Lite or on a server."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import OutputError, UsageError, first_line
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.databases.aliased_collections import COLLECTION_NAMES, choose_collection
from embedcli.databases.locks import LOCK_ENDING, in_use_error, is_locked, lock_database
from embedcli.databases.payloads import (
    dense_column,
    dense_rows,
    join_vectors,
    make_payloads,
    make_uuids,
    payloads_to_table,
    sparse_column,
    sparse_rows,
    stored_payload_type,
)
from embedcli.databases.target import (
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

TOKEN_VARIABLE = "MILVUS_TOKEN"
DEFAULT_PORT = 19530
TIMEOUT_SECONDS = 120
FILE_SUFFIX = ".db"
# What Milvus Lite locks in the folder.
MILVUS_LITE_LOCK = "LOCK"
KEY_FIELD = "row_key"
UUID_CHARACTERS = 36
RECORD_KEY = "embedcli"
READ_ROWS = 16_000
# The code of requests that are refused because there are too many of them.
RATE_LIMIT_CODE = 8


class MilvusTarget(DatabaseTarget):
    """A file of Milvus Lite or a Milvus server.

    The name of a table is an alias, which `replace_table` gives to another collection in one step. The primary key is
    a UUID made from the key, as the client puts keys into its filters without quoting; columns are dynamic fields.
    """

    title: ClassVar[str] = "Milvus"
    extra: ClassVar[str] = "milvus"
    precisions: ClassVar[Mapping[str, Precision]] = {"float32": "float32", "float16": "float32"}
    kinds: ClassVar[frozenset[VectorKind]] = frozenset({"dense", "sparse"})
    has_index: ClassVar[bool] = True
    # Milvus Lite writes the index of a segment while its log and its rows are still there.
    spare_disk_bytes: ClassVar[int] = 64 << 20
    # The dynamic fields of a row are at most 65,536 bytes of JSON on a server.
    largest_payload_bytes: ClassVar[int | None] = 60_000
    reserved_columns: ClassVar[frozenset[str]] = frozenset({KEY_FIELD, "$meta"})
    # Those of the collections behind tables.
    reserved_tables: ClassVar[str] = COLLECTION_NAMES
    max_dimensions: ClassVar[Mapping[str, int]] = {"float32": 32_768}

    def __init__(self, address: TargetAddress, *, read_only: bool = False) -> None:
        self._client = import_client("pymilvus", self.title, self.extra)
        self._errors = import_client("pymilvus.exceptions", self.title, self.extra)
        self._address = address
        self._loaded: set[str] = set()
        self._release: Callable[[], None] = lambda: None
        self._file = "" if "://" in address.location else address.location
        # They print what this module raises as well.
        for name in ("pymilvus", "milvus_lite"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if self._file:
            import_client("milvus_lite", self.title, self.extra)
            self._check_file(read_only)
            if not read_only:
                self._release = lock_database(f"{self._file}{LOCK_ENDING}", storage.format_location(self._file))
        try:
            self._connect(read_only)
        except BaseException:
            self._release()
            raise

    def _connect(self, read_only: bool) -> None:
        place = storage.format_location(self._file)
        # The client says no more than that it cannot open the file.
        if self._file and is_locked(os.path.join(self._file, MILVUS_LITE_LOCK)):
            raise in_use_error(place, f"{self._file}{LOCK_ENDING}" if read_only else None)
        with self._translate_errors():
            try:
                self._db = self._client.MilvusClient(
                    self._file or server_url(self._address),
                    token=os.environ.get(TOKEN_VARIABLE, "") if not self._file else "",
                    timeout=TIMEOUT_SECONDS,
                )
            except self._errors.ConnectionConfigException:
                if not self._file:
                    raise
                raise OutputError(
                    f"{place}: cannot be opened by Milvus Lite", "check its folder, its permissions and the disk"
                ) from None

    def _check_file(self, read_only: bool) -> None:
        place = storage.format_location(self._file)
        if not self._file.endswith(FILE_SUFFIX):
            raise UsageError(f"{place}: the name of a file of Milvus Lite ends with {FILE_SUFFIX}", "add .db to it")
        if os.path.isfile(self._file):
            raise UsageError(
                f"{place}: was not written by Milvus Lite 3, which keeps a folder of this name", "name another file"
            )
        if read_only and not os.path.exists(self._file):
            raise UsageError(f"{place}: there is no such file", "create it with `embedcli load`")
        if not read_only:
            storage.make_folder(os.path.dirname(os.path.abspath(self._file)))

    def close(self) -> None:
        self._db.close()
        if self._file:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(self._file)
        self._release()

    def stored_type(self, kind: pa.DataType) -> pa.DataType | None:
        return stored_payload_type(kind)

    # Tables

    def _list_aliases(self) -> dict[str, str]:
        """Return the collections by alias."""
        collections = self._db.list_collections()
        return {
            alias: collection for collection in collections for alias in self._db.list_aliases(collection)["aliases"]
        }

    def _find_collection(self, table: str) -> str | None:
        """Return the collection of a table; that of another program may have the name itself."""
        collection = self._list_aliases().get(table)
        if collection is None and self._db.has_collection(table):
            return table
        return collection

    def read_record(self, table: str) -> dict[str, Any] | None:
        with self._translate_errors():
            collection = self._find_collection(table)
            return None if collection is None else self._read_record(collection)

    def _read_record(self, collection: str) -> dict[str, Any]:
        text = self._db.describe_collection(collection).get("properties", {}).get(RECORD_KEY)
        return json.loads(text) if isinstance(text, str) else {}

    def write_record(self, table: str, record: Mapping[str, Any]) -> None:
        with self._translate_errors():
            collection = self._find_collection(table) or table
            self._db.alter_collection_properties(collection, {RECORD_KEY: json.dumps(record)})

    def create_table(self, table: str, layout: TableLayout, record: Mapping[str, Any]) -> None:
        types = self._client.DataType
        schema = self._client.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field(KEY_FIELD, types.VARCHAR, is_primary=True, max_length=UUID_CHARACTERS)
        if layout.kind == "sparse":
            schema.add_field(VECTOR_COLUMN, types.SPARSE_FLOAT_VECTOR)
        else:
            schema.add_field(VECTOR_COLUMN, types.FLOAT_VECTOR, dim=layout.dim)
        index = self._client.MilvusClient.prepare_index_params()
        kind, metric = ("SPARSE_INVERTED_INDEX", "IP") if layout.kind == "sparse" else ("AUTOINDEX", "COSINE")
        index.add_index(VECTOR_COLUMN, index_type=kind, metric_type=metric)
        with self._translate_errors():
            collection = choose_collection(
                table, self._db.list_collections(), self._list_aliases(), self._is_abandoned, self._db.drop_collection
            )
            self._db.create_collection(
                collection,
                schema=schema,
                index_params=index,
                properties={RECORD_KEY: json.dumps(record)},
                consistency_level="Strong",
            )
            self._db.create_alias(collection, table)

    def _is_abandoned(self, collection: str) -> bool:
        """Whether a collection without an alias has rows: another one has replaced it. A new one is still empty."""
        return bool(self._read_record(collection)) and self._count_rows(collection) > 0

    def drop_table(self, table: str) -> None:
        with self._translate_errors():
            collection = self._find_collection(table)
            if collection is not None:
                self._drop(collection)

    def _drop(self, collection: str) -> None:
        self._loaded.clear()
        for alias in self._db.list_aliases(collection)["aliases"]:
            self._db.drop_alias(alias)
        self._db.drop_collection(collection)

    def replace_table(self, new: str, old: str, layout: TableLayout) -> None:
        with self._translate_errors():
            aliases = self._list_aliases()
            # First, so that a run that is killed here never takes the collection that is searched for its new one.
            self._loaded.clear()
            self._db.drop_alias(new)
            change = self._db.alter_alias if old in aliases else self._db.create_alias
            change(aliases[new], old)
            if old in aliases:
                self._drop(aliases[old])

    def finish_load(self, table: str, layout: TableLayout) -> None:
        with self._translate_errors():
            self._db.flush(self._find_collection(table) or table)

    def build_index(self, table: str, layout: TableLayout) -> str:
        if layout.kind == "sparse":
            return "SPARSE_INVERTED_INDEX, which Milvus keeps by itself"
        return "AUTOINDEX, which Milvus chooses and keeps by itself"

    # Rows

    def count_rows(self, table: str) -> int:
        with self._translate_errors():
            return self._count_rows(table)

    def _load(self, table: str) -> str:
        """Make a collection ready for queries, which a file of Milvus Lite does not remember; return its name."""
        if table not in self._loaded:
            self._db.load_collection(table)
            self._loaded.add(table)
        return table

    def _count_rows(self, collection: str) -> int:
        self._load(collection)
        return int(self._db.query(collection, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def upsert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        found = rows.column(VECTOR_COLUMN)
        vectors = (
            [dict(zip(*row, strict=True)) for row in sparse_rows(found)]
            if layout.kind == "sparse"
            else dense_rows(found)
        )
        # Milvus Lite keeps the old value of what a changed row does not mention.
        nulls = dict.fromkeys(layout.kept_columns)
        sent = [
            {KEY_FIELD: key, VECTOR_COLUMN: vector, **nulls, **payload}
            for key, vector, payload in zip(make_uuids(rows, layout), vectors, make_payloads(rows, layout), strict=True)
        ]
        with self._translate_errors():
            self._db.upsert(table, sent)

    def delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        with self._translate_errors():
            self._db.delete(self._load(table), ids=make_uuids(keys, layout))

    def read_digests(self, table: str, layout: TableLayout) -> Iterator[pa.Table]:
        fields = layout.digest_columns
        with self._translate_errors():
            pages = self._db.query_iterator(
                self._load(table), batch_size=READ_ROWS, output_fields=[field.name for field in fields]
            )
        try:
            while True:
                with self._translate_errors():
                    rows = pages.next()
                if not rows:
                    return
                yield payloads_to_table(rows, fields)
        finally:
            pages.close()

    def read_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> pa.Table:
        with self._translate_errors():
            rows = self._db.get(self._load(table), ids=make_uuids(keys, layout), output_fields=["*"])
        return build_table(rows, layout, layout.schema.names)

    def find_nearest(
        self, table: str, layout: TableLayout, query: StoredVectors, count: int, columns: Sequence[str]
    ) -> pa.Table:
        if isinstance(query, SparseVectors):
            sent: Any = dict(zip(query.indices.tolist(), query.values.tolist(), strict=True))
        else:
            sent = query[0]
        with self._translate_errors():
            (hits,) = self._db.search(
                self._load(table), [sent], anns_field=VECTOR_COLUMN, limit=min(count, READ_ROWS), output_fields=["*"]
            )
        return build_table([hit["entity"] for hit in hits], layout, columns)

    # Errors

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        place = storage.format_location(str(self._address))
        try:
            yield
        except self._errors.MilvusException as error:
            problem = f"{place}: {first_line(Exception(error.message))}"
            if isinstance(error, self._errors.MilvusUnavailableException) or error.code == RATE_LIMIT_CODE:
                raise TargetBusyError(problem, "run the same command again") from error
            hint = "check the file and the disk"
            if not self._file:
                hint = f"check the address; the token is read from {TOKEN_VARIABLE}"
            raise OutputError(problem, hint) from error


def server_url(address: TargetAddress) -> str:
    """Return the address of a server for its client. Raises UsageError if there is something else in it."""
    parts = urlsplit(address.location)
    if not parts.hostname or parts.query or parts.fragment or parts.username:
        raise UsageError(
            f"{address}: only a host, a port and a collection can be given",
            "use milvus://HOST:PORT/COLLECTION, or milvus:FILE.db for a file",
        )
    scheme = "https" if parts.scheme.endswith("+https") else "http"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{scheme}://{host}:{parts.port or DEFAULT_PORT}"


def build_table(rows: Sequence[Mapping[str, Any]], layout: TableLayout, columns: Sequence[str]) -> pa.Table:
    """Build the named columns from rows that Milvus returned."""
    found = payloads_to_table(rows, [layout.schema.field(name) for name in columns if name != VECTOR_COLUMN])
    if VECTOR_COLUMN not in columns:
        return found
    vectors = [row[VECTOR_COLUMN] for row in rows]
    if layout.kind == "sparse":
        pairs = [zip(*sorted(vector.items()), strict=True) for vector in vectors]
        column = sparse_column([(tuple(indices), tuple(values)) for indices, values in pairs], layout)
    else:
        column = dense_column(vectors, layout)
    return join_vectors(found, column, layout, columns)
