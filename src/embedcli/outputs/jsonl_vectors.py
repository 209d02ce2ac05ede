"""Files of vectors in JSON lines, read in blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import InputError, UsageError, first_line
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.core.sparse_vectors import SparseVectors, concat_sparse
from embedcli.outputs import writers
from embedcli.outputs.vector_columns import (
    REWRITE_HINT,
    VECTOR_COLUMN_NAMES,
    DenseColumn,
    MultiVectorColumn,
    SparseColumn,
    VectorColumn,
    describe_column,
    drop_column,
    no_such_column_error,
)
from embedcli.outputs.vector_files import FIRST_ROWS, VectorsAndColumns, companion_exists, table_without_columns
from embedcli.outputs.vector_types import sparse_type

if TYPE_CHECKING:
    from embedcli.outputs.vector_columns import StoredVectors


class JsonlVectorFile:
    """JSON lines, each with one vector or a list of them, and `NAME.space.json` with the metadata of embedcli's own."""

    def __init__(self, path: str, column: str | None = None) -> None:
        self.path = path
        beside = writers.space_path(path)
        found = storage.read_bytes(beside) if companion_exists(path, beside) else b"{}"
        self.metadata: Mapping[str, Any] = json.loads(found)
        first = next(self._rows(), None) or {}
        name = find_json_vector(first, path, column)
        self.column = self._open_column(name, first.get(name))
        self.schema = drop_column(pa.Table.from_pylist([first]).schema, name)

    def _open_column(self, name: str, first: Any) -> VectorColumn:
        """The column of vectors by the metadata, and by the vectors of the first row."""
        space = describe_column(self.metadata.get(writers.SPACE_METADATA_KEY) or {}, name)
        precision = str(space.get("precision", "float32"))
        dtype = np.dtype({"binary": "int8", "ubinary": "uint8"}.get(precision, precision))
        if is_sparse_json(first):
            return SparseColumn(name, dtype, int(space.get("dim") or self._count_dimensions(name)), self.path)
        if is_multi_vector_json(first) or space.get("kind") == "multi_vector":
            return MultiVectorColumn(name, dtype, len(first[0]) if first else int(space.get("dim") or 0), self.path)
        return DenseColumn(name, dtype, len(first or ()), self.path)

    @cached_property
    def row_count(self) -> int:
        """Number of rows, counted once by reading the file."""
        with open(storage.local_copy(self.path), "rb") as lines:
            return sum(1 for line in lines if line.strip())

    @cached_property
    def bytes_per_row(self) -> float:
        """Bytes of the stored vectors of a row; of rows of different sizes the mean of the first ones."""
        if self.column.kind == "dense":
            return float(self.column.width * self.column.dtype.itemsize)
        first = list(islice(self._rows(), FIRST_ROWS))
        if not first:
            return 0.0
        if isinstance(self.column, SparseColumn):
            return len(self._sparse_vectors(first, self.column).indices) * self.column.bytes_per_entry / len(first)
        return self._multi_vectors(first).values.nbytes / len(first)

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        rows = self._rows()
        while held := list(islice(rows, size)):
            table = self._table(held, columns) if columns else table_without_columns(len(held))
            yield self._vectors(held), table

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        wanted = set(rows)
        return self._table([row for i, row in enumerate(self._rows()) if i in wanted], columns)

    def _rows(self) -> Iterator[dict[str, Any]]:
        import orjson

        with open(storage.local_copy(self.path), "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield orjson.loads(line)
                    except ValueError as error:
                        place = storage.format_location(self.path, number)
                        raise InputError(f"{place}: not JSON: {error}", "encode the rows again") from None

    def _vectors(self, rows: list[dict[str, Any]]) -> StoredVectors:
        if isinstance(self.column, SparseColumn):
            return self._sparse_vectors(rows, self.column)
        if isinstance(self.column, MultiVectorColumn):
            return self._multi_vectors(rows)
        width = self.column.width
        try:
            return np.array([row[self.column.name] for row in rows], self.column.dtype).reshape(len(rows), width)
        except (KeyError, ValueError, TypeError):
            message = f"{storage.format_location(self.path)}: not all vectors have {width} numbers"
            raise InputError(message, REWRITE_HINT) from None

    def _sparse_vectors(self, rows: list[dict[str, Any]], column: SparseColumn) -> SparseVectors:
        """The vectors of rows. JSON values of other types have no entries, and are listed as damaged."""
        try:
            return column.to_vectors(pa.chunked_array([self._sparse_array(rows)]))
        except (OverflowError, TypeError, pa.ArrowException):
            pass  # each row is converted alone below
        parts, damage = [], {}
        for number, row in enumerate(rows):
            try:
                array = self._sparse_array([row])
            except (OverflowError, TypeError, pa.ArrowException) as error:
                array = self._sparse_array([{}])
                damage[number] = f"does not have indices and values: {first_line(error)}"
            parts.append(column.to_vectors(pa.chunked_array([array])))
        vectors = concat_sparse(parts)
        return replace(vectors, damage={**vectors.damage, **damage})

    def _multi_vectors(self, rows: list[dict[str, Any]]) -> MultiVectors:
        name, width, dtype = self.column.name, self.column.width, self.column.dtype
        try:
            # A row without vectors has no second dimension.
            parts = [np.array(row[name], dtype).reshape(len(row[name]), width) for row in rows]
        except (KeyError, OverflowError, ValueError, TypeError):
            message = f"{storage.format_location(self.path)}: not all rows are lists of vectors of {width} numbers"
            raise InputError(message, "encode the rows again") from None
        return MultiVectors(offsets_of([len(part) for part in parts]), np.concatenate(parts))

    def _sparse_array(self, rows: list[dict[str, Any]]) -> pa.Array:
        return pa.array([row.get(self.column.name) for row in rows], sparse_type(pa.float32()))

    def _count_dimensions(self, name: str) -> int:
        """The largest index of sparse vectors + 1, found by reading the file; damaged vectors do not count."""
        dimensions = 0
        for row in self._rows():
            with suppress(KeyError, TypeError, ValueError):
                dimensions = max(dimensions, int(max(row[name]["indices"], default=-1)) + 1)
        return dimensions

    def _table(self, rows: list[dict[str, Any]], columns: Sequence[str]) -> pa.Table:
        return pa.table({name: json_values_to_column([row.get(name) for row in rows]) for name in columns})


def find_json_vector(row: dict[str, Any], path: str, wanted: str | None = None) -> str:
    """Find the field of a row that holds its vector.

    Args:
        row: The first row; empty if there is none.
        path: Path of the file, for messages.
        wanted: The field that the user asks for, if any.

    Raises:
        UsageError: The row has none of the usual names, or the field that is asked for holds no vectors.
    """
    if wanted is not None:
        holding = [name for name, value in row.items() if is_json_vector(value)]
        if row and wanted not in holding:
            raise no_such_column_error(path, wanted, holding)
        return wanted
    found = [name for name in VECTOR_COLUMN_NAMES if isinstance(row.get(name), list) or is_sparse_json(row.get(name))]
    name = found[0] if found else VECTOR_COLUMN_NAMES[0]
    if row and name not in row:
        raise UsageError(
            f"{storage.format_location(path)}: the rows hold no vectors; their fields are {', '.join(row)}",
            "name an output of `embedcli encode`",
        )
    return name


def is_json_vector(value: Any) -> bool:
    """Whether a JSON value is a vector, numbers or a sparse one, or a list of vectors."""
    is_list = isinstance(value, list) and all(isinstance(x, int | float) for x in value)
    return is_list or is_sparse_json(value) or is_multi_vector_json(value)


def is_sparse_json(value: Any) -> bool:
    """Whether a JSON value is a sparse vector: an object with `indices` and `values`."""
    return isinstance(value, dict) and set(value) == {"indices", "values"}


def is_multi_vector_json(value: Any) -> bool:
    """Whether a JSON value is a list of vectors."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)


def json_values_to_column(values: list[Any]) -> pa.Array:
    """Convert JSON values to a column of their common type, or of JSON texts if they have none."""
    try:
        return pa.array(values)
    except (OverflowError, pa.ArrowException):
        pass
    try:
        return pa.array(values, pa.uint64())
    except (OverflowError, pa.ArrowException):
        texts = [value if isinstance(value, str | None) else json.dumps(value) for value in values]
        return pa.array(texts, pa.string())
