"""Read lines: of a plain UTF-8 file by byte ranges, of other files from start to end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.core.types import InputSplit
from embedcli.readers.decoding import TextDecoder, split_lines, strip_byte_order_mark
from embedcli.readers.row_batch import RawRow, RejectReasons, RowBatch
from embedcli.readers.row_builder import RowBuilder, build_row_batch


def read_lines(source: storage.InputStream, input_split: InputSplit, encoding: str) -> Iterator[list[Any]]:
    """Yield lists of the lines that begin in a split: bytes for UTF-8, otherwise text.

    Raises:
        InputError: The file cannot be read, or has become shorter since it was planned.
    """
    if (source.size or 0) < (input_split.stop or 0):
        raise InputError(
            f"{storage.format_location(input_split.path)}: has become shorter while it was read",
            "run the same command again when no other program writes to the file",
        )
    if input_split.unit == "bytes" and input_split.stop is not None:
        blocks = read_line_range(source, input_split.start, input_split.stop)
        return iterate_lines(blocks, encoding, input_split.path, input_split.start)
    return iterate_lines(source, encoding, input_split.path)


class RowsOfLines(Protocol):
    """The rows that some lines hold, without blank lines."""

    reject_reasons: RejectReasons

    @property
    def line_offsets(self) -> Sequence[int]:
        """The position of each row's line among the lines, from 0."""

    @property
    def unusual_positions(self) -> Collection[int]:
        """Rows whose values may contain NaN or lone surrogates."""

    def column(self, name: str) -> list[Any]:
        """The value of a column in each row; null where a row does not have it."""

    def raw_row(self, position: int) -> str:
        """The beginning of a row as it is in the file."""

    def keep_raw_rows(self, length: int) -> RawRow:
        """A `raw_row` that holds only so many bytes of each row, for `RowBatch`."""


def read_rows(
    input_split: InputSplit,
    row_builder: RowBuilder,
    encoding: str,
    prefetched: storage.PrefetchedFiles | None,
    parse: Callable[[list[Any], str], RowsOfLines],
) -> Generator[RowBatch, None, None]:
    """Yield the rows of a split of a file with a row per line.

    Args:
        input_split: The split.
        row_builder: The columns.
        encoding: The text encoding of the file.
        prefetched: Files that are open already.
        parse: Returns the rows of a list of lines.

    Raises:
        InputError: The file cannot be read, or has become shorter since it was planned.
    """
    line_count = 0
    with storage.open_input(input_split.path, prefetched=prefetched) as source:
        for lines in read_lines(source, input_split, encoding):
            rows = parse(lines, encoding)
            batch = build_row_batch(
                row_builder,
                {name: rows.column(name) for name in row_builder.column_names},
                rows.reject_reasons,
                rows.raw_row,
                lines=_add_to_offsets(rows.line_offsets, line_count + 1),
                line_count=len(lines),
                bytes_read=min(source.position, input_split.stop or source.position) - input_split.start,
                unusual_positions=rows.unusual_positions,
            )
            yield replace(batch, raw_row=rows.keep_raw_rows(row_builder.kept_raw_length))
            line_count += len(lines)


def _add_to_offsets(offsets: Sequence[int], first: int) -> Sequence[int]:
    if isinstance(offsets, range):
        return range(first, first + len(offsets))
    return [first + offset for offset in offsets]


def count_rows(input_split: InputSplit, encoding: str) -> tuple[int, int]:
    """The number of lines of a split that are not blank, which are its rows, and of all its lines."""
    rows = lines = 0
    with storage.open_input(input_split.path) as source:
        for block in read_lines(source, input_split, encoding):
            lines += len(block)
            rows += len(block) - sum(not line or line.isspace() for line in block)
    return rows, lines


def count_lines_before(path: str, start: int) -> int:
    """The number of lines of a plain file before the first that begins at byte `start` or later."""
    newlines = int(start > 0)
    remaining = start - 1
    with storage.open_input(path) as source:
        while remaining > 0 and (block := source.read()):
            newlines += block[:remaining].count(b"\n")
            remaining -= len(block)
    return newlines


def iterate_lines(blocks: Iterable[bytes], encoding: str, path: str, start: int = 0) -> Iterator[list[Any]]:
    """Yield lists of lines of a stream that begins at byte `start` of its file: bytes for UTF-8, otherwise text."""
    if encoding == "utf-8":
        return split_lines(blocks if start else strip_byte_order_mark(blocks), b"\n", path)
    return split_lines(TextDecoder(encoding, path).decode(blocks), "\n", path)


def read_line_range(source: storage.InputStream, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes of the lines that begin in [start, stop) of a plain file."""
    position = _find_first_line(source, start, stop)
    if position >= stop:
        return
    source.seek(position)
    for block in source:
        holds_last = position + len(block) >= stop
        end = block.find(b"\n", max(0, stop - 1 - position)) + 1 if holds_last else 0
        if end:
            yield block[:end]
            return
        position += len(block)
        yield block


def _find_first_line(source: storage.InputStream, start: int, stop: int) -> int:
    """The byte at which the first line after `start` begins; `stop` or more if no line begins before `stop`."""
    if start == 0:
        return 0
    position = start - 1
    source.seek(position)
    for block in source:
        end = block.find(b"\n") + 1
        if end or position >= stop:
            return position + (end or len(block))
        position += len(block)
    return stop
