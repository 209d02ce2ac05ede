"""LanceDB: Lance datasets in a folder, which are written in versions: readers see one version or the next.

A table of LanceDB is the dataset `NAME.lance` in its folder. It is written through pylance, the library below LanceDB's
own client: that client takes a second to import, and adds nothing that a load needs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedcli import storage
from embedcli.core.errors import OutputError, UsageError, first_line
from embedcli.core.multi_vectors import MultiVectors
from embedcli.databases.locks import lock_table
from embedcli.databases.target import VECTOR_COLUMN, DatabaseTarget, TableLayout, import_client

if TYPE_CHECKING:
    from embedcli.core.types import Precision, VectorKind
    from embedcli.databases.address import TargetAddress
    from embedcli.outputs.vector_columns import StoredVectors

RECORD_KEY = "embedcli"
LOCK_PREFIX = ".embedcli-lock-"
ROW_ID = "_rowid"
# The engine puts the place in its own source behind what happened.
SOURCE_LOCATION = re.compile(r",? *\S+\.rs:\d+(:\d+)?")
# Rows named in one condition: the parser of conditions works through nested ORs recursively.
FILTER_ROWS = 200
FILTER_IDS = 5_000
# Every batch becomes a fragment; more of them slow searches down.
MAX_FRAGMENTS = 100
# The parameters of the index are the defaults of LanceDB; it is trained on at least this many rows.
MIN_INDEXED_ROWS = 256
HNSW_NEIGHBOURS, HNSW_CANDIDATES = 20, 300
# Candidates from the index, which stores rounded vectors, for each wanted row; they are compared by the exact ones.
REFINE_FACTOR = 10
# For vectors of tokens, each of which has candidates of its own: of 3,000 rows of random vectors, the best ten by
# MaxSim were found to 67 % with 10, 95 % with 30 and 98 % with 100, in the same time.
TOKENS_REFINE_FACTOR = 50


class LanceDBTarget(DatabaseTarget):
    """A folder of LanceDB. It does not check that keys are unique, so that a load locks the table."""

    title: ClassVar[str] = "LanceDB"
    extra: ClassVar[str] = "lancedb"
    precisions: ClassVar[Mapping[str, Precision]] = {
        "float32": "float32", "float16": "float16", "binary": "ubinary", "ubinary": "ubinary",
    }  # fmt: skip
    kinds: ClassVar[frozenset[VectorKind]] = frozenset({"dense", "multi_vector"})
    # Every batch becomes a fragment and a version: few large ones.
    batch_bytes: ClassVar[int] = 64 << 20
    has_index: ClassVar[bool] = True
    keeps_keys_unique: ClassVar[bool] = False
    index_moves_with_table: ClassVar[bool] = False
    # A point separates the names of nested fields.
    forbidden_characters: ClassVar[str] = ".`"
    reserved_columns: ClassVar[frozenset[str]] = frozenset({"_distance", "_rowid", "_rowaddr", "_score"})

    def __init__(self, address: TargetAddress, *, read_only: bool = False) -> None:
        os.environ.setdefault("LANCE_LOG", "error")  # it warns users of changes that its own developers plan
        self._lance = import_client("lance", self.title, self.extra)
        self._path = address.location
        if read_only and storage.is_local(self._path) and not os.path.isdir(self._path):
            raise UsageError(
                f"{storage.format_location(self._path)}: there is no such folder", "create it with `embedcli load`"
            )
        self._release: Callable[[], None] = lambda: None
        if not read_only:
            if storage.is_local(self._path):
                storage.make_folder(self._path)
            place = storage.format_location(self._path)
            self._release = lock_table(storage.join(self._path, LOCK_PREFIX), address.table, place)

    def close(self) -> None:
        self._release()

    def stored_type(self, kind: pa.DataType) -> pa.DataType | None:
        if pa.types.is_nested(kind):
            return kind if is_native(kind) else None
        return kind if is_native(kind) else pa.string()

    # Tables

    def read_record(self, table: str) -> dict[str, Any] | None:
        with self._translate_errors():
            if not self._has_table(table):
                return None
            metadata = self._open(table).schema.metadata or {}
        record = json.loads(metadata.get(RECORD_KEY.encode(), b"{}"))
        return record if isinstance(record, dict) else {}

    def _folder(self, table: str) -> str:
        return storage.join(self._path, f"{table}.lance")

    def _has_table(self, table: str) -> bool:
        # A folder without versions is what is left of a table whose creation was killed.
        return storage.is_folder(storage.join(self._folder(table), "_versions"))

    def _open(self, table: str) -> Any:
        return self._lance.dataset(self._folder(table))

    def _write(self, rows: Any, table: str, mode: str) -> None:
        self._lance.write_dataset(rows, self._folder(table), mode=mode)

    def write_record(self, table: str, record: Mapping[str, Any]) -> None:
        with self._translate_errors():
            self._open(table).update_schema_metadata({RECORD_KEY: json.dumps(record)})

    def create_table(self, table: str, layout: TableLayout, record: Mapping[str, Any]) -> None:
        schema = layout.schema.with_metadata({RECORD_KEY: json.dumps(record)})
        with self._translate_errors():
            self._write(schema.empty_table(), table, "create")

    def drop_table(self, table: str) -> None:
        with self._translate_errors():
            if self._has_table(table):
                self._lance.LanceDataset.drop(self._folder(table))

    def replace_table(self, new: str, old: str, layout: TableLayout) -> None:
        # Tables in folders cannot be renamed: the rows become the next version of the old table in one commit.
        with self._translate_errors():
            dataset = self._open(new)
            rows = pa.RecordBatchReader.from_batches(dataset.schema, dataset.to_batches())
            self._write(rows, old, "overwrite" if self._has_table(old) else "create")
            self.drop_table(new)

    def finish_load(self, table: str, layout: TableLayout) -> None:
        with self._translate_errors():
            dataset = self._open(table)
            if len(dataset.get_fragments()) > MAX_FRAGMENTS:
                dataset.optimize.compact_files()
            if self._has_index(dataset):
                dataset.optimize.optimize_indices()

    def _has_index(self, dataset: Any) -> bool:
        return bool(dataset.describe_indices())

    def build_index(self, table: str, layout: TableLayout) -> str:
        if layout.kind == "multi_vector" and not layout.has_unit_vectors:
            raise UsageError(
                f"{self.title}: an index compares vectors of tokens by their cosine, and those of this model have "
                "other lengths than 1",
                "leave out --index; a search compares the query with all rows, exactly",
            )
        with self._translate_errors():
            dataset = self._open(table)
            if self._has_index(dataset):
                return "was there already"
            if dataset.count_rows() < MIN_INDEXED_ROWS:
                return f"none: fewer than {MIN_INDEXED_ROWS} rows are compared with a query one by one"
            if layout.distance == "hamming":
                dataset.create_index(VECTOR_COLUMN, "IVF_FLAT", metric="hamming")
                return "IVF_FLAT"
            parameters = {"m": HNSW_NEIGHBOURS, "ef_construction": HNSW_CANDIDATES}
            # Vectors of tokens are indexed by the cosine only, which is the dot product of vectors of length 1.
            dataset.create_index(VECTOR_COLUMN, "IVF_HNSW_SQ", metric="cosine", **parameters)
        return f"IVF_HNSW_SQ (m = {HNSW_NEIGHBOURS}, ef_construction = {HNSW_CANDIDATES})"

    # Rows

    def count_rows(self, table: str) -> int:
        with self._translate_errors():
            return int(self._open(table).count_rows())

    def insert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        with self._translate_errors():
            self._write(rows.cast(layout.schema), table, "append")

    def upsert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        with self._translate_errors():
            merge = self._open(table).merge_insert(list(layout.key))
            merge.when_matched_update_all().when_not_matched_insert_all().execute(rows.cast(layout.schema))

    def delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        with self._translate_errors():
            for condition in list_conditions(keys, layout):
                self._open(table).delete(condition)

    def delete_repeats(self, table: str, layout: TableLayout) -> None:
        with self._translate_errors():
            dataset = self._open(table)
            rows = dataset.to_table(columns=list(layout.key), with_row_id=True)
            kept = rows.group_by(list(layout.key)).aggregate([(ROW_ID, "min")]).column(f"{ROW_ID}_min")
            repeats = rows.column(ROW_ID).filter(pc.invert(pc.is_in(rows.column(ROW_ID), kept))).to_pylist()
            if repeats:
                dataset.delete(f"{ROW_ID} IN ({', '.join(map(str, repeats))})")

    def read_digests(self, table: str, layout: TableLayout) -> Iterator[pa.Table]:
        fields = layout.digest_columns
        with self._translate_errors():
            for batch in self._open(table).to_batches(columns=[field.name for field in fields]):
                yield pa.Table.from_batches([batch]).cast(pa.schema(fields))

    def read_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> pa.Table:
        with self._translate_errors():
            dataset = self._open(table)
            found = [
                dataset.to_table(columns=layout.schema.names, filter=condition).cast(layout.schema)
                for condition in list_conditions(keys, layout)
            ]
        return pa.concat_tables(found) if found else layout.schema.empty_table()

    def find_nearest(
        self, table: str, layout: TableLayout, query: StoredVectors, count: int, columns: Sequence[str]
    ) -> pa.Table:
        with self._translate_errors():
            dataset = self._open(table)
            nearest = {"column": VECTOR_COLUMN, "k": count, "metric": layout.distance}
            if isinstance(query, MultiVectors):
                nearest["q"] = query.values
                nearest["metric"] = "cosine" if self._has_index(dataset) else "dot"
            else:
                nearest["q"] = np.asarray(query)[0]
            if layout.distance != "hamming":
                nearest["refine_factor"] = TOKENS_REFINE_FACTOR if layout.kind == "multi_vector" else REFINE_FACTOR
            found = dataset.to_table(columns=[*columns, "_distance"], nearest=nearest)
        return found.select(list(columns)).cast(pa.schema([layout.schema.field(name) for name in columns]))

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            reason = first_line(Exception(SOURCE_LOCATION.sub("", str(error))))
            raise OutputError(
                f"{storage.format_location(self._path)}: {reason}", "check the folder and the disk"
            ) from error


def list_conditions(keys: pa.Table, layout: TableLayout) -> Iterator[str]:
    """Yield conditions that select the rows with some keys, a part of them each."""
    columns = [[literal(value) for value in keys.column(name).to_pylist()] for name in layout.key]
    if len(columns) == 1:
        for start in range(0, keys.num_rows, FILTER_IDS):
            yield f"`{layout.key[0]}` IN ({', '.join(columns[0][start : start + FILTER_IDS])})"
        return
    rows = [join_key(layout.key, values) for values in zip(*columns, strict=True)]
    for start in range(0, len(rows), FILTER_ROWS):
        yield " OR ".join(rows[start : start + FILTER_ROWS])


def join_key(names: Iterable[str], values: Iterable[str]) -> str:
    return "(" + " AND ".join(f"`{name}` = {value}" for name, value in zip(names, values, strict=True)) + ")"


def literal(value: Any) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    # The parser reads the number before its sign, which is too large for the lowest one.
    return "(-9223372036854775807 - 1)" if value == -(1 << 63) else str(value)


def is_native(kind: pa.DataType) -> bool:
    """Whether Lance holds all values of an Arrow type, at any depth."""
    types = pa.types
    if types.is_struct(kind) and kind.num_fields != len({field.name for field in kind} - {""}):
        return False
    if types.is_struct(kind) and not kind.num_fields:
        return False
    if types.is_null(kind) or types.is_interval(kind) or types.is_union(kind) or types.is_map(kind):
        return False
    return all(is_native(kind.field(i).type) for i in range(kind.num_fields))
