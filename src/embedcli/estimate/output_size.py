"""How large an output gets: vectors by their layout, everything beside them by writing a few rows into memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa

from embedcli.core import quantization
from embedcli.core.types import Chunk, EncodedChunk, OutputFormat, Precision
from embedcli.core.vectors import normalize_rows
from embedcli.outputs import writers
from embedcli.outputs.schema import OutputLayout

if TYPE_CHECKING:
    from embedcli.core.types import InputColumns

# Rows that are written; more would change the figures by less than their kept texts differ.
MEASURED_ROWS = 200


def estimate_output_sizes(
    columns: InputColumns, dim: int, windows: bool, few: Chunk, rows: float
) -> dict[str, dict[str, int]]:
    """Bytes of an output of `rows` rows, by precision and format; `few` shows what its ids and kept columns weigh."""
    count = min(len(few.texts), MEASURED_ROWS)
    few = replace(few, ids=few.ids.slice(0, count), kept_columns=few.kept_columns.slice(0, count))
    vectors = normalize_rows(np.random.default_rng(0).standard_normal((max(count, 2), dim)).astype(np.float32))
    made: dict[str, dict[str, int]] = {}
    for kind in get_args(Precision):
        layout = OutputLayout(columns, dim, kind, windows, quantization.compute_ranges(vectors))
        table = layout.build_table(fake_encoded_chunk(few, vectors[:count], windows))
        made[kind] = {form: round(bytes_per_row(table, layout, form) * rows) for form in get_args(OutputFormat)}
    return made


def fake_encoded_chunk(few: Chunk, vectors: Any, windows: bool) -> EncodedChunk:
    """The chunk as if it had been encoded: counts, hashes and offsets like those of real rows."""
    count = len(vectors)
    chance = np.random.default_rng(0)
    offsets = chance.integers(0, 5000, count)
    extra = {
        "window": pa.array(offsets % 7, pa.int32()),
        "char_start": pa.array(offsets),
        "char_end": pa.array(offsets),
    }
    return EncodedChunk(
        few,
        np.arange(count),
        vectors,
        chance.integers(1, 500, count).astype(np.int32),
        np.zeros(count, bool),
        chance.integers(0, 256, (count, 16)).astype(np.uint8),
        extra_columns=extra if windows else {},
    )


def bytes_per_row(table: pa.Table, layout: OutputLayout, form: OutputFormat) -> float:
    """Bytes per row in a format, without what a file has once."""
    if not table.num_rows:
        return float(layout.bytes_per_row)
    if form == "jsonl":
        return float(sum(map(len, writers.table_to_json_lines(table))) / table.num_rows)
    # Parquet has no type of one byte: only its writer knows what an int8 takes.
    whole = form == "parquet"
    weighed = table if whole else table.drop_columns(["embedding"])
    weigh = measure_arrow_bytes if form in ("arrow", "lance") else measure_parquet_bytes
    return float(
        (0 if whole else layout.bytes_per_row) + (weigh(weighed) - weigh(weighed.slice(0, 0))) / table.num_rows
    )


def measure_parquet_bytes(table: pa.Table) -> int:
    return int(writers.table_to_parquet(table, {}).size)


def measure_arrow_bytes(table: pa.Table) -> int:
    return int(table.nbytes)
