"""Estimate the size of an output: vectors by their layout, other columns by writing a few rows to memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa

from embedcli.core import quantization
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.types import Chunk, EncodedChunk, OutputFormat, Precision, VectorKind
from embedcli.core.vectors import normalize_rows
from embedcli.models.kind_options import MULTI_VECTOR_PRECISIONS
from embedcli.outputs import writers
from embedcli.outputs.schema import OutputLayout

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import InputColumns

# Rows written to memory. More rows would change the result by less than kept texts vary.
MEASURED_ROWS = 200
MEASURED_MULTI_VECTOR_ROWS = 20


def estimate_output_sizes(
    columns: InputColumns, dim: int, windows: bool, chunk: Chunk, rows: float, token_vectors: float | None = None
) -> dict[str, dict[str, int]]:
    """Estimate the bytes of an output by precision and format.

    Args:
        columns: Columns of the input.
        dim: Number of dimensions.
        windows: Whether rows are split into windows, which adds columns.
        chunk: Some rows, for the size of ids and kept columns.
        rows: Number of output rows.
        token_vectors: Vectors of a row, of a model that computes one for each token; None for one vector per row.
    """
    count = min(len(chunk.texts), MEASURED_ROWS)
    kind: VectorKind = "dense" if token_vectors is None else "multi_vector"
    # In a few rows of as many vectors as the mean.
    per_row = 1 if token_vectors is None else max(1, round(token_vectors))
    count = count if per_row == 1 else min(count, MEASURED_MULTI_VECTOR_ROWS)
    sample = replace(chunk, ids=chunk.ids.slice(0, count), kept_columns=chunk.kept_columns.slice(0, count))
    vectors = normalize_rows(
        np.random.default_rng(0).standard_normal((max(count * per_row, 2), dim)).astype(np.float32)
    )
    sizes: dict[str, dict[str, int]] = {}
    stored: RowVectors = vectors[:count]
    if token_vectors is not None:
        stored = MultiVectors(np.arange(count + 1) * per_row, vectors[: count * per_row])
    for precision in get_args(Precision) if token_vectors is None else MULTI_VECTOR_PRECISIONS:
        layout = OutputLayout(columns, dim, precision, windows, quantization.compute_ranges(vectors), kind)
        table = layout.build_table(fake_encoded_chunk(sample, stored, windows))
        sizes[precision] = {
            format: round(bytes_per_row(table, layout, format) * rows) for format in get_args(OutputFormat)
        }
    return sizes


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
    includes_vectors = format == "parquet"
    measured = table if includes_vectors else table.drop_columns(["embedding"])
    measure = measure_arrow_bytes if format in ("arrow", "lance") else measure_parquet_bytes
    other_bytes = (measure(measured) - measure(measured.slice(0, 0))) / table.num_rows
    vectors = table.column("embedding").combine_chunks().flatten() if layout.kind == "multi_vector" else table
    vector_bytes = 0 if includes_vectors else layout.bytes_per_vector * len(vectors) / table.num_rows
    return float(vector_bytes + other_bytes)


def measure_parquet_bytes(table: pa.Table) -> int:
    return int(writers.table_to_parquet(table, {}).size)


def measure_arrow_bytes(table: pa.Table) -> int:
    return int(table.nbytes)
