"""Open a file of vectors by its format."""

from __future__ import annotations

from collections.abc import Callable

from embedcli import storage
from embedcli.core.errors import UsageError
from embedcli.core.types import OutputFormat
from embedcli.outputs import writers
from embedcli.outputs.jsonl_vectors import JsonlVectorFile
from embedcli.outputs.multi_vector_npy import open_npy_file
from embedcli.outputs.vector_files import (
    ArrowVectorFile,
    ParquetVectorFile,
    VectorFile,
    companion_exists,
    translate_read_errors,
)

FORMATS_BY_MAGIC: tuple[tuple[bytes, OutputFormat], ...] = (
    (b"PAR1", "parquet"),
    (b"\x93NUMPY", "npy"),
    (b"ARROW1", "arrow"),
    (b"{", "jsonl"),
)


def detect_format(path: str) -> OutputFormat:
    """Detect the format of a file of vectors from its first bytes. Raises UsageError if it is not one."""
    with storage.open_input(path, preview=True) as source:
        start = source.read()[:16] if source.codec is None else b""
    found = next((kind for magic, kind in FORMATS_BY_MAGIC if start.startswith(magic)), None)
    if found is None and not start and companion_exists(path, writers.space_path(path)):
        return "jsonl"
    if found is None:
        raise UsageError(
            f"{storage.format_location(path)}: not a file of vectors",
            "name an output of `embedcli encode`: Parquet, .npy, Arrow or JSONL",
        )
    return found


def open_vector_file(path: str, column: str | None = None) -> VectorFile:
    """Open a file of vectors.

    Args:
        path: The file.
        column: Which of its columns of vectors to read; by default `embedding`, or the only one.

    Raises:
        UsageError: It holds no vectors, or not in this column.
        InputError: It is damaged.
    """
    kind = detect_format(path)
    readers: dict[OutputFormat, Callable[[str, str | None], VectorFile]] = {
        "parquet": ParquetVectorFile,
        "npy": open_npy_file,
        "arrow": ArrowVectorFile,
        "jsonl": JsonlVectorFile,
    }
    with translate_read_errors(path):
        return readers[kind](path, column)
