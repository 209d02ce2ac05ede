"""Estimate the size of an output: vectors by their layout, other columns by writing a few rows to memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa

from embedcli.core import quantization
from embedcli.core.head_vectors import join_heads
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.core.types import Chunk, EncodedChunk, OutputFormat, Precision, VectorKind
from embedcli.core.vectors import normalize_rows
from embedcli.models.kind_options import MULTI_VECTOR_PRECISIONS, SPARSE_PRECISIONS
from embedcli.outputs import writers
from embedcli.outputs.schema import OutputLayout, create_vector_fields

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, InputColumns

# Rows written to memory. More rows would change the result by less than kept texts vary.
MEASURED_ROWS = 200
MEASURED_MULTI_VECTOR_ROWS = 20
STORED_PRECISIONS: dict[VectorKind, tuple[Precision, ...]] = {
    "dense": get_args(Precision),
    "sparse": SPARSE_PRECISIONS,
    "multi_vector": MULTI_VECTOR_PRECISIONS,
}


@dataclass(frozen=True)
class VectorShape:
    """What the vectors of a row are like.

    Attributes:
        kind: The kind of the vectors.
        dim: Dimensions, before quantization.
        per_row: Mean number of terms of a sparse vector, or of vectors of a row with one for each token.
    """

    kind: VectorKind
    dim: int
    per_row: float = 1.0


def estimate_output_sizes(
    columns: InputColumns, shapes: Sequence[VectorShape], windows: bool, chunk: Chunk, rows: float
) -> dict[str, dict[str, int]]:
    """Estimate the bytes of an output by precision and format.

    Args:
        columns: Columns of the input.
        shapes: The vectors, of several heads those of each.
        windows: Whether rows are split into windows, which adds columns.
        chunk: Some rows, for the size of ids and kept columns.
        rows: Number of output rows.
    """
    # Token vectors are measured in a few rows of as many vectors as the mean.
    kinds = [shape.kind for shape in shapes]
    most = MEASURED_MULTI_VECTOR_ROWS if "multi_vector" in kinds else MEASURED_ROWS
    count = min(len(chunk.texts), most)
    sample = replace(chunk, ids=chunk.ids.slice(0, count), kept_columns=chunk.kept_columns.slice(0, count))
    fits_npy = len(shapes) == 1 and kinds != ["sparse"]
    formats: list[OutputFormat] = [name for name in get_args(OutputFormat) if fits_npy or name != "npy"]
    parts = [fake_vectors(max(count, 2), shape) for shape in shapes]
    vectors = join_heads(dict(zip(kinds, parts, strict=True)))
    ranges = quantization.compute_ranges_of(vectors)
    dims = {shape.kind: shape.dim for shape in shapes}
    sizes: dict[str, dict[str, int]] = {}
    for precision in min((STORED_PRECISIONS[kind] for kind in kinds), key=len):
        layout = OutputLayout(columns, create_vector_fields(dims, precision, ranges), windows)
        table = layout.build_table(fake_encoded_chunk(sample, vectors[:count], windows))
        sizes[precision] = {name: round(bytes_per_row(table, layout, name) * rows) for name in formats}
    return sizes


def fake_vectors(rows: int, shape: VectorShape) -> Float32Array | SparseVectors | MultiVectors:
    """Random vectors of a shape: dense ones and those of tokens have length 1."""
    random = np.random.default_rng(0)
    length = min(shape.dim, round(shape.per_row)) if shape.kind == "sparse" else max(1, round(shape.per_row))
    starts = np.arange(rows + 1) * length
    if shape.kind == "sparse":
        indices = np.concatenate([np.sort(random.choice(shape.dim, length, replace=False)) for _ in range(rows)])
        values = random.uniform(0, 3, len(indices)).astype(np.float32)
        return SparseVectors(starts, indices.astype(np.int32), values, shape.dim)
    vectors = normalize_rows(random.standard_normal((rows * length, shape.dim)).astype(np.float32))
    return MultiVectors(starts, vectors) if shape.kind == "multi_vector" else vectors


def fake_encoded_chunk(chunk: Chunk, vectors: Any, windows: bool) -> EncodedChunk:
    """Build an encoded chunk with random token counts, hashes and offsets of realistic size."""
    count = len(vectors)
    random = np.random.default_rng(0)
    offsets = random.integers(0, 5000, count)
    extra = {
        "window": pa.array(offsets % 7, pa.int32()),
        "char_start": pa.array(offsets),
        "char_end": pa.array(offsets),
    }
    return EncodedChunk(
        chunk,
        np.arange(count),
        vectors,
        random.integers(1, 500, count).astype(np.int32),
        np.zeros(count, bool),
        random.integers(0, 256, (count, 16)).astype(np.uint8),
        extra_columns=extra if windows else {},
    )


def bytes_per_row(table: pa.Table, layout: OutputLayout, format: OutputFormat) -> float:
    """Measure the bytes per row in a format, without headers and footers."""
    if not table.num_rows:
        return float(layout.bytes_per_row)
    if format == "jsonl":
        return float(sum(map(len, writers.table_to_json_lines(table))) / table.num_rows)
    # Parquet has no one-byte type, so the size of an int8 column depends on its encoding and must be measured.
    includes_vectors = format == "parquet" or layout.first.kind == "sparse" or len(layout.vector_fields) > 1
    measured = table if includes_vectors else table.drop_columns(["embedding"])
    measure = measure_arrow_bytes if format in ("arrow", "lance") else measure_parquet_bytes
    other_bytes = (measure(measured) - measure(measured.slice(0, 0))) / table.num_rows
    vectors = table.column("embedding").combine_chunks().flatten() if layout.first.kind == "multi_vector" else table
    vector_bytes = 0 if includes_vectors else layout.first.bytes_per_vector * len(vectors) / table.num_rows
    return float(vector_bytes + other_bytes)


def measure_parquet_bytes(table: pa.Table) -> int:
    return int(writers.table_to_parquet(table, {}).size)


def measure_arrow_bytes(table: pa.Table) -> int:
    return int(table.nbytes)
