"""Rows to chunks: every chunk has exactly the rows asked for, and says where they stand and what was refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import pyarrow as pa

from embedcli.core import types as core_types
from embedcli.core.errors import InputError
from embedcli.core.types import Chunk, Piece, Reject
from embedcli.readers import jsonl as jsonl_reader
from embedcli.readers.row_batch import Fault, Rows
from embedcli.readers.row_builder import Fields
from embedcli.storage import shown, where


@dataclass
class LinesBefore:
    """How many lines stand before a piece in its file; counted when it is first asked for, if not known."""

    piece: Piece
    known: int | None = None

    def __call__(self) -> int:
        if self.known is None:
            self.known = jsonl_reader.lines_before(self.piece.path, self.piece.start)
        return self.known


@dataclass(frozen=True)
class Lines(Sequence[int]):
    """Where the rows of a chunk stand in their file, from 1."""

    before: LinesBefore
    places: Sequence[int]

    @overload
    def __getitem__(self, i: int) -> int: ...

    @overload
    def __getitem__(self, i: slice) -> Lines: ...

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return Lines(self.before, self.places[i])
        return self.before() + self.places[i]

    def __len__(self) -> int:
        return len(self.places)


@dataclass
class Building:
    """The chunk that is being filled."""

    texts: list[str] = field(default_factory=list)
    ids: list[pa.Array] = field(default_factory=list)
    kept: list[pa.Table] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    weight: int = 0
    read: int = 0


@dataclass
class Chunker:
    """Cuts the rows of one piece into chunks of `size` good rows.

    A chunk closes early at CHUNK_TEXT_BYTES characters of text, or at `size` rejects, so that memory has a
    bound whatever the rows are. A full chunk is handed over when the next row comes: the last is marked as such.
    `first_row` numbers the piece's rows; `done_before` bytes were read before this piece.
    """

    piece: Piece
    fields: Fields
    size: int
    first_row: int
    before: LinesBefore
    done_before: int = 0
    fail: bool = False
    rows: int = 0
    span: int = 0
    _seq: int = 0
    _done: int = 0
    _now: Building = field(default_factory=Building)

    def add(self, rows: Rows) -> Iterator[Chunk]:
        """Take in rows; yields the chunks that are full. InputError at the first reject if rejects are not allowed."""
        if self.fail and rows.faults:
            fault = rows.faults[0]
            line = where(self.piece.path, self.before() + rows.lines[fault.position])
            raise InputError(f"{line}: {fault.reason}", "mend the row, or let it be rejected: --on-bad-row reject")
        at = 0
        while at < rows.count:
            if self._full():
                yield self._closed(last=False)
            stop = self._fit(rows, at)
            self._take(rows, at, stop)
            at = stop
        self.span += rows.span
        self._done = rows.done

    def finish(self, size: int | None) -> Chunk:
        """The last chunk, empty if the piece has no rows. `size` is the piece's share of its file in bytes."""
        self._done = self._done if size is None else size
        return self._closed(last=True)

    def _full(self) -> bool:
        now = self._now
        weight = now.weight >= core_types.CHUNK_TEXT_BYTES
        return weight or len(now.texts) >= self.size or len(now.rejects) >= self.size

    def _fit(self, rows: Rows, at: int) -> int:
        """Up to which row these go into the current chunk: it is full with the last of them, or they all fit."""
        now, count = self._now, rows.count
        good = rows.good_before
        bad = np.arange(count + 1) - good
        limits = (
            (good, self.size - len(now.texts)),
            (bad, self.size - len(now.rejects)),
            (rows.weight_before, core_types.CHUNK_TEXT_BYTES - now.weight),
        )
        return min(count, *(int(np.searchsorted(sums, sums[at] + room)) for sums, room in limits))

    def _take(self, rows: Rows, at: int, stop: int) -> None:
        now = self._now
        first, last = int(rows.good_before[at]), int(rows.good_before[stop])
        good = rows.good[first:last]
        now.texts += rows.texts[first:last]
        now.places += [rows.lines[i] for i in good]
        now.ids.append(self._ids(rows, first, last))
        now.kept.append(rows.kept.slice(first, last - first))
        now.rejects += [self._reject(rows, fault) for fault in rows.faults[at - first : stop - last]]
        now.weight += int(rows.weight_before[stop] - rows.weight_before[at])
        now.read += stop - at
        if stop == rows.count:
            self.rows += rows.count

    def _ids(self, rows: Rows, first: int, last: int) -> pa.Array:
        if rows.ids is not None:
            return rows.ids.slice(first, last - first)
        return pa.array(np.asarray(rows.good[first:last], np.int64) + (self.first_row + self.rows))

    def _reject(self, rows: Rows, fault: Fault) -> Reject:
        position, reason, known, raw = fault
        row_id = self.first_row + self.rows + position if self.fields.columns.id_column is None else known
        return Reject(shown(self.piece.path), self.before() + rows.lines[position], reason, row_id, raw)

    def _closed(self, *, last: bool) -> Chunk:
        now, self._now = self._now, Building()
        seq, self._seq = self._seq, self._seq + 1
        return Chunk(
            piece=self.piece,
            seq=seq,
            ids=pa.concat_arrays(now.ids) if now.ids else pa.array([], self.fields.columns.id_type),
            texts=now.texts,
            kept=self._kept(now),
            lines=Lines(self.before, now.places),
            rejects=tuple(now.rejects),
            read=now.read,
            done_bytes=self.done_before + self._done,
            last=last,
        )

    def _kept(self, now: Building) -> pa.Table:
        table = pa.concat_tables(now.kept) if now.kept else self.fields.schema().empty_table()
        if not self.fields.columns.source_column:
            return table
        source = pa.repeat(pa.scalar(shown(self.piece.path), pa.string()), len(now.texts))
        return table.append_column("source", source) if table.num_columns else pa.table({"source": source})
