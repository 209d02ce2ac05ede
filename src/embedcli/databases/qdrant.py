"""Qdrant: a collection of points under an alias, by the REST interface of a server."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from embedcli.core.errors import OutputError, UsageError, first_line
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.databases.address import is_loopback
from embedcli.databases.aliased_collections import COLLECTION_NAMES, choose_collection
from embedcli.databases.payloads import (
    dense_rows,
    make_payloads,
    make_uuids,
    multi_vector_rows,
    payloads_to_table,
    points_to_table,
    select_payload,
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

KEY_VARIABLE = "QDRANT_API_KEY"
DEFAULT_PORT = 6333
TIMEOUT_SECONDS = 120
# The key of the record in the metadata of a collection, as JSON text: the server merges objects instead of replacing.
RECORD_KEY = "embedcli"
READ_ROWS = 10_000
POLL_SECONDS = 0.5
# The server is overloaded, restarts, or is behind a proxy that waits for it.
BUSY_STATUS = (429, 502, 503, 504)


class QdrantTarget(DatabaseTarget):
    """A Qdrant server.

    The name of a table is an alias, which `replace_table` gives to another collection in one step. Dense vectors are
    the default vector of a point and compared by the dot product, which is the cosine, as all of them are normalized:
    the distance Cosine would scale them again. Sparse vectors are named `embedding`, as each sparse vector must be.
    """

    title: ClassVar[str] = "Qdrant"
    extra: ClassVar[str] = "qdrant"
    precisions: ClassVar[Mapping[str, Precision]] = {"float32": "float32", "float16": "float16"}
    kinds: ClassVar[frozenset[VectorKind]] = frozenset({"dense", "sparse", "multi_vector"})
    # A server takes requests of 32 MB, in which a number of 4 bytes has up to 20 characters.
    batch_bytes: ClassVar[int] = 2 << 20
    largest_row_bytes: ClassVar[int | None] = 4 << 20
    parallel_requests: ClassVar[int] = 4
    has_index: ClassVar[bool] = True
    keeps_lengths: ClassVar[bool] = False
    has_exact_floats: ClassVar[bool] = False
    # Those of the collections behind tables.
    reserved_tables: ClassVar[str] = COLLECTION_NAMES
    max_dimensions: ClassVar[Mapping[str, int]] = {"float32": 65_536, "float16": 65_536}

    def __init__(self, address: TargetAddress, *, read_only: bool = False) -> None:
        client = import_client("qdrant_client", self.title, self.extra)
        self._errors = import_client("qdrant_client.http.exceptions", self.title, self.extra)
        self._common_errors = import_client("qdrant_client.common.client_exceptions", self.title, self.extra)
        self._models = client.models
        self._address = address
        url, key = urlsplit(server_url(address)), os.environ.get(KEY_VARIABLE) or None
        is_local = is_loopback(url.hostname or "")
        if key and url.scheme == "http" and not is_local:
            self.notes = [f"the key travels unencrypted to {url.hostname}: use qdrant+https:// where you can"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same in other words
            self._client = client.QdrantClient(
                url=url.geturl(),
                api_key=key,
                timeout=TIMEOUT_SECONDS,
                check_compatibility=False,
                trust_env=not is_local,  # proxies
            )
        try:
            with self._translate_errors():
                self._client.get_aliases()
        except OutputError:
            self._client.close()
            raise

    def close(self) -> None:
        self._client.close()

    def stored_type(self, kind: pa.DataType) -> pa.DataType | None:
        return stored_payload_type(kind)

    # Tables

    def _list_aliases(self) -> dict[str, str]:
        """Return the collections by alias."""
        return {alias.alias_name: alias.collection_name for alias in self._client.get_aliases().aliases}

    def _find_collection(self, table: str) -> str | None:
        """Return the collection of a table; that of another program may have the name itself."""
        collection = self._list_aliases().get(table)
        if collection is None and self._client.collection_exists(table):
            return table
        return collection

    def read_record(self, table: str) -> dict[str, Any] | None:
        with self._translate_errors():
            collection = self._find_collection(table)
            if collection is None:
                return None
            return self._read_record(collection)

    def _read_record(self, collection: str) -> dict[str, Any]:
        metadata = self._client.get_collection(collection).config.metadata or {}
        text = metadata.get(RECORD_KEY)
        return json.loads(text) if isinstance(text, str) else {}

    def write_record(self, table: str, record: Mapping[str, Any]) -> None:
        with self._translate_errors():
            self._client.update_collection(
                self._find_collection(table) or table, metadata={RECORD_KEY: json.dumps(record)}
            )

    def create_table(self, table: str, layout: TableLayout, record: Mapping[str, Any]) -> None:
        with self._translate_errors():
            names = [found.name for found in self._client.get_collections().collections]
            collection = choose_collection(
                table, names, self._list_aliases(), self._is_abandoned, self._client.delete_collection
            )
            self._client.create_collection(
                collection, **self._vector_parameters(layout), metadata={RECORD_KEY: json.dumps(record)}
            )
            if not self._read_record(collection):
                self._client.delete_collection(collection)
                raise UsageError(
                    f"{self._address}: the server does not keep metadata of collections, where the vector space is "
                    "recorded",
                    "install Qdrant 1.16 or later",
                )
            self._change_aliases(created={table: collection})

    def _is_abandoned(self, collection: str) -> bool:
        """Whether a collection without an alias has rows: another one has replaced it. A new one is still empty."""
        return bool(self._read_record(collection)) and self._client.count(collection).count > 0

    def _vector_parameters(self, layout: TableLayout) -> dict[str, Any]:
        models = self._models
        if layout.kind == "sparse":
            return {"sparse_vectors_config": {VECTOR_COLUMN: models.SparseVectorParams()}}
        datatype = models.Datatype.FLOAT16 if layout.precision == "float16" else models.Datatype.FLOAT32
        parameters = models.VectorParams(size=layout.dim, distance=models.Distance.DOT, datatype=datatype)
        if layout.kind == "multi_vector":
            comparator = models.MultiVectorComparator.MAX_SIM
            parameters.multivector_config = models.MultiVectorConfig(comparator=comparator)
        return {"vectors_config": parameters}

    def _change_aliases(self, created: Mapping[str, str], deleted: Sequence[str] = ()) -> None:
        models = self._models
        changes: list[Any] = [
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name)) for name in deleted
        ]
        changes += [
            models.CreateAliasOperation(create_alias=models.CreateAlias(alias_name=name, collection_name=collection))
            for name, collection in created.items()
        ]
        self._client.update_collection_aliases(changes)

    def drop_table(self, table: str) -> None:
        with self._translate_errors():
            collection = self._find_collection(table)
            if collection is not None:
                self._client.delete_collection(collection)

    def replace_table(self, new: str, old: str, layout: TableLayout) -> None:
        with self._translate_errors():
            aliases = self._list_aliases()
            self._change_aliases({old: aliases[new]}, [name for name in (new, old) if name in aliases])
            if old in aliases:
                self._client.delete_collection(aliases[old])

    def build_index(self, table: str, layout: TableLayout) -> str:
        """Wait for the index, which the server builds by itself in the background."""
        with self._translate_errors():
            while True:
                info = self._client.get_collection(table)
                if info.status == self._models.CollectionStatus.GREEN:
                    break
                if info.status == self._models.CollectionStatus.RED:
                    raise OutputError(
                        f"{self._address}: the server could not build the index", "see the log of the server"
                    )
                if info.status == self._models.CollectionStatus.GREY:
                    # Optimizations wait for a change of the collection after the server was started again.
                    self._client.update_collection(
                        self._find_collection(table) or table,
                        optimizers_config=self._models.OptimizersConfigDiff(),
                    )
                time.sleep(POLL_SECONDS)
        if layout.kind == "sparse":
            return "inverted index, which the server keeps by itself"
        hnsw = info.config.hnsw_config
        built = f"{info.indexed_vectors_count or 0:,} vectors in it"
        return f"hnsw (m = {hnsw.m}, ef_construct = {hnsw.ef_construct}), which the server builds by itself; {built}"

    # Rows

    def count_rows(self, table: str) -> int:
        with self._translate_errors():
            return int(self._client.count(table, exact=True).count)

    def upsert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        points = self._models.Batch(
            ids=make_uuids(rows, layout),
            vectors=self._encode_vectors(rows.column(VECTOR_COLUMN), layout),
            payloads=make_payloads(rows, layout),
        )
        with self._translate_errors():
            self._check_done(self._client.upsert(table, points, wait=True))

    def _encode_vectors(self, vectors: Any, layout: TableLayout) -> Any:
        if layout.kind == "sparse":
            return {VECTOR_COLUMN: [self._sparse_vector(*row) for row in sparse_rows(vectors)]}
        if layout.kind == "multi_vector":
            return multi_vector_rows(vectors)
        return dense_rows(vectors).tolist()

    def _sparse_vector(self, indices: Sequence[int], values: Sequence[float]) -> Any:
        return self._models.SparseVector(indices=list(indices), values=list(values))

    def _check_done(self, result: Any) -> None:
        if result.status != self._models.UpdateStatus.COMPLETED:
            raise TargetBusyError(f"{self._address}: the server has not applied the rows in time", "run again later")

    def delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        points = self._models.PointIdsList(points=make_uuids(keys, layout))
        with self._translate_errors():
            self._check_done(self._client.delete(table, points, wait=True))

    def read_digests(self, table: str, layout: TableLayout) -> Iterator[pa.Table]:
        fields = layout.digest_columns
        offset = None
        while True:
            with self._translate_errors():
                points, offset = self._client.scroll(
                    table,
                    limit=READ_ROWS,
                    offset=offset,
                    with_payload=select_payload([field.name for field in fields]),
                    with_vectors=False,
                )
            yield payloads_to_table([point.payload or {} for point in points], fields)
            if offset is None:
                return

    def read_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> pa.Table:
        with self._translate_errors():
            points = self._client.retrieve(table, make_uuids(keys, layout), with_payload=True, with_vectors=True)
        return points_to_table(points, layout, layout.schema.names)

    def find_nearest(
        self, table: str, layout: TableLayout, query: StoredVectors, count: int, columns: Sequence[str]
    ) -> pa.Table:
        if isinstance(query, SparseVectors):
            sent = {"query": self._sparse_vector(query.indices.tolist(), query.values.tolist()), "using": VECTOR_COLUMN}
        elif isinstance(query, MultiVectors):
            sent = {"query": query.values.tolist()}
        else:
            sent = {"query": np.asarray(query)[0].tolist()}
        with self._translate_errors():
            found = self._client.query_points(
                table,
                **sent,
                limit=count,
                with_payload=select_payload([name for name in columns if name != VECTOR_COLUMN]),
                with_vectors=VECTOR_COLUMN in columns,
            )
        return points_to_table(found.points, layout, columns)

    # Errors

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except self._errors.UnexpectedResponse as error:
            kind = TargetBusyError if error.status_code in BUSY_STATUS else OutputError
            hint = "see the log of the server"
            if error.status_code in (401, 403):
                hint = f"put the key of the server into the variable {KEY_VARIABLE}"
            raise kind(f"{self._address}: {describe_response(error)}", hint) from None
        except self._common_errors.ResourceExhaustedResponse as error:
            raise TargetBusyError(f"{self._address}: {first_line(error)}", "run the same command again") from None
        except self._errors.ResponseHandlingException as error:
            raise TargetBusyError(
                f"{self._address}: no usable answer: {first_line(error.source)}", "check the address and the server"
            ) from None


def server_url(address: TargetAddress) -> str:
    """Return the address of the REST interface.

    Raises:
        UsageError: There is no server in the address, or something behind the name of the collection.
    """
    parts = urlsplit(address.location)
    if not parts.hostname:
        raise UsageError(
            f"{address}: names no server",
            "use qdrant://HOST:PORT/COLLECTION, or qdrant-edge:DIR for a folder",
        )
    if parts.query or parts.fragment or parts.username:
        raise UsageError(
            f"{address}: only a host, a port and a collection can be given", "use qdrant://HOST:PORT/COLLECTION"
        )
    scheme = "https" if parts.scheme.endswith("+https") else "http"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{scheme}://{host}:{parts.port or DEFAULT_PORT}"


def describe_response(error: Any) -> str:
    """Return what the server says about an error."""
    try:
        said = json.loads(error.content)["status"]["error"]
    except (KeyError, TypeError, ValueError):
        said = error.reason_phrase or "no reason given"
    return f"status {error.status_code}: {said}"
