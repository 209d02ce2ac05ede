"""Estimate the size of an output: vectors by their layout, other columns by writing a few rows to memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa

from embedcli.core import quantization
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.core.types import Chunk, EncodedChunk, OutputFormat, Precision
from embedcli.core.vectors import normalize_rows
from embedcli.models.sparse_options import SPARSE_PRECISIONS
from embedcli.outputs import writers
from embedcli.outputs.schema import OutputLayout

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import InputColumns

# Rows written to memory. More rows would change the result by less than kept texts vary.
MEASURED_ROWS = 200


def estimate_output_sizes(
    columns: InputColumns, dim: int, windows: bool, chunk: Chunk, rows: float, terms: float | None = None
) -> dict[str, dict[str, int]]:
    """Estimate the bytes of an output by precision and format.

    Args:
        columns: Columns of the input.
        dim: Number of dimensions.
        windows: Whether rows are split into windows, which adds columns.
        chunk: Some rows, for the size of ids and kept columns.
        rows: Number of output rows.
        terms: Mean number of terms of a sparse vector; None for dense vectors.
    """
    count = min(len(chunk.texts), MEASURED_ROWS)
    sample = replace(chunk, ids=chunk.ids.slice(0, count), kept_columns=chunk.kept_columns.slice(0, count))
    vectors = fake_vectors(max(count, 2), dim, terms)
    formats: list[OutputFormat] = [name for name in get_args(OutputFormat) if terms is None or name != "npy"]
    sizes: dict[str, dict[str, int]] = {}
    for precision in get_args(Precision) if terms is None else SPARSE_PRECISIONS:
        ranges = None if isinstance(vectors, SparseVectors) else quantization.compute_ranges(vectors)
        layout = OutputLayout(columns, dim, precision, windows, ranges, "dense" if terms is None else "sparse")
        table = layout.build_table(fake_encoded_chunk(sample, vectors[:count], windows))
        sizes[precision] = {name: round(bytes_per_row(table, layout, name) * rows) for name in formats}
    return sizes


def fake_vectors(rows: int, dim: int, terms: float | None) -> RowVectors:
    """Random vectors: dense ones of length 1, or sparse ones of `terms` terms each."""
    random = np.random.default_rng(0)
    if terms is None:
        return normalize_rows(random.standard_normal((rows, dim)).astype(np.float32))
    length = min(dim, round(terms))
    indices = np.concatenate([np.sort(random.choice(dim, length, replace=False)) for _ in range(rows)])
    values = random.uniform(0, 3, len(indices)).astype(np.float32)
    return SparseVectors(np.arange(rows + 1) * length, indices.astype(np.int32), values, dim)


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
    includes_vectors = format == "parquet" or layout.kind == "sparse"
    measured = table if includes_vectors else table.drop_columns(["embedding"])
    measure = measure_arrow_bytes if format in ("arrow", "lance") else measure_parquet_bytes
    other_bytes = (measure(measured) - measure(measured.slice(0, 0))) / table.num_rows
    return float((0 if includes_vectors else layout.bytes_per_row) + other_bytes)


def measure_parquet_bytes(table: pa.Table) -> int:
    return int(writers.table_to_parquet(table, {}).size)


def measure_arrow_bytes(table: pa.Table) -> int:
    return int(table.nbytes)
