"""Estimate the size of an output by writing a few rows to memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa

from embedcli.core import quantization
from embedcli.core.types import Chunk, EncodedChunk, OutputFormat, Precision, VectorKind
from embedcli.core.vectors import normalize_rows
from embedcli.models.kind_options import MULTI_VECTOR_PRECISIONS, SPARSE_PRECISIONS
from embedcli.outputs import writers
from embedcli.outputs.schema import OutputLayout, create_vector_fields
from embedcli.outputs.vector_types import is_sparse_type

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import Float32Array, InputColumns

# Rows written to memory. More rows would change the result by less than kept texts vary.
MEASURED_ROWS = 200
STORED_PRECISIONS: dict[VectorKind, tuple[Precision, ...]] = {
    "dense": get_args(Precision),
    "sparse": SPARSE_PRECISIONS,
    "multi_vector": MULTI_VECTOR_PRECISIONS,
}


def estimate_output_sizes(
    columns: InputColumns, vectors: RowVectors, dims: Mapping[VectorKind, int], windows: bool, chunk: Chunk, rows: float
) -> dict[str, dict[str, int]]:
    """Estimate the bytes of an output by precision and format.

    Args:
        columns: Columns of the input.
        vectors: Those of some rows, at least one, or vectors of the same size.
        dims: The dimensions of the vectors of each column, by their kind.
        windows: Whether rows are split into windows, which adds columns.
        chunk: Some rows, for the size of ids and kept columns.
        rows: Number of output rows.
    """
    count = min(len(chunk.texts), len(vectors), MEASURED_ROWS)
    sample = replace(chunk, ids=chunk.ids.slice(0, count), kept_columns=chunk.kept_columns.slice(0, count))
    encoded = fake_encoded_chunk(sample, vectors[:count], windows)
    fits_npy = len(dims) == 1 and "sparse" not in dims
    formats: list[OutputFormat] = [name for name in get_args(OutputFormat) if fits_npy or name != "npy"]
    ranges = quantization.compute_ranges_of(vectors)
    sizes: dict[str, dict[str, int]] = {}
    for precision in min((STORED_PRECISIONS[kind] for kind in dims), key=len):
        layout = OutputLayout(columns, create_vector_fields(dims, precision, ranges), windows)
        table = layout.build_table(encoded)
        sizes[precision] = {name: round(bytes_per_row(table, layout, name) * rows) for name in formats}
    return sizes


def fake_dense_vectors(dim: int) -> Float32Array:
    """Random vectors of length 1: float32 [MEASURED_ROWS, dim]."""
    random = np.random.default_rng(0)
    return normalize_rows(random.standard_normal((MEASURED_ROWS, dim)).astype(np.float32))


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
    if format == "jsonl":
        return float(sum(map(len, writers.table_to_json_lines(table))) / table.num_rows)
    # Parquet has no one-byte type, so the size of an int8 column depends on its encoding and must be measured.
    includes_vectors = format == "parquet" or layout.first.kind == "sparse" or len(layout.vector_fields) > 1
    measured = table if includes_vectors else table.drop_columns(["embedding"])
    measures = {"arrow": measure_arrow_bytes, "lance": measure_lance_bytes}
    measure = measures.get(format, measure_parquet_bytes)
    other_bytes = (measure(measured) - measure(measured.slice(0, 0))) / table.num_rows
    vectors = table.column("embedding").combine_chunks().flatten() if layout.first.kind == "multi_vector" else table
    vector_bytes = 0 if includes_vectors else layout.first.bytes_per_vector * len(vectors) / table.num_rows
    return float(vector_bytes + other_bytes)


def measure_parquet_bytes(table: pa.Table) -> int:
    return int(writers.table_to_parquet(table, {}).size)


def measure_arrow_bytes(table: pa.Table) -> int:
    return int(table.nbytes)


def measure_lance_bytes(table: pa.Table) -> int:
    """As in Arrow, without the bits of indices of sparse vectors that Lance leaves out, because none of them is set."""
    saved = 0.0
    for name in writers.list_vector_columns(table.schema):
        if is_sparse_type(table.schema.field(name).type) and table.num_rows:
            indices = table.column(name).combine_chunks().field("indices").flatten().to_numpy()
            saved += indices.nbytes - len(indices) * int(indices.max(initial=1)).bit_length() / 8
    return measure_arrow_bytes(table) - round(saved)
