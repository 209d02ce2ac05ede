"""The column of vectors of a file: which one it is, and its values as dense vectors, sparse ones or those of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import InputError, UsageError
from embedcli.core.multi_vectors import MultiVectors, concat_multi
from embedcli.core.quantization import parse_ranges
from embedcli.core.ragged import RaggedRows, offsets_of
from embedcli.core.sparse_vectors import SparseVectors, concat_sparse, empty_sparse
from embedcli.outputs.schema import head_column_name
from embedcli.outputs.vector_types import is_multi_vector_type, is_sparse_type, is_vector_type
from embedcli.outputs.writers import SPACE_METADATA_KEY

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    from embedcli.core.quantization import Ranges
    from embedcli.core.types import Int64Array, VectorKind

    StoredVectors: TypeAlias = NDArray[Any] | SparseVectors | MultiVectors

VECTOR_COLUMN_NAMES = (
    "embedding", "embeddings", "vector", "sparse_embedding", "sparse_vector", "token_embeddings", "multi_vector",
)  # fmt: skip
INDEX_BYTES = 4
# What to do about vectors that cannot be read, of embedcli or of another program.
REWRITE_HINT = "encode the rows again, or write the file again with the program that made it"
# Indices are read as int32.
MAX_DIMENSIONS = 2**31


@dataclass(frozen=True)
class VectorColumn(ABC):
    """The column of vectors of a file.

    Attributes:
        name: Its name; empty where vectors are a file of their own.
        dtype: Dtype of the stored numbers.
        width: Numbers per stored vector; of sparse vectors the number of dimensions.
        path: Path of the file, for messages.
    """

    name: str
    dtype: np.dtype[Any]
    width: int
    path: str

    @property
    @abstractmethod
    def kind(self) -> VectorKind:
        """The kind of its vectors."""

    @abstractmethod
    def to_vectors(self, column: pa.ChunkedArray) -> StoredVectors:
        """Convert values of the column to vectors. Raises InputError if they are null or not valid vectors."""

    @abstractmethod
    def mean_bytes(self, values: pa.Array) -> float:
        """Mean bytes of the stored vectors in `values`, at least one row."""

    @property
    def bytes_per_entry(self) -> int:
        """Bytes of a stored number, of sparse vectors with its index."""
        return int(self.dtype.itemsize)

    def _error(self, problem: str) -> InputError:
        return InputError(f"{storage.format_location(self.path)}: {problem}", REWRITE_HINT)


class DenseColumn(VectorColumn):
    """Lists of `width` numbers."""

    @property
    def kind(self) -> VectorKind:
        return "dense"

    def to_vectors(self, column: pa.ChunkedArray) -> NDArray[Any]:
        arrays = [chunk.flatten() for chunk in column.chunks]
        flat = pa.concat_arrays(arrays) if arrays else pa.array([], column.type.value_type)
        if len(flat) != len(column) * self.width or flat.null_count or column.null_count:
            raise self._error(f"not all vectors have {self.width} numbers")
        return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, self.width)

    def mean_bytes(self, values: pa.Array) -> float:
        return float(self.width * self.dtype.itemsize)


class SparseColumn(VectorColumn):
    """Structs of `indices` and `values`, two lists of the same length."""

    @property
    def kind(self) -> VectorKind:
        return "sparse"

    @property
    def bytes_per_entry(self) -> int:
        return INDEX_BYTES + self.dtype.itemsize

    def to_vectors(self, column: pa.ChunkedArray) -> SparseVectors:
        """Convert values of the column to vectors; rows that are none have no entries, and are listed as damaged."""
        return concat_sparse([empty_sparse(self.width), *(self._convert(chunk) for chunk in column.chunks)])

    def mean_bytes(self, values: pa.Array) -> float:
        return len(values.field("indices").flatten()) * self.bytes_per_entry / len(values)

    def _convert(self, array: pa.Array) -> SparseVectors:
        fields = [array.field(name) for name in ("indices", "values")]
        rows = [RaggedRows(part.offsets.to_numpy().astype(np.int64)) for part in fields]
        if any(are_offsets_damaged(own.offsets, part) for part, own in zip(fields, rows, strict=True)):
            raise self._error("it is not clear which entries belong to a row: the offsets of the column are damaged")
        # `flatten` would leave out the entries of lists that are null, and the offsets count them.
        lists = [
            part.values.slice(own.offsets[0], own.offsets[-1] - own.offsets[0])
            for part, own in zip(fields, rows, strict=True)
        ]
        rows = [RaggedRows(own.offsets - own.offsets[0]) for own in rows]
        damage = self._find_damage(array, fields, rows, lists)
        indices, values = (part.to_numpy(zero_copy_only=False) for part in lists)
        if damage:
            is_good = np.ones(len(array), bool)
            is_good[list(damage)] = False
            good, lengths = np.flatnonzero(is_good), np.where(is_good, rows[0].lengths, 0)
            entries = [own.list_entries(good)[1] for own in rows]
            rows, indices, values = [RaggedRows(offsets_of(lengths))], indices[entries[0]], values[entries[1]]
        return SparseVectors(
            rows[0].offsets,
            indices.astype(np.int32, copy=False),
            values.astype(np.float32, copy=False),
            self.width,
            damage,
        )

    def _find_damage(
        self, array: pa.Array, fields: list[pa.Array], rows: list[RaggedRows], lists: list[pa.Array]
    ) -> dict[int, str]:
        """Why rows of structs are not sparse vectors, by their number."""
        damage: dict[int, str] = {}

        def add(is_damaged: Any, problem: str) -> None:
            for row in np.flatnonzero(is_damaged).tolist():
                damage.setdefault(row, problem)

        for part in (array, *fields):
            if part.null_count:
                add(part.is_null().to_numpy(zero_copy_only=False), "is null")
        if not np.array_equal(rows[0].offsets, rows[1].offsets):
            add(rows[0].lengths != rows[1].lengths, "has more indices than values, or fewer")
        for part, own in zip(lists, rows, strict=True):
            if part.null_count:
                is_null = part.is_null().to_numpy(zero_copy_only=False)
                add(own.find_rows_with(is_null), "has an index or a value that is null")
        indices = lists[0].drop_null().to_numpy() if lists[0].null_count else lists[0].to_numpy()
        limit = min(self.width, MAX_DIMENSIONS)
        if len(indices) and not (indices.min() >= 0 and indices.max() < limit):
            numbers = lists[0].fill_null(0).to_numpy()
            is_outside = (numbers < 0) | (numbers >= limit)
            add(rows[0].find_rows_with(is_outside), f"has an index outside of 0 to {limit - 1}")
        return damage


class MultiVectorColumn(VectorColumn):
    """Lists of vectors of `width` numbers, one for each token."""

    @property
    def kind(self) -> VectorKind:
        return "multi_vector"

    def to_vectors(self, column: pa.ChunkedArray) -> MultiVectors:
        return concat_multi([self.empty(), *(self._convert(chunk) for chunk in column.chunks)])

    def empty(self) -> MultiVectors:
        """Vectors of no rows."""
        return MultiVectors(offsets_of([]), np.empty((0, self.width), self.dtype))

    def mean_bytes(self, values: pa.Array) -> float:
        offsets = values.offsets
        vectors: int = offsets[-1].as_py() - offsets[0].as_py()
        return vectors * self.width * self.dtype.itemsize / len(values)

    def _convert(self, array: pa.Array) -> MultiVectors:
        if array.null_count:
            raise self._error("the vectors of a row are null")
        offsets = array.offsets.to_numpy().astype(np.int64)
        if are_offsets_damaged(offsets, array):
            raise self._error("it is not clear which vectors belong to a row: the offsets of the column are damaged")
        stored = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        vectors = DenseColumn(self.name, self.dtype, self.width, self.path).to_vectors(pa.chunked_array([stored]))
        return MultiVectors(offsets - offsets[0], vectors)


def are_offsets_damaged(offsets: Int64Array, array: pa.Array) -> bool:
    """Whether the offsets of an array of lists do not ascend within its values: `flatten` reads beyond its end then."""
    return bool(offsets[0] < 0 or offsets[-1] > len(array.values) or (np.diff(offsets) < 0).any())


def open_vector_column(
    schema: pa.Schema, metadata: Mapping[str, Any], path: str, chunks: Iterable[pa.Array], name: str
) -> VectorColumn:
    """Find out what a column of vectors holds.

    Args:
        schema: All columns.
        metadata: What embedcli wrote about the file; empty for other programs' files.
        path: Path of the file, for messages.
        chunks: The column's values, not yet read. They are read where the schema and the metadata do not tell the
            width: for lists to the first row, for sparse vectors, whose largest index then counts, to the end.
        name: The column, from `find_vector_column`.
    """
    kind = schema.field(name).type
    if is_sparse_type(kind):
        dtype = np.dtype(kind.field("values").type.value_type.to_pandas_dtype())
        known = describe_column(metadata.get(SPACE_METADATA_KEY) or {}, name).get("dim")
        return SparseColumn(name, dtype, int(known or count_dimensions(chunks)), path)
    if is_multi_vector_type(kind):
        kind, chunks = kind.value_type, (chunk.flatten() for chunk in chunks)
        column: type[DenseColumn | MultiVectorColumn] = MultiVectorColumn
    else:
        column = DenseColumn
    width = kind.list_size if pa.types.is_fixed_size_list(kind) else first_length(chunks)
    return column(name, np.dtype(kind.value_type.to_pandas_dtype()), width, path)


def count_dimensions(chunks: Iterable[pa.Array]) -> int:
    """Count the dimensions of sparse vectors: their largest index + 1."""
    indices = (chunk.field("indices").flatten().drop_null().to_numpy() for chunk in chunks)
    return max((int(part.max()) + 1 for part in indices if len(part)), default=0)


def first_length(chunks: Iterable[pa.Array]) -> int:
    first = next((chunk for chunk in chunks if len(chunk)), None)
    return len(first[0]) if first is not None and first[0].is_valid else 0


def describe_column(vector_space: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The vector space metadata of one column of an output, which may have several, one for each head of its model."""
    columns: dict[str, dict[str, Any]] = vector_space.get("columns") or {}
    described = {"columns", *(key for column in columns.values() for key in column)} if columns else set()
    common = {key: value for key, value in vector_space.items() if key not in described}
    return common | columns.get(name, {})


def read_ranges(vector_space: Mapping[str, Any], path: str) -> Ranges:
    """The ranges of int8 and uint8 that an output records, for each of its columns of vectors; empty if it has none.

    Args:
        vector_space: The vector space metadata.
        path: The output, for messages.

    Raises:
        InputError: They make no sense.
    """
    names = [head_column_name(i, head) for i, head in enumerate(vector_space.get("heads") or ["dense"])]
    recorded = [describe_column(vector_space, name).get("ranges") for name in names]
    try:
        return tuple(parse_ranges(ranges) for ranges in recorded if ranges)
    except ValueError as error:
        raise meaningless_ranges_error(path, vector_space.get("precision"), error) from None


def meaningless_ranges_error(path: str, precision: Any, problem: ValueError) -> InputError:
    """The error for recorded ranges of int8 or uint8 that make no sense."""
    return InputError(
        f"{storage.format_location(path)}: the ranges of its {precision} vectors make no sense: {problem}",
        "restore the output from a copy, or encode the rows again",
    )


def find_vector_column(schema: pa.Schema, path: str, wanted: str | None = None) -> str:
    """Find the vector column: `embedding`, another usual name, or the only column of vectors.

    Lists of vectors need a usual name, or to be asked for: under another one they may be anything, such as boxes in a
    page.

    Args:
        schema: All columns.
        path: Path of the file, for messages.
        wanted: The column that the user asks for, if any.

    Raises:
        UsageError: No column holds vectors, or the one that is asked for does not.
    """
    found = [field.name for field in schema if is_vector_type(field.type) or is_sparse_type(field.type)]
    named = [*found, *(field.name for field in schema if is_multi_vector_type(field.type))]
    if wanted is not None:
        if wanted not in named:
            raise no_such_column_error(path, wanted, named)
        return wanted
    chosen = next((name for name in VECTOR_COLUMN_NAMES if name in named), found[0] if len(found) == 1 else None)
    if chosen is not None:
        return chosen
    if found:
        raise UsageError(
            f"{storage.format_location(path)}: has several columns of vectors: {', '.join(found)}",
            "use --vector-column NAME",
        )
    raise UsageError(
        f"{storage.format_location(path)}: has no column of vectors; its columns are {', '.join(schema.names)}",
        "name an output of `embedcli encode`",
    )


def no_such_column_error(path: str, name: str, found: Sequence[str]) -> UsageError:
    """The error for a column of vectors that a file does not have."""
    columns = f"its columns of vectors are {', '.join(found)}" if found else "it has no column of vectors"
    return UsageError(
        f"{storage.format_location(path)}: {name!r} is not a column of vectors; {columns}",
        "use one of these with --vector-column, or leave it out",
    )


def drop_column(schema: pa.Schema, name: str) -> pa.Schema:
    return pa.schema([field for field in schema if field.name != name])
