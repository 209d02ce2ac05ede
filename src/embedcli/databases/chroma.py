"""Chroma: a collection in a folder, or on a server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import OutputError, UsageError, first_line
from embedcli.databases.locks import lock_database
from embedcli.databases.payloads import (
    dense_column,
    dense_rows,
    is_kept_text,
    join_vectors,
    make_keys,
    make_payloads,
    payloads_to_table,
    stored_payload_type,
)
from embedcli.databases.target import (
    NO_SWAP_HINT,
    VECTOR_COLUMN,
    DatabaseTarget,
    TableLayout,
    TargetBusyError,
    import_client,
)

if TYPE_CHECKING:
    from embedcli.core.types import Precision
    from embedcli.databases.address import TargetAddress
    from embedcli.outputs.vector_columns import StoredVectors

DEFAULT_PORT = 8000
LOCK_NAME = ".embedcli-lock"
RECORD_KEY = "embedcli"
# The kept column that becomes the document of a row, where most programs look for its text.
DOCUMENT_COLUMN = "text"
READ_ROWS = 20_000
# Rows that are written by a request, during which a signal waits: 2 ms each on a busy machine.
REQUEST_ROWS = 250
INDEX = "hnsw, which Chroma keeps by itself"


class ChromaTarget(DatabaseTarget):
    """A Chroma folder or server.

    Vectors are compared by the inner product, which is the cosine, as all of them are normalized: the space cosine
    would scale them again.
    """

    title: ClassVar[str] = "Chroma"
    extra: ClassVar[str] = "chroma"
    precisions: ClassVar[Mapping[str, Precision]] = {"float32": "float32", "float16": "float32"}
    batch_bytes: ClassVar[int] = 4 << 20
    has_index: ClassVar[bool] = True
    keeps_lengths: ClassVar[bool] = False
    can_swap: ClassVar[bool] = False
    has_exact_floats: ClassVar[bool] = False
    stores_empty_ids: ClassVar[bool] = False
    # A name has at least three characters, the first and last of them letters or digits.
    reserved_tables: ClassVar[str] = r".{1,2}|_.*|.*_"
    reserved_columns: ClassVar[frozenset[str]] = frozenset({"chroma:document"})

    def __init__(self, address: TargetAddress, *, read_only: bool = False) -> None:
        self._client = import_client("chromadb", self.title, self.extra)
        self._errors = import_client("chromadb.errors", self.title, self.extra)
        self._http = import_client("httpx", self.title, self.extra)
        self._address = address
        self._release: Callable[[], None] = lambda: None
        settings = import_client("chromadb.config", self.title, self.extra).Settings(anonymized_telemetry=False)
        if "://" in address.location:
            with self._translate_errors():
                self._db = self._client.HttpClient(**server_arguments(address), settings=settings)
            return
        folder = address.location
        if read_only and not os.path.exists(os.path.join(folder, "chroma.sqlite3")):
            raise UsageError(
                f"{storage.format_location(folder)}: there is no such folder of Chroma",
                "create it with `embedcli load`",
            )
        if not read_only:
            storage.make_folder(folder)
            self._release = lock_database(os.path.join(folder, LOCK_NAME), storage.format_location(folder))
        with self._translate_errors():
            self._db = self._client.PersistentClient(folder, settings=settings)

    def close(self) -> None:
        self._db.close()
        # The client leaves its connections to a server open, and those of the client inside it.
        for part in (self._db, getattr(self._db, "_admin_client", None)):
            session = getattr(getattr(part, "_server", None), "_session", None)
            if session is not None:
                session.close()
        self._release()

    def stored_type(self, kind: pa.DataType) -> pa.DataType | None:
        return None if pa.types.is_nested(kind) else stored_payload_type(kind)

    # Tables

    def _find(self, table: str) -> Any:
        """Return a collection, or None."""
        try:
            return self._db.get_collection(table, embedding_function=None)
        except self._errors.NotFoundError:
            return None

    def _get(self, table: str) -> Any:
        return self._db.get_collection(table, embedding_function=None)

    def read_record(self, table: str) -> dict[str, Any] | None:
        with self._translate_errors():
            collection = self._find(table)
        if collection is None:
            return None
        text = (collection.metadata or {}).get(RECORD_KEY)
        return json.loads(text) if isinstance(text, str) else {}

    def write_record(self, table: str, record: Mapping[str, Any]) -> None:
        with self._translate_errors():
            collection = self._get(table)
            collection.modify(metadata={**(collection.metadata or {}), RECORD_KEY: json.dumps(record)})

    def create_table(self, table: str, layout: TableLayout, record: Mapping[str, Any]) -> None:
        for name in layout.schema.names:
            if name.startswith(("$", "#")):
                raise UsageError(
                    f"{self.title}: the name of the column {name!r} begins with a sign that it uses itself",
                    "rename the column, or leave it out of --keep",
                )
        with self._translate_errors():
            self._db.create_collection(
                table,
                embedding_function=None,
                metadata={RECORD_KEY: json.dumps(record)},
                configuration={"hnsw": {"space": "ip"}},
            )

    def drop_table(self, table: str) -> None:
        with self._translate_errors():
            if self._find(table) is not None:
                self._db.delete_collection(table)

    def replace_table(self, new: str, old: str, layout: TableLayout) -> None:
        raise NotImplementedError  # `can_swap` is false: a name can only be taken by a collection when it is free

    def build_index(self, table: str, layout: TableLayout) -> str:
        return INDEX

    # Rows

    def count_rows(self, table: str) -> int:
        with self._translate_errors():
            return int(self._get(table).count())

    def insert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        self._write_rows(table, layout, rows)

    def upsert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        if is_kept_text(layout, DOCUMENT_COLUMN):
            # Chroma keeps the document of a row that is sent without one.
            without = rows.filter(rows.column(DOCUMENT_COLUMN).is_null())
            if without.num_rows:
                self.delete_rows(table, layout, without)
        self._write_rows(table, layout, rows)

    def _write_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        with self._translate_errors():
            collection, step = self._get(table), min(REQUEST_ROWS, self._db.get_max_batch_size())
            for start in range(0, rows.num_rows, step):
                part = rows.slice(start, step)
                documents = part.column(DOCUMENT_COLUMN).to_pylist() if is_kept_text(layout, DOCUMENT_COLUMN) else None
                collection.upsert(
                    ids=make_keys(part, layout),
                    embeddings=dense_rows(part.column(VECTOR_COLUMN)),
                    metadatas=make_metadata(part, layout),
                    documents=documents,
                )

    def delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        with self._translate_errors():
            self._get(table).delete(ids=make_keys(keys, layout))

    def read_digests(self, table: str, layout: TableLayout) -> Iterator[pa.Table]:
        fields = layout.digest_columns
        with self._translate_errors():
            collection = self._get(table)
        offset = 0
        while True:
            with self._translate_errors():
                found = collection.get(limit=READ_ROWS, offset=offset, include=["metadatas"])
            yield payloads_to_table([row or {} for row in found["metadatas"]], fields, NO_SWAP_HINT)
            if len(found["ids"]) < READ_ROWS:
                return
            offset += READ_ROWS

    def read_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> pa.Table:
        with self._translate_errors():
            found = self._get(table).get(ids=make_keys(keys, layout), include=["metadatas", "documents", "embeddings"])
        return build_table(found["metadatas"], found["documents"], found["embeddings"], layout, layout.schema.names)

    def find_nearest(
        self, table: str, layout: TableLayout, query: StoredVectors, count: int, columns: Sequence[str]
    ) -> pa.Table:
        with self._translate_errors():
            found = self._get(table).query(
                query_embeddings=np.asarray(query, np.float32),
                n_results=count,
                include=["metadatas", "documents", "embeddings"],
            )
        return build_table(found["metadatas"][0], found["documents"][0], found["embeddings"][0], layout, columns)

    # Errors

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        place = storage.format_location(str(self._address))
        try:
            yield
        except (self._errors.RateLimitError, self._http.TransportError) as error:
            raise TargetBusyError(f"{place}: {first_line(error)}", "run the same command again") from error
        except (self._errors.ChromaError, self._http.HTTPError, ValueError) as error:
            hint = "check the address and the server" if "://" in place else "check the folder and the disk"
            raise OutputError(f"{place}: {first_line(error)}", hint) from error


def server_arguments(address: TargetAddress) -> dict[str, Any]:
    """Return host, port and encryption of a server. Raises UsageError if there is something else in the address."""
    parts = urlsplit(address.location)
    if not parts.hostname or parts.query or parts.fragment or parts.username:
        raise UsageError(
            f"{address}: only a host, a port and a collection can be given",
            "use chroma://HOST:PORT/COLLECTION, or chroma:DIR for a folder",
        )
    return {
        "host": parts.hostname,
        "port": parts.port or DEFAULT_PORT,
        "ssl": parts.scheme.endswith("+https"),
    }


def make_metadata(rows: pa.Table, layout: TableLayout) -> list[dict[str, Any]]:
    """Return the metadata of each row: its columns but the vector and the document.

    Nulls are sent, as Chroma keeps the old value of what a changed row does not mention.
    """
    has_documents = is_kept_text(layout, DOCUMENT_COLUMN)
    names = [field.name for field in layout.plain_columns if not (field.name == DOCUMENT_COLUMN and has_documents)]
    return [{name: payload.get(name) for name in names} for payload in make_payloads(rows, layout)]


def build_table(
    metadata: Sequence[Mapping[str, Any] | None],
    documents: Sequence[str | None],
    vectors: Any,
    layout: TableLayout,
    columns: Sequence[str],
) -> pa.Table:
    """Build the named columns from what Chroma returns of some rows."""
    payloads = [dict(row or {}) for row in metadata]
    if is_kept_text(layout, DOCUMENT_COLUMN):
        for payload, document in zip(payloads, documents, strict=True):
            payload[DOCUMENT_COLUMN] = document
    fields = [layout.schema.field(name) for name in columns if name != VECTOR_COLUMN]
    rows = payloads_to_table(payloads, fields, NO_SWAP_HINT)
    if VECTOR_COLUMN not in columns:
        return rows
    return join_vectors(rows, dense_column(vectors, layout), layout, columns)
