"""Read Arrow IPC: local files by record batches, streams and all other files from start to end.

An Arrow file is a stream between a magic number and a footer, so that it can be read from a pipe as well.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.core.types import InputSplit
from embedcli.readers.record_batches import (
    build_row_batches,
    check_structure,
    group_into_ranges,
    slice_batch,
    split_bytes,
    to_row_batch,
)
from embedcli.readers.row_batch import RowBatch
from embedcli.readers.row_builder import RowBuilder
from embedcli.storage import format_location

FILE_MAGIC = b"ARROW1"
# The magic number of a file is padded to this length.
FILE_MAGIC_BYTES = 8
CONTINUATION = b"\xff\xff\xff\xff"
MAX_SCHEMA_BYTES = 256 << 20
FETCH_AGAIN_HINT = "fetch or write the file again"


def is_arrow(head: bytes) -> bool:
    """Whether the first bytes are those of an Arrow IPC file, or of a stream with its schema."""
    if head.startswith(FILE_MAGIC):
        return True
    if not head.startswith(CONTINUATION) or len(head) < FILE_MAGIC_BYTES:
        return False
    length = int.from_bytes(head[4:8], "little", signed=True)
    return 0 < length <= MAX_SCHEMA_BYTES and length % 8 == 0


class BlockFile:
    """A stream of blocks as a file that Arrow can read.

    Attributes:
        is_cut_off: Whether fewer bytes were left than a read asked for. Arrow reads nothing after the end of a stream.
    """

    closed = False

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._rest = b""
        self._position = 0
        self.is_cut_off = False

    def read(self, size: int = -1) -> bytes:
        """Return exactly `size` bytes, or fewer at the end of the stream."""
        parts: list[bytes] = []
        missing = size
        while missing:
            if self._position == len(self._rest):
                self._rest, self._position = next(self._blocks, b""), 0
                if not self._rest:
                    self.is_cut_off = True
                    break
            part = self._rest[self._position : self._position + missing]
            self._position += len(part)
            missing -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def put_back(self, data: bytes) -> None:
        """Read some bytes again, before the others."""
        self._rest, self._position = data + self._rest[self._position :], 0

    def read_end(self) -> bytes:
        """Read the rest of the stream and return its last bytes; none if nothing was left."""
        end = self._rest[self._position :]
        for block in self._blocks:
            end = (end + block)[-FILE_MAGIC_BYTES:]
        self._rest, self._position = b"", 0
        return end[-FILE_MAGIC_BYTES:]

    def close(self) -> None:
        self.closed = True


@contextmanager
def translate_errors(path: str, file: BlockFile | None = None) -> Iterator[None]:
    """Raise InputError with the path for errors of Arrow."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        if file is not None and file.is_cut_off:
            raise _cut_off_error(path, "it ends within a message") from error
        reason = " ".join(str(error).split())
        raise InputError(f"{format_location(path)}: cannot be read as Arrow: {reason}", FETCH_AGAIN_HINT) from error


def _cut_off_error(path: str, reason: str) -> InputError:
    return InputError(f"{format_location(path)}: the Arrow data is cut off: {reason}", FETCH_AGAIN_HINT)


# Streams, and files that are read like streams


@dataclass
class ArrowStream:
    """An Arrow stream, or a file that is read like one: its schema, then its record batches."""

    path: str
    file: BlockFile
    schema: pa.Schema
    is_file: bool

    @classmethod
    def from_blocks(cls, blocks: Iterable[bytes], path: str) -> ArrowStream:
        """Read the schema.

        Raises:
            InputError: The data is not Arrow, or is cut off.
        """
        file = BlockFile(blocks)
        start = file.read(FILE_MAGIC_BYTES)
        is_file = start.startswith(FILE_MAGIC)
        if not is_file:
            file.put_back(start)
        with translate_errors(path, file):
            message = pa.ipc.read_message(pa.PythonFile(file, "r"))
            schema = pa.ipc.read_schema(message)
        file.put_back(message.serialize().to_pybytes())
        return cls(path, file, schema, is_file)

    def read_batches(self, columns: Iterable[str]) -> Iterator[pa.RecordBatch]:
        """Yield all record batches with some of the columns.

        Raises:
            InputError: The data is damaged, cut off or followed by other data.
        """
        options = pa.ipc.IpcReadOptions(included_fields=field_indices(self.schema, columns))
        with translate_errors(self.path, self.file):
            yield from pa.ipc.open_stream(pa.PythonFile(self.file, "r"), options=options)
        self._check_end()

    def _check_end(self) -> None:
        if self.file.is_cut_off:
            raise _cut_off_error(self.path, "it lacks the mark at the end of a stream")
        end = self.file.read_end()
        if self.is_file and not end.endswith(FILE_MAGIC):
            raise _cut_off_error(self.path, "it lacks the footer at the end of a file")
        if end and not self.is_file:
            raise InputError(
                f"{format_location(self.path)}: more data follows the end of the Arrow stream",
                "give each stream as an input of its own",
            )


def field_indices(schema: pa.Schema, columns: Iterable[str]) -> list[int]:
    """The positions of the fields that hold some columns or nested fields; of a narrow field if none does."""
    needed = [i for i, name in enumerate(schema.names) if any(_is_field(column, name) for column in columns)]
    if needed or not schema.names:
        return needed
    fixed = [i for i, field in enumerate(schema) if pa.types.is_primitive(field.type)]
    return [fixed[0] if fixed else 0]


def _is_field(column: str, name: str) -> bool:
    return column == name or column.startswith(f"{name}.")


def read_arrow_stream(
    input_split: InputSplit, row_builder: RowBuilder, prefetched: storage.PrefetchedFiles | None = None
) -> Generator[RowBatch, None, None]:
    """Yield the rows of a stream, or of a file from start to end, which is a single split.

    Raises:
        InputError: The data cannot be read, or is cut off.
    """
    position = 0
    with storage.open_input(input_split.path, prefetched=prefetched) as source:
        stream = ArrowStream.from_blocks(source, input_split.path)
        for batch in stream.read_batches(row_builder.column_names):
            for rows in slice_batch(check_structure(batch, input_split.path)):
                lines = range(position + 1, position + 1 + rows.num_rows)
                position += rows.num_rows
                yield to_row_batch(rows, row_builder, lines, source.position)


def count_stream_rows(input_split: InputSplit) -> tuple[int, int]:
    """The number of rows of a stream, twice: every row is a line."""
    with storage.open_input(input_split.path) as source:
        rows = sum(batch.num_rows for batch in ArrowStream.from_blocks(source, input_split.path).read_batches(()))
    return rows, rows


# Local files


@contextmanager
def open_arrow_file(
    path: str, columns: Iterable[str] = (), prefetched: storage.PrefetchedFiles | None = None
) -> Iterator[tuple[pa.ipc.RecordBatchFileReader, int]]:
    """Open an Arrow file.

    Args:
        path: The file.
        columns: The columns that the record batches have; a single narrow one if there are none.
        prefetched: Files that are open already.

    Yields:
        The reader and the size of the file in bytes.

    Raises:
        InputError: The file cannot be read, or is cut off; also for errors of Arrow inside of the `with` block.
    """
    with storage.open_seekable(path, prefetched=prefetched) as raw, translate_errors(path):
        schema, size = _read_footer(raw, path)
        options = pa.ipc.IpcReadOptions(included_fields=field_indices(schema, columns))
        yield pa.ipc.open_file(raw, options=options), size


def _read_footer(raw: pa.NativeFile, path: str) -> tuple[pa.Schema, int]:
    """The schema of a file and its size in bytes; InputError if it is cut off."""
    size = int(raw.size())
    raw.seek(max(0, size - len(FILE_MAGIC)))
    if raw.read(len(FILE_MAGIC)) != FILE_MAGIC:
        raise _cut_off_error(path, "it lacks the footer at the end of a file")
    return pa.ipc.open_file(raw).schema, size


def read_file_schema(path: str) -> pa.Schema:
    """The schema of an Arrow file."""
    with storage.open_seekable(path) as raw, translate_errors(path):
        return _read_footer(raw, path)[0]


def split_record_batches(path: str) -> list[tuple[int, int]]:
    """The (first row, row after the last) of each split of a file; one empty range if it has no rows."""
    counts = count_batch_rows(path)
    row_bytes = storage.file_identity(path).get("size", 0) / max(1, sum(counts))
    return group_into_ranges((count, count * row_bytes) for count in counts)


def count_batch_rows(path: str) -> tuple[int, ...]:
    """The number of rows of each record batch of a file; counted once in this process while the file is the same."""
    return _count_batch_rows(path, tuple(storage.file_states([path])[path].items()))


@lru_cache(maxsize=64)
def _count_batch_rows(path: str, state: tuple[tuple[str, int], ...]) -> tuple[int, ...]:
    with open_arrow_file(path) as (reader, _):
        return tuple(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))


def read_arrow_file(
    input_split: InputSplit, row_builder: RowBuilder, prefetched: storage.PrefetchedFiles | None = None
) -> Generator[RowBatch, None, None]:
    """Yield the rows of a split, which is whole record batches of a file.

    Raises:
        InputError: The file cannot be read, or has other rows than when it was planned.
    """
    path = input_split.path
    counts = count_batch_rows(path)
    with open_arrow_file(path, row_builder.column_names, prefetched) as (reader, size):
        batches = (check_structure(reader.get_batch(i), path) for i in _batches_of_split(counts, input_split))
        parts = chain.from_iterable(map(slice_batch, batches))
        yield from build_row_batches(parts, row_builder, input_split, split_bytes(size, sum(counts), input_split))


def _batches_of_split(counts: Iterable[int], input_split: InputSplit) -> list[int]:
    """The record batches that begin in the split."""
    batches, row = [], 0
    for i, count in enumerate(counts):
        if input_split.start <= row < (input_split.stop or 0):
            batches.append(i)
        row += count
    return batches
