"""Stream the rows of an output in the columns and types of a table, with the digest of each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli.analysis.similarities import normalize
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.databases.columns import columns_to_read, combine_chunks, convert_column, digest_rows, is_dequantized
from embedcli.databases.target import DIGEST_BYTES, DIGEST_COLUMN, SOURCE_FIELD, VECTOR_COLUMN, TableLayout
from embedcli.outputs import writers
from embedcli.outputs.dataset import VectorDataset
from embedcli.outputs.duplicate_ids import hash_ids
from embedcli.outputs.schema import multi_to_arrow, numpy_to_arrow, sparse_to_arrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import BoolArray, Int64Array
    from embedcli.outputs.dataset import VectorBlock
    from embedcli.outputs.vector_files import VectorFile


@dataclass(frozen=True)
class RowBatch:
    """Successive rows of an output in stored types.

    Attributes:
        table: The columns of the layout.
        positions: int64 [n], the position of each row in the output, from 0.
    """

    table: pa.Table
    positions: Int64Array

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def filter(self, mask: BoolArray) -> RowBatch:
        """Take the rows of a mask, bool [n]."""
        if mask.all():
            return self
        return RowBatch(self.table.filter(pa.array(mask)), self.positions[mask])

    @property
    def digests(self) -> NDArray[Any]:
        return digest_array(self.table)


def read_rows(dataset: VectorDataset, layout: TableLayout, skipped: frozenset[str] = frozenset()) -> Iterator[RowBatch]:
    """Yield the rows of an output in order, in batches of about 8 MB of vectors.

    Args:
        dataset: The output.
        layout: The columns of the table.
        skipped: Paths of files of the output that are not read.
    """
    first_row = 0
    names = columns_to_read(dataset)
    for part in dataset.vector_files:
        if part.path not in skipped:
            for block in open_part(dataset, part).read_blocks(names):
                yield convert_block(dataset, replace(block, first_row=first_row + block.first_row), layout)
        first_row += part.row_count


def open_part(dataset: VectorDataset, part: VectorFile) -> VectorDataset:
    """Return one file of an output as an output of its own."""
    metadata = {
        writers.SPACE_METADATA_KEY: dataset.vector_space,
        writers.JOB_METADATA_KEY: dataset.job_manifest,
    }
    return VectorDataset(dataset.path, [part], metadata)


def convert_block(dataset: VectorDataset, block: VectorBlock, layout: TableLayout) -> RowBatch:
    """Convert a block of an output to the columns of a table."""
    arrays: dict[str, pa.Array] = {layout.key[0]: convert_column(dataset.block_ids(block), layout.schema.field(0))}
    for field in layout.schema:
        if field.name == VECTOR_COLUMN:
            vectors = dataset.block_vectors(block) if is_dequantized(dataset) else block.vectors
            arrays[field.name] = convert_vectors(vectors, dataset.precision, layout)
        elif field.metadata == SOURCE_FIELD and field.name not in block.columns.column_names:
            arrays[field.name] = pa.nulls(len(block), field.type)
        elif field.name not in arrays and field.name != DIGEST_COLUMN:
            arrays[field.name] = convert_column(block.columns.column(field.name), field)
    table = pa.table(arrays)
    hashes = combine_chunks(block.columns.column("text_hash")) if "text_hash" in block.columns.column_names else None
    digests = pa.array(digest_rows(table, hashes), pa.binary(DIGEST_BYTES))
    # Not checked against `nullable`: a row without an id becomes a reject later.
    fields = [field.with_nullable(True) for field in layout.schema]
    whole = pa.Table.from_arrays([*table.columns, digests], schema=pa.schema(fields))
    return RowBatch(whole, np.arange(block.first_row, block.first_row + len(block), dtype=np.int64))


def convert_vectors(vectors: Any, precision: str, layout: TableLayout) -> pa.Array:
    """Convert vectors, as they are stored or dequantized, to the array of the column of vectors."""
    kind = layout.schema.field(VECTOR_COLUMN).type
    if isinstance(vectors, SparseVectors):
        return sparse_to_arrow(vectors, vectors.values)
    dtype = {"float32": np.float32, "float16": np.float16, "ubinary": np.uint8}[layout.precision]
    if isinstance(vectors, MultiVectors):
        return multi_to_arrow(vectors, vectors.values.astype(dtype, copy=False), kind)
    if layout.normalizes:
        vectors = normalize(vectors)
    if precision == "binary":
        vectors = (vectors.astype(np.int16) + 128).astype(np.uint8)
    numbers = np.ascontiguousarray(vectors, dtype=dtype).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(numpy_to_arrow(numbers), type=kind)


def digest_array(table: pa.Table) -> NDArray[Any]:
    """Return the digests of rows as an array of S16; rows of another program have an empty one."""
    column = combine_chunks(table.column(DIGEST_COLUMN))
    values = [value or b"" for value in column.cast(pa.binary()).to_pylist()]
    return np.array(values, f"S{DIGEST_BYTES}")


def hash_keys(table: pa.Table, key: Sequence[str]) -> Int64Array:
    """Hash the keys of rows: int64 [n], the same for equal keys in this process; an integer is its own hash."""
    hashes = hash_ids(combine_chunks(table.column(key[0])))
    for name in key[1:]:
        # Mixed by the multiplier of Knuth's MMIX generator: no window of one id has the hash of another id's by design.
        numbers = combine_chunks(table.column(name)).to_numpy(zero_copy_only=False).astype(np.uint64)
        hashes = ((hashes.view(np.uint64) ^ numbers) * np.uint64(6364136223846793005) + numbers).view(np.int64)
    return hashes
