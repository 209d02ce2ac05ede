"""Qdrant Edge: the engine of Qdrant in this process, with a folder for each table.

`embedcli.json` has the records of all tables and names the folder of the points of each, such as `docs-4f5e1c0b`:
replacing this file replaces record and rows in one step. It also names the folders that are to be removed, as only
those may be: any other folder may belong to another program.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import OutputError, UsageError, first_line
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.databases.locks import in_use_error, is_locked, lock_database
from embedcli.databases.payloads import (
    make_payloads,
    make_uuids,
    multi_vector_rows,
    payloads_to_table,
    points_to_table,
    select_payload,
    sparse_rows,
    stored_payload_type,
    view_dense_rows,
)
from embedcli.databases.target import SWAP_SUFFIX, VECTOR_COLUMN, DatabaseTarget, TableLayout, import_client

if TYPE_CHECKING:
    from embedcli.core.types import Precision, VectorKind
    from embedcli.databases.address import TargetAddress
    from embedcli.outputs.vector_columns import StoredVectors

TABLES_NAME = "embedcli.json"
SHARD_NAME = re.compile(r"[A-Za-z0-9_]+-[0-9a-f]{8}")
LOCK_NAME = ".embedcli-lock"
# What the engine locks in the folder of a shard: this folder.
WAL_FOLDER = "wal"
READ_ROWS = 10_000
# The defaults of Qdrant.
INDEXED_KILOBYTES = 10_000
HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000}


class QdrantEdgeTarget(DatabaseTarget):
    """A folder of shards of Qdrant Edge. Points are those of `QdrantTarget`."""

    title: ClassVar[str] = "Qdrant Edge"
    extra: ClassVar[str] = "qdrant-edge"
    precisions: ClassVar[Mapping[str, Precision]] = {"float32": "float32", "float16": "float16"}
    kinds: ClassVar[frozenset[VectorKind]] = frozenset({"dense", "sparse", "multi_vector"})
    # Each batch is flushed, which waits for the disk.
    batch_bytes: ClassVar[int] = 32 << 20
    has_index: ClassVar[bool] = True
    # Its log and its storage are mapped files of 32 MB, whose pages take space when they are written.
    spare_disk_bytes: ClassVar[int] = 64 << 20
    keeps_lengths: ClassVar[bool] = False
    has_exact_floats: ClassVar[bool] = False
    max_dimensions: ClassVar[Mapping[str, int]] = {"float32": 65_536, "float16": 65_536}

    def __init__(self, address: TargetAddress, *, read_only: bool = False) -> None:
        self._client = import_client("qdrant_edge", self.title, self.extra)
        self._folder = address.location
        self._shards: dict[str, Any] = {}
        self._read_only = read_only
        self._release: Callable[[], None] = lambda: None
        if read_only:
            if not os.path.isdir(self._folder):
                raise UsageError(
                    f"{storage.format_location(self._folder)}: there is no such folder",
                    "create it with `embedcli load`",
                )
            return
        storage.make_folder(self._folder)
        self._release = lock_database(self._lock_path, storage.format_location(self._folder))

    @property
    def _lock_path(self) -> str:
        return os.path.join(self._folder, LOCK_NAME)

    def close(self) -> None:
        for folder in list(self._shards):
            self._close_shard(folder)
        self._release()

    def stored_type(self, kind: pa.DataType) -> pa.DataType | None:
        return stored_payload_type(kind)

    # Shards

    def _read_lists(self) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Return what is written about each table, and the folders that no table needs.

        Each table has `folder`, that of its shard, and `record`.
        """
        path = os.path.join(self._folder, TABLES_NAME)
        if not os.path.exists(path):
            return {}, []
        try:
            with storage.translate_input_errors(path), open(path, "rb") as file:
                found = json.loads(file.read())
            tables, unused = dict(found["tables"]), list(found["unused"])
            if all(SHARD_NAME.fullmatch(name) for name in [*unused, *(entry["folder"] for entry in tables.values())]):
                return tables, unused
        except (AttributeError, KeyError, TypeError, ValueError):
            pass
        raise UsageError(f"{storage.format_location(path)}: was not written by `embedcli load`", "name another folder")

    def _read_tables(self) -> dict[str, dict[str, Any]]:
        return self._read_lists()[0]

    def _write_lists(self, tables: Mapping[str, Mapping[str, Any]], unused: Sequence[str] = ()) -> None:
        with storage.write_atomically(os.path.join(self._folder, TABLES_NAME)) as file:
            file.write(json.dumps({"tables": tables, "unused": list(unused)}).encode())

    def _open(self, table: str) -> Any:
        folder = self._read_tables()[table]["folder"]
        if folder not in self._shards:
            path = os.path.join(self._folder, folder)
            # The engine says no more than that its log would block.
            if is_locked(os.path.join(path, WAL_FOLDER)):
                raise in_use_error(storage.format_location(self._folder), self._lock_path if self._read_only else None)
            with self._translate_errors():
                self._shards[folder] = self._client.EdgeShard.load(path)
        return self._shards[folder]

    def _close_shard(self, folder: str) -> None:
        shard = self._shards.pop(folder, None)
        if shard is not None:
            with self._translate_errors():
                shard.close()

    def _remove_unused(self) -> None:
        """Remove the folders that no table needs, also those that a killed run has left behind."""
        tables, unused = self._read_lists()
        for folder in unused:
            self._close_shard(folder)
            path = os.path.join(self._folder, folder)
            if os.path.isdir(path):
                with storage.translate_output_errors(path):
                    shutil.rmtree(path)
        if unused:
            self._write_lists(tables)

    # Tables

    def read_record(self, table: str) -> dict[str, Any] | None:
        entry = self._read_tables().get(table)
        if entry is not None:
            return dict(entry["record"])
        return {} if os.path.exists(os.path.join(self._folder, table)) else None

    def write_record(self, table: str, record: Mapping[str, Any]) -> None:
        tables, unused = self._read_lists()
        self._write_lists({**tables, table: {**tables[table], "record": record}}, unused)

    def create_table(self, table: str, layout: TableLayout, record: Mapping[str, Any]) -> None:
        self._remove_unused()
        tables = self._read_tables()
        folder = f"{table.removesuffix(SWAP_SUFFIX)}-{secrets.token_hex(4)}"
        self._write_lists(tables, [folder])
        path = os.path.join(self._folder, folder)
        storage.make_folder(path)
        edge = self._client
        if layout.kind == "sparse":
            vectors = {"sparse_vectors": {VECTOR_COLUMN: edge.EdgeSparseVectorParams()}}
        else:
            number = edge.VectorStorageDatatype
            datatype = number.Float16 if layout.precision == "float16" else number.Float32
            several = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
            parameters = edge.EdgeVectorParams(
                layout.dim,
                edge.Distance.Dot,
                datatype=datatype,
                multivector_config=several if layout.kind == "multi_vector" else None,
            )
            vectors = {"vectors": parameters}
        with self._translate_errors():
            config = edge.EdgeConfig(**vectors, hnsw_config=edge.HnswIndexConfig(**HNSW))
            self._shards[folder] = edge.EdgeShard.create(path, config)
        self._write_lists({**tables, table: {"folder": folder, "record": record}})

    def drop_table(self, table: str) -> None:
        tables, unused = self._read_lists()
        entry = tables.pop(table, None)
        if entry is not None:
            self._write_lists(tables, [*unused, entry["folder"]])
            self._remove_unused()

    def replace_table(self, new: str, old: str, layout: TableLayout) -> None:
        tables, unused = self._read_lists()
        if old in tables:
            unused.append(tables[old]["folder"])
        tables[old] = tables.pop(new)
        self._write_lists(tables, unused)
        self._remove_unused()

    def build_index(self, table: str, layout: TableLayout) -> str:
        shard = self._open(table)
        with self._translate_errors():
            shard.optimize()
            indexed = shard.info().indexed_vectors_count
        if layout.kind == "sparse":
            return "inverted index"
        if not indexed:
            return (
                f"none yet: vectors of less than {INDEXED_KILOBYTES // 1000:,} MB are compared with a query one by one"
            )
        return f"hnsw (m = {HNSW['m']}, ef_construct = {HNSW['ef_construct']}), {indexed:,} vectors in it"

    # Rows

    def count_rows(self, table: str) -> int:
        shard = self._open(table)
        with self._translate_errors():
            return int(shard.count(self._client.CountRequest(exact=True)))

    def upsert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        vectors = self._encode_vectors(rows.column(VECTOR_COLUMN), layout)
        points = [
            self._client.Point(*point)
            for point in zip(make_uuids(rows, layout), vectors, make_payloads(rows, layout), strict=True)
        ]
        self._update(table, self._client.UpdateOperation.upsert_points(points))

    def _encode_vectors(self, vectors: Any, layout: TableLayout) -> Any:
        if layout.kind == "sparse":
            return [{VECTOR_COLUMN: self._client.SparseVector(*row)} for row in sparse_rows(vectors)]
        # The engine reads a view in half the time of an array or a list.
        return multi_vector_rows(vectors) if layout.kind == "multi_vector" else view_dense_rows(vectors)

    def _update(self, table: str, operation: Any) -> None:
        shard = self._open(table)
        with self._translate_errors():
            shard.update(operation)
            shard.flush()

    def delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        self._update(table, self._client.UpdateOperation.delete_points(make_uuids(keys, layout)))

    def read_digests(self, table: str, layout: TableLayout) -> Iterator[pa.Table]:
        shard, offset = self._open(table), None
        fields = layout.digest_columns
        while True:
            with self._translate_errors():
                request = self._client.ScrollRequest(
                    offset=offset, limit=READ_ROWS, with_payload=select_payload([field.name for field in fields])
                )
                points, offset = shard.scroll(request)
            yield payloads_to_table([point.payload or {} for point in points], fields)
            if offset is None:
                return

    def read_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> pa.Table:
        shard = self._open(table)
        with self._translate_errors():
            points = shard.retrieve(make_uuids(keys, layout), with_payload=True, with_vector=True)
        return points_to_table(points, layout, layout.schema.names)

    def find_nearest(
        self, table: str, layout: TableLayout, query: StoredVectors, count: int, columns: Sequence[str]
    ) -> pa.Table:
        shard, edge = self._open(table), self._client
        with self._translate_errors():
            if isinstance(query, SparseVectors):
                vector = edge.SparseVector(query.indices.tolist(), query.values.tolist())
                nearest = edge.Query.Nearest(vector, using=VECTOR_COLUMN)
            elif isinstance(query, MultiVectors):
                nearest = edge.Query.Nearest(query.values.tolist())
            else:
                nearest = edge.Query.Nearest(np.asarray(query)[0].tolist())
            points = shard.query(
                edge.QueryRequest(
                    limit=count,
                    query=nearest,
                    with_payload=select_payload([name for name in columns if name != VECTOR_COLUMN]),
                    with_vector=VECTOR_COLUMN in columns,
                )
            )
        return points_to_table(points, layout, columns)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the engine raises nothing more precise
            raise OutputError(
                f"{storage.format_location(self._folder)}: {first_line(error)}",
                "check the folder and the disk",
            ) from error
