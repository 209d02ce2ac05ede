"""The schema of outputs: columns, stored vectors and row groups, as Arrow tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli.core import quantization
from embedcli.core.constants import HEAD_COLUMN_PREFIX, VECTOR_COLUMN, WINDOW_COLUMNS
from embedcli.core.head_vectors import split_heads
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.core.row_vectors import as_dense
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.outputs.vector_types import sparse_type

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.quantization import Ranges
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import EncodedChunk, Float32Array, InputColumns, Int64Array, Precision, VectorKind

# Vectors per row group. Readers load whole row groups, and some fail on very large ones; 16 to 64 MB is safe.
ROW_GROUP_BYTES = 32 << 20
# Vectors of a row of a multi-vector model, for sizes that are needed before they are known: passages of 100 words.
ASSUMED_TOKENS = 128
# Terms of a sparse vector, for sizes that are needed before the vectors are known; SPLADE models keep 50 to 400.
ASSUMED_TERMS = 256


@dataclass(frozen=True)
class VectorField:
    """A column of vectors.

    Attributes:
        kind: The kind of its vectors.
        dim: Dimensions of a vector before quantization.
        precision: Number format of the stored vectors.
        ranges: float32 [2, dim], of sparse vectors [2, 1]: minimum and maximum for int8 and uint8; None for other
            precisions.
        name: Its name.
    """

    kind: VectorKind
    dim: int
    precision: Precision
    ranges: Float32Array | None = None
    name: str = VECTOR_COLUMN

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the stored numbers."""
        dtype: np.dtype[Any] = np.dtype(quantization.STORAGE_DTYPES[self.precision])
        return dtype

    @property
    def stored_width(self) -> int:
        """Numbers of a stored vector, dense or of a token."""
        return quantization.stored_width(self.dim, self.precision)

    @property
    def ranges_width(self) -> int:
        """Numbers of a row of `ranges`: all weights of sparse vectors share one."""
        return 1 if self.kind == "sparse" else self.dim

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of the column."""
        value = pa.from_numpy_dtype(self.dtype)
        if self.kind == "sparse":
            return sparse_type(value)
        vector = pa.list_(pa.field("element", value, nullable=False), self.stored_width)
        return pa.list_(pa.field("element", vector, nullable=False)) if self.kind == "multi_vector" else vector

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of one stored vector, dense or of a token; an assumption for sparse ones, whose sizes differ."""
        if self.kind == "sparse":
            return ASSUMED_TERMS * (4 + self.dtype.itemsize)
        return self.stored_width * self.dtype.itemsize

    def store(self, vectors: RowVectors) -> pa.Array:
        """Vectors as an array of the column, in their number format."""
        if isinstance(vectors, SparseVectors):
            return sparse_to_arrow(vectors, quantization.quantize_weights(vectors, self.precision, self.ranges))
        stored = np.ascontiguousarray(quantization.quantize(as_dense(vectors), self.precision, self.ranges))
        if isinstance(vectors, MultiVectors):
            return multi_to_arrow(vectors, stored, self.arrow_type)
        return pa.FixedSizeListArray.from_arrays(numpy_to_arrow(stored.reshape(-1)), type=self.arrow_type)

    def dequantize(self, stored: NDArray[Any]) -> Float32Array:
        """Stored vectors, dense or of tokens, [n, stored_width], as float32 [n, dim]."""
        return quantization.dequantize(np.asarray(stored), self.precision, self.dim, self.ranges)


@dataclass(frozen=True)
class OutputLayout:
    """The columns of an output.

    Attributes:
        input_columns: Id and kept columns of the input, with their types.
        vector_fields: The columns of vectors, in their order: one, or one for each head of the model.
        has_windows: Whether rows are windows of long texts (--overflow split).
    """

    input_columns: InputColumns
    vector_fields: tuple[VectorField, ...]
    has_windows: bool = False

    @property
    def id_name(self) -> str:
        return "row" if self.input_columns.id_column is None else "id"

    @property
    def first(self) -> VectorField:
        """The first column of vectors."""
        return self.vector_fields[0]

    @property
    def has_equal_rows(self) -> bool:
        """Whether the vectors of every row take the same number of bytes."""
        return all(field.kind == "dense" for field in self.vector_fields)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of the stored vectors of a row; an assumption for sparse and multi-vector rows, whose sizes differ."""
        return self.measure_bytes(1, ASSUMED_TOKENS)

    def measure_bytes(self, rows: int, token_vectors: int) -> int:
        """Bytes of the stored vectors of rows with a number of vectors of tokens; an assumption for sparse ones."""
        counts = [token_vectors if field.kind == "multi_vector" else rows for field in self.vector_fields]
        sizes = [field.bytes_per_vector for field in self.vector_fields]
        return sum(count * size for count, size in zip(counts, sizes, strict=True))

    def schema(self) -> pa.Schema:
        """Return the Arrow schema: `id` or `row`, `embedding`, counts and hash, window offsets if any, kept columns."""
        fields = [
            pa.field(self.id_name, self.input_columns.id_type),
            *(pa.field(field.name, field.arrow_type, nullable=False) for field in self.vector_fields),
            pa.field("n_tokens", pa.int32()),
            pa.field("truncated", pa.bool_()),
            pa.field("text_hash", pa.binary(16)),
        ]
        if self.has_windows:
            fields += [
                pa.field("window", pa.int32()),
                pa.field("char_start", pa.int64()),
                pa.field("char_end", pa.int64()),
            ]
        return pa.schema([*fields, *self.kept_columns()])

    def _store_vectors(self, vectors: RowVectors) -> list[pa.Array]:
        """Vectors as an array for each of their columns."""
        return [field.store(part) for field, part in zip(self.vector_fields, split_heads(vectors), strict=True)]

    def kept_columns(self) -> list[pa.Field]:
        fields = [pa.field(name, kind) for name, kind in self.input_columns.kept_types.items()]
        return [*fields, pa.field("source", pa.string())] if self.input_columns.has_source_column else fields

    def build_table(self, encoded: EncodedChunk) -> pa.Table:
        """Build a table with the columns of `schema()` from an encoded chunk."""
        schema = self.schema()
        rows = encoded.rows
        arrays: list[Any] = [
            take_rows(encoded.chunk.ids, rows),
            *self._store_vectors(encoded.vectors),
            numpy_to_arrow(encoded.n_tokens.astype(np.int32, copy=False)),
            pa.Array.from_buffers(
                pa.bool_(), len(rows), [None, pa.py_buffer(np.packbits(encoded.is_truncated, bitorder="little"))]
            ),
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(16), len(rows), [None, pa.py_buffer(np.ascontiguousarray(encoded.text_hash))]
            ),
        ]
        arrays += [encoded.extra_columns[name] for name in WINDOW_COLUMNS if self.has_windows]
        arrays += [take_rows(encoded.chunk.kept_columns.column(field.name), rows) for field in self.kept_columns()]
        return pa.Table.from_arrays(arrays, schema=schema)


def sparse_to_arrow(vectors: SparseVectors, weights: NDArray[Any]) -> pa.Array:
    """Sparse vectors as an array of `sparse_type`, with `weights`, [entries], in place of their values.

    Raises:
        ValueError: They have more than 2^31 entries.
    """
    if len(vectors.indices) > np.iinfo(np.int32).max:
        raise ValueError("a chunk of sparse vectors has more than 2^31 entries")
    kind = sparse_type(pa.from_numpy_dtype(weights.dtype))
    offsets = numpy_to_arrow(vectors.offsets.astype(np.int32))
    indices = pa.ListArray.from_arrays(offsets, numpy_to_arrow(vectors.indices), type=kind.field("indices").type)
    values = pa.ListArray.from_arrays(offsets, numpy_to_arrow(weights), type=kind.field("values").type)
    return pa.StructArray.from_arrays([indices, values], fields=list(kind))


def multi_to_arrow(vectors: MultiVectors, stored: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Vectors of tokens as an array of lists of vectors, with `stored`, [tokens, width], in place of their values."""
    tokens = pa.FixedSizeListArray.from_arrays(numpy_to_arrow(stored.reshape(-1)), type=kind.value_type)
    return pa.ListArray.from_arrays(numpy_to_arrow(vectors.offsets.astype(np.int32)), tokens, type=kind)


def numpy_to_arrow(values: Any) -> Any:
    """Wrap a numpy array as an Arrow array without a copy. `pa.array` would import numpy.ma, which takes 20 ms."""
    array = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), len(array), [None, pa.py_buffer(array)])


def take_rows(values: Any, rows: Int64Array) -> Any:
    """Take rows of an array or table. Returns `values` itself for all rows: the first `take` costs 0.1 s of imports."""
    is_all_rows = len(rows) == len(values) and bool(np.array_equal(rows, np.arange(len(rows))))
    return values if is_all_rows else values.take(pa.array(rows))


def regroup_tables(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of exactly `rows` rows, the last one shorter."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        while count >= rows:
            group, held = split_tables(held, rows)
            count -= rows
            # Popped, so that no second group of up to 45 MB stays in memory.
            yield group.pop()
    if count:
        yield pa.concat_tables(held)


def regroup_by_bytes(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of about `size` bytes, for rows of different sizes."""
    held: list[pa.Table] = []
    held_bytes = 0
    for table in tables:
        step = max(1, table.num_rows * size // max(1, table.nbytes))
        for start in range(0, table.num_rows, step):
            held.append(table.slice(start, step))
            held_bytes += held[-1].nbytes
            if held_bytes >= size:
                yield pa.concat_tables(held)
                held, held_bytes = [], 0
    if held:
        yield pa.concat_tables(held)


def split_tables(tables: list[pa.Table], rows: int) -> tuple[list[pa.Table], list[pa.Table]]:
    """Split off the first `rows` rows. Returns them and the rest, each as a list of one table."""
    joined = pa.concat_tables(tables)
    return [joined.slice(0, rows)], [joined.slice(rows)]


def create_vector_fields(
    dims: Mapping[VectorKind, int], precision: Precision, ranges: Ranges = ()
) -> tuple[VectorField, ...]:
    """The columns of vectors of a job.

    Args:
        dims: The dimensions of the vectors of each head, or of the model's own vectors, by their kind.
        precision: Number format of the stored vectors.
        ranges: Those of int8 and uint8, for each column; empty for other precisions.
    """
    known = ranges or [None] * len(dims)
    return tuple(
        VectorField(kind, dim, precision, own, head_column_name(position, kind))
        for position, ((kind, dim), own) in enumerate(zip(dims.items(), known, strict=True))
    )


def head_column_name(position: int, head: VectorKind) -> str:
    """The name of the column of a head: that of the first one has the usual name."""
    return VECTOR_COLUMN if position == 0 else HEAD_COLUMN_PREFIX + head


def token_vectors_from_table(table: pa.Table, name: str = VECTOR_COLUMN) -> tuple[Int64Array, Any]:
    """The stored vectors of tokens of a table.

    Args:
        table: With a column of lists of vectors of the same width.
        name: The name of that column.

    Returns:
        int64 [rows + 1], where each row's vectors begin and end; and the vectors, [tokens, width], as they are stored.
    """
    kind = table.schema.field(name).type
    chunks = [chunk for chunk in table.column(name).chunks if len(chunk)]
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    width = kind.value_type.list_size
    stored = [chunk.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in chunks]
    dtype = kind.value_type.value_type.to_pandas_dtype()
    return offsets_of(np.concatenate([*lengths, []])), np.concatenate([*stored, np.empty((0, width), dtype)])


def vectors_from_table(table: pa.Table, name: str = VECTOR_COLUMN) -> Any:
    """Return the stored vectors of a column of a table: [rows, width] in their stored dtype."""
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # zero rows
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, column.type.list_size)


def decode_metadata(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Parse the key-value pairs that embedcli wrote into the schema metadata of a file."""
    pairs = (metadata or {}).items()
    return {key.decode(): json.loads(value) for key, value in pairs if key.startswith(b"embedcli")}
