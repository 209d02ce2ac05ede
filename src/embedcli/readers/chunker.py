"""Cut the rows of a split into chunks of a fixed size, with the line of each row and the rejects."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import pyarrow as pa

from embedcli.core.errors import InputError
from embedcli.core.types import Chunk, InputSplit, Reject
from embedcli.readers.lines import count_lines_before
from embedcli.readers.row_batch import BadRow, RawRow, RowBatch
from embedcli.readers.row_builder import RowBuilder
from embedcli.storage import format_location, format_path

# A chunk closes early at this many characters of text and kept strings, so that rows of 10 MB do not fill the memory.
MAX_CHUNK_CHARACTERS = 32 << 20


@dataclass
class PrecedingLines:
    """The number of lines before a split in its file; if it is not known, they are counted at the first call."""

    input_split: InputSplit
    known_count: int | None = None

    def __call__(self) -> int:
        if self.known_count is None:
            self.known_count = count_lines_before(self.input_split.path, self.input_split.start)
        return self.known_count


@dataclass(frozen=True)
class LineNumbers(Sequence[int]):
    """The line of each row of a chunk in its file, from 1."""

    preceding: PrecedingLines
    line_offsets: Sequence[int]

    @overload
    def __getitem__(self, i: int) -> int: ...

    @overload
    def __getitem__(self, i: slice) -> LineNumbers: ...

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return LineNumbers(self.preceding, self.line_offsets[i])
        return self.preceding() + self.line_offsets[i]

    def __len__(self) -> int:
        return len(self.line_offsets)


class RawRows(Sequence[str]):
    """The beginning of each row of a chunk as it is in its file, made when it is asked for."""

    def __init__(self) -> None:
        self._starts = [0]
        self._parts: list[tuple[RawRow, Sequence[int]]] = []

    def add(self, raw_row: RawRow, positions: Sequence[int]) -> None:
        """Add the rows at these positions of a batch."""
        self._parts.append((raw_row, positions))
        self._starts.append(self._starts[-1] + len(positions))

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[row] for row in range(len(self))[i]]
        row = range(len(self))[i]
        part = bisect_right(self._starts, row) - 1
        raw_row, positions = self._parts[part]
        return raw_row(positions[row - self._starts[part]])

    def __len__(self) -> int:
        return self._starts[-1]


@dataclass
class ChunkBuilder:
    """The rows of the next chunk so far."""

    texts: list[str] = field(default_factory=list)
    ids: list[pa.Array] = field(default_factory=list)
    kept: list[pa.Table] = field(default_factory=list)
    line_offsets: list[int] = field(default_factory=list)
    raw_rows: RawRows = field(default_factory=RawRows)
    rejects: list[Reject] = field(default_factory=list)
    repeated_headers: list[int] = field(default_factory=list)
    characters: int = 0
    read: int = 0


@dataclass
class Chunker:
    """Cuts the rows of one split into chunks of `chunk_rows` accepted rows.

    A chunk closes early at MAX_CHUNK_CHARACTERS characters or at `chunk_rows` rejects, so that memory is bounded.
    A full chunk is returned only when the next row arrives, because the last chunk of a split is marked.

    Attributes:
        input_split: The split.
        row_builder: The columns.
        chunk_rows: The number of accepted rows in a chunk.
        first_row: The number of the first row of the split, for generated ids.
        preceding_lines: The number of lines before the split in its file.
        bytes_before: Bytes of the inputs that were read before this split, for progress.
        fails_on_bad_row: Whether the first bad row is an error.
        row_count: Rows added so far, accepted and bad.
        line_count: Lines added so far.
    """

    input_split: InputSplit
    row_builder: RowBuilder
    chunk_rows: int
    first_row: int
    preceding_lines: PrecedingLines
    bytes_before: int = 0
    fails_on_bad_row: bool = False
    row_count: int = 0
    line_count: int = 0
    _next_index: int = 0
    _bytes_read: int = 0
    _builder: ChunkBuilder = field(default_factory=ChunkBuilder)

    def add(self, rows: RowBatch) -> Iterator[Chunk]:
        """Add rows and yield the chunks that are full.

        Raises:
            InputError: A row is bad and `fails_on_bad_row` is set.
        """
        if self.fails_on_bad_row and rows.bad_rows:
            bad_row = rows.bad_rows[0]
            location = format_location(self.input_split.path, self.preceding_lines() + rows.lines[bad_row.position])
            raise InputError(f"{location}: {bad_row.reason}", "fix the row, or use --on-bad-row reject")
        start, bytes_before = 0, self._bytes_read
        while start < rows.row_count:
            if self._is_full():
                yield self._build_chunk(is_last=False)
            stop = self._find_stop(rows, start)
            self._add_rows(rows, start, stop)
            start = stop
            # A batch of rows may fill several chunks: each counts its share of the bytes.
            self._bytes_read = bytes_before + (rows.bytes_read - bytes_before) * stop // rows.row_count
        self._builder.repeated_headers += rows.repeated_headers
        self.line_count += rows.line_count
        self._bytes_read = rows.bytes_read

    def finish(self, split_bytes: int | None) -> Chunk:
        """Return the last chunk, which is empty if the split has no rows.

        Args:
            split_bytes: The size of the split, for progress; None to use the bytes that were read.
        """
        self._bytes_read = self._bytes_read if split_bytes is None else split_bytes
        return self._build_chunk(is_last=True)

    def _is_full(self) -> bool:
        builder = self._builder
        rows = max(len(builder.texts), len(builder.rejects))
        return builder.characters >= MAX_CHUNK_CHARACTERS or rows >= self.chunk_rows

    def _find_stop(self, rows: RowBatch, start: int) -> int:
        """The row after the last that fits into the current chunk."""
        builder, count = self._builder, rows.row_count
        rejected_before = np.arange(count + 1) - rows.accepted_before
        limits = (
            (rows.accepted_before, self.chunk_rows - len(builder.texts)),
            (rejected_before, self.chunk_rows - len(builder.rejects)),
            (rows.characters_before, MAX_CHUNK_CHARACTERS - builder.characters),
        )
        return min(count, *(int(np.searchsorted(sums, sums[start] + room)) for sums, room in limits))

    def _add_rows(self, rows: RowBatch, start: int, stop: int) -> None:
        builder = self._builder
        first, last = int(rows.accepted_before[start]), int(rows.accepted_before[stop])
        builder.texts += rows.texts[first:last]
        builder.line_offsets += [rows.lines[i] for i in rows.accepted[first:last]]
        builder.raw_rows.add(rows.raw_row, rows.accepted[first:last])
        builder.ids.append(self._ids(rows, first, last))
        builder.kept.append(rows.kept.slice(first, last - first))
        builder.rejects += [self._reject(rows, bad_row) for bad_row in rows.bad_rows[start - first : stop - last]]
        builder.characters += int(rows.characters_before[stop] - rows.characters_before[start])
        builder.read += stop - start
        if stop == rows.row_count:
            self.row_count += rows.row_count

    def _ids(self, rows: RowBatch, first: int, last: int) -> pa.Array:
        if rows.ids is not None:
            return rows.ids.slice(first, last - first)
        return pa.array(np.asarray(rows.accepted[first:last], np.int64) + (self.first_row + self.row_count))

    def _reject(self, rows: RowBatch, bad_row: BadRow) -> Reject:
        has_ids = self.row_builder.columns.id_column is not None
        return Reject(
            source=format_path(self.input_split.path),
            line=self.preceding_lines() + rows.lines[bad_row.position],
            reason=bad_row.reason,
            id=bad_row.id if has_ids else self.first_row + self.row_count + bad_row.position,
            raw=bad_row.raw,
        )

    def _build_chunk(self, *, is_last: bool) -> Chunk:
        builder, self._builder = self._builder, ChunkBuilder()
        index, self._next_index = self._next_index, self._next_index + 1
        return Chunk(
            input_split=self.input_split,
            index_in_split=index,
            ids=pa.concat_arrays(builder.ids) if builder.ids else pa.array([], self.row_builder.columns.id_type),
            texts=builder.texts,
            kept_columns=self._kept_columns(builder),
            lines=LineNumbers(self.preceding_lines, builder.line_offsets),
            raw_rows=builder.raw_rows,
            rejects=tuple(builder.rejects),
            repeated_headers=tuple(builder.repeated_headers),
            rows_read=builder.read,
            bytes_read=self.bytes_before + self._bytes_read,
            is_last=is_last,
        )

    def _kept_columns(self, builder: ChunkBuilder) -> pa.Table:
        table = pa.concat_tables(builder.kept) if builder.kept else self.row_builder.schema().empty_table()
        if not self.row_builder.columns.has_source_column:
            return table
        source = pa.repeat(pa.scalar(format_path(self.input_split.path), pa.string()), len(builder.texts))
        return table.append_column("source", source) if table.num_columns else pa.table({"source": source})
