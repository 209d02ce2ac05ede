"""Merge part files into one file of an output, or into one folder of a Lance dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedcli.checkpoint.part_files import read_part_tables
from embedcli.core.types import OutputFormat, PartFile
from embedcli.outputs import writers
from embedcli.outputs.multi_vector_npy import write_multi_vector_npy

if TYPE_CHECKING:
    from embedcli.outputs.schema import OutputLayout


def merge_parts(
    parts: Sequence[PartFile], path: str, format: OutputFormat, layout: OutputLayout, metadata: writers.Metadata
) -> list[str]:
    """Merge part files, in the order given.

    Args:
        parts: The part files.
        path: The file to write.
        format: Its format.
        layout: The output's columns.
        metadata: Key-value pairs to store in it.

    Returns:
        The paths of the files that were written.
    """
    rows = sum(part.stats["vectors"] for part in parts)
    if format == "npy" and layout.first.kind == "multi_vector":
        token_count = sum(map(count_vectors, parts))
        return write_multi_vector_npy(read_part_tables(parts), path, layout, metadata, rows, token_count)
    return writers.OUTPUT_WRITERS[format](read_part_tables(parts), path, layout, metadata, rows)


def count_vectors(part: PartFile) -> int:
    """How many vectors a part file holds: one for each output row, or one for each token."""
    return int(part.stats.get("token_vectors", part.stats["vectors"]))


def measure_part(part: PartFile, layout: OutputLayout) -> int:
    """Bytes of the stored vectors of a part file; an assumption for sparse ones."""
    return layout.measure_bytes(part.stats["vectors"], count_vectors(part))
