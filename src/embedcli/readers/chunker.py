"""Rows to chunks: every chunk has exactly the rows asked for, and says where they stand and what was refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import pyarrow as pa

from embedcli.core import types as core_types
from embedcli.core.errors import InputError
from embedcli.core.types import Chunk, InputSplit, Reject
from embedcli.readers import jsonl as jsonl_reader
from embedcli.readers.row_batch import BadRow, RowBatch
from embedcli.readers.row_builder import RowBuilder
from embedcli.storage import format_location, format_path


@dataclass
class PrecedingLines:
    """How many lines stand before a piece in its file; counted when it is first asked for, if not known."""

    input_split: InputSplit
    known_count: int | None = None

    def __call__(self) -> int:
        if self.known_count is None:
            self.known_count = jsonl_reader.count_lines_before(self.input_split.path, self.input_split.start)
        return self.known_count


@dataclass(frozen=True)
class LineNumbers(Sequence[int]):
    """Where the rows of a chunk stand in their file, from 1."""

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


@dataclass
class ChunkBuilder:
    """The chunk that is being filled."""

    texts: list[str] = field(default_factory=list)
    ids: list[pa.Array] = field(default_factory=list)
    kept: list[pa.Table] = field(default_factory=list)
    line_offsets: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    characters: int = 0
    read: int = 0


@dataclass
class Chunker:
    """Cuts the rows of one piece into chunks of `size` good rows.

    A chunk closes early at CHUNK_TEXT_BYTES characters of text, or at `size` rejects, so that memory has a
    bound whatever the rows are. A full chunk is handed over when the next row comes: the last is marked as such.
    `first_row` numbers the piece's rows; `done_before` bytes were read before this piece.
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
    _seq: int = 0
    _done: int = 0
    _now: ChunkBuilder = field(default_factory=ChunkBuilder)

    def add(self, rows: RowBatch) -> Iterator[Chunk]:
        """Take in rows; yields the chunks that are full. InputError at the first reject if rejects are not allowed."""
        if self.fails_on_bad_row and rows.bad_rows:
            fault = rows.bad_rows[0]
            line = format_location(self.input_split.path, self.preceding_lines() + rows.lines[fault.position])
            raise InputError(f"{line}: {fault.reason}", "mend the row, or let it be rejected: --on-bad-row reject")
        at = 0
        while at < rows.row_count:
            if self._full():
                yield self._closed(last=False)
            stop = self._fit(rows, at)
            self._take(rows, at, stop)
            at = stop
        self.line_count += rows.line_count
        self._done = rows.bytes_read

    def finish(self, size: int | None) -> Chunk:
        """The last chunk, empty if the piece has no rows. `size` is the piece's share of its file in bytes."""
        self._done = self._done if size is None else size
        return self._closed(last=True)

    def _full(self) -> bool:
        now = self._now
        weight = now.characters >= core_types.MAX_CHUNK_TEXT_BYTES
        return weight or len(now.texts) >= self.chunk_rows or len(now.rejects) >= self.chunk_rows

    def _fit(self, rows: RowBatch, at: int) -> int:
        """Up to which row these go into the current chunk: it is full with the last of them, or they all fit."""
        now, count = self._now, rows.row_count
        good = rows.accepted_before
        bad = np.arange(count + 1) - good
        limits = (
            (good, self.chunk_rows - len(now.texts)),
            (bad, self.chunk_rows - len(now.rejects)),
            (rows.characters_before, core_types.MAX_CHUNK_TEXT_BYTES - now.characters),
        )
        return min(count, *(int(np.searchsorted(sums, sums[at] + room)) for sums, room in limits))

    def _take(self, rows: RowBatch, at: int, stop: int) -> None:
        now = self._now
        first, last = int(rows.accepted_before[at]), int(rows.accepted_before[stop])
        good = rows.accepted[first:last]
        now.texts += rows.texts[first:last]
        now.line_offsets += [rows.lines[i] for i in good]
        now.ids.append(self._ids(rows, first, last))
        now.kept.append(rows.kept.slice(first, last - first))
        now.rejects += [self._reject(rows, fault) for fault in rows.bad_rows[at - first : stop - last]]
        now.characters += int(rows.characters_before[stop] - rows.characters_before[at])
        now.read += stop - at
        if stop == rows.row_count:
            self.row_count += rows.row_count

    def _ids(self, rows: RowBatch, first: int, last: int) -> pa.Array:
        if rows.ids is not None:
            return rows.ids.slice(first, last - first)
        return pa.array(np.asarray(rows.accepted[first:last], np.int64) + (self.first_row + self.row_count))

    def _reject(self, rows: RowBatch, fault: BadRow) -> Reject:
        position, reason, known, raw = fault
        row_id = self.first_row + self.row_count + position if self.row_builder.columns.id_column is None else known
        return Reject(
            format_path(self.input_split.path), self.preceding_lines() + rows.lines[position], reason, row_id, raw
        )

    def _closed(self, *, last: bool) -> Chunk:
        now, self._now = self._now, ChunkBuilder()
        seq, self._seq = self._seq, self._seq + 1
        return Chunk(
            input_split=self.input_split,
            index_in_split=seq,
            ids=pa.concat_arrays(now.ids) if now.ids else pa.array([], self.row_builder.columns.id_type),
            texts=now.texts,
            kept_columns=self._kept(now),
            lines=LineNumbers(self.preceding_lines, now.line_offsets),
            rejects=tuple(now.rejects),
            rows_read=now.read,
            bytes_read=self.bytes_before + self._done,
            is_last=last,
        )

    def _kept(self, now: ChunkBuilder) -> pa.Table:
        table = pa.concat_tables(now.kept) if now.kept else self.row_builder.schema().empty_table()
        if not self.row_builder.columns.has_source_column:
            return table
        source = pa.repeat(pa.scalar(format_path(self.input_split.path), pa.string()), len(now.texts))
        return table.append_column("source", source) if table.num_columns else pa.table({"source": source})
