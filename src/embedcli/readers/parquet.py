"""Read Parquet: only the needed columns, a few thousand rows at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.core.types import InputSplit
from embedcli.readers.nested_fields import nested_type
from embedcli.readers.record_batches import build_row_batches, group_into_ranges, has_dictionaries_or_views, split_bytes
from embedcli.readers.row_batch import RowBatch
from embedcli.readers.row_builder import RowBuilder

# Limits of the rows that are decoded at once, so that a column of long texts does not fill the memory.
PARQUET_BATCH_ROWS = 4096
PARQUET_BATCH_BYTES = 16 << 20
# Column chunks are read through a buffer of this size instead of whole.
READ_BUFFER_BYTES = 1 << 20


class UnreadableParquetError(InputError):
    """The file exists, but Arrow cannot read it as Parquet."""


@contextmanager
def open_parquet(path: str, prefetched: storage.PrefetchedFiles | None = None) -> Iterator[tuple[pq.ParquetFile, int]]:
    """Open a Parquet file.

    Yields:
        The file and its size in bytes.

    Raises:
        InputError: The file cannot be read.
        UnreadableParquetError: It is not a valid Parquet file; also for errors inside of the `with` block.
    """
    with storage.open_seekable(path, prefetched=prefetched) as raw, translate_arrow_errors(path):
        size = int(raw.size())
        yield (
            pq.ParquetFile(raw, buffer_size=READ_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True),
            size,
        )


@contextmanager
def translate_arrow_errors(path: str) -> Iterator[None]:
    """Raise UnreadableParquetError with the path for errors of Arrow."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UnreadableParquetError(
            f"{storage.format_location(path)}: cannot be read as Parquet: {reason}",
            "check that the file is complete, or fetch it again",
        ) from error


def split_row_ranges(metadata: pq.FileMetaData) -> list[tuple[int, int]]:
    """The (first row, row after the last) of each split; one empty range if the file has no rows."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return group_into_ranges((group.num_rows, group.total_byte_size) for group in groups)


def read_parquet(
    input_split: InputSplit, row_builder: RowBuilder, prefetched: storage.PrefetchedFiles | None = None
) -> Generator[RowBatch, None, None]:
    """Yield the rows of a split, which is whole row groups.

    Raises:
        InputError: The file cannot be read, or has other rows than when it was planned.
    """
    with open_parquet(input_split.path, prefetched) as (file, file_size):
        groups = _row_groups(file.metadata, input_split)
        types = {field.name: field.type for field in file.schema_arrow}
        columns = [name for name in row_builder.column_names if nested_type(types, name) is not None]
        batch_rows = _batch_rows(file.metadata, groups, set(columns))
        size_of_split = split_bytes(file_size, file.metadata.num_rows, input_split)
        batches = _read_batches(file, batch_rows, groups, columns)
        yield from build_row_batches(batches, row_builder, input_split, size_of_split)


def _read_batches(
    file: pq.ParquetFile, batch_rows: int, groups: Sequence[int], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield the columns of some row groups in batches of at most `batch_rows` rows."""
    fields = [field for field in file.schema_arrow if any(_is_needed(name, [field.name]) for name in columns)]
    # Arrow cannot read nested dictionaries across row groups, because each row group has another dictionary.
    one_by_one = any(pa.types.is_nested(field.type) and has_dictionaries_or_views(field.type) for field in fields)
    for some_groups in [[group] for group in groups] if one_by_one else [groups]:
        yield from file.iter_batches(batch_rows, row_groups=some_groups, columns=columns, use_threads=False)


def _row_groups(metadata: pq.FileMetaData, input_split: InputSplit) -> list[int]:
    """The row groups that begin in the split."""
    groups, row = [], 0
    for i in range(metadata.num_row_groups):
        if input_split.start <= row < (input_split.stop or 0):
            groups.append(i)
        row += metadata.row_group(i).num_rows
    return groups


def _batch_rows(metadata: pq.FileMetaData, groups: Sequence[int], names: set[str]) -> int:
    """Rows per batch so that the needed columns have PARQUET_BATCH_BYTES in the row group with the longest rows."""
    longest = 1
    for i in groups:
        group = metadata.row_group(i)
        columns = (group.column(k) for k in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if _is_needed(c.path_in_schema, names))
        longest = max(longest, size // max(1, group.num_rows))
    return max(1, min(PARQUET_BATCH_ROWS, PARQUET_BATCH_BYTES // longest))


def _is_needed(path: str, names: Iterable[str]) -> bool:
    """Whether a column chunk belongs to one of the columns or fields to read."""
    return any(path == name or path.startswith(f"{name}.") for name in names)
