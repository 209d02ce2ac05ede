"""Chunks of the pieces of a plan, numbered the same whichever pieces are read, and by whom."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from embedcli import storage
from embedcli.core.job import Job
from embedcli.core.types import DEFAULT_CHUNK_ROWS, Chunk, Piece, Plan
from embedcli.readers import csv as csv_reader
from embedcli.readers import jsonl as jsonl_reader
from embedcli.readers import parquet as parquet_reader
from embedcli.readers.chunker import Chunker, LinesBefore
from embedcli.readers.decoding import encoding_name
from embedcli.readers.row_batch import Rows
from embedcli.readers.row_builder import Fields


class Start(NamedTuple):
    """What stands before a piece: `row` rows in all inputs, `line` lines in its own file."""

    row: int
    line: int


def read(
    job: Job, plan: Plan, pieces: Iterable[Piece], starts: Mapping[int, Start] | None = None
) -> Generator[Chunk, None, None]:
    """The rows of some pieces of the plan, in their order, as chunks of `job.chunk_rows` good rows.

    The chunks of a piece are the same whichever other pieces are read. Every row is in a chunk or among its
    rejects. A piece ends with a chunk that has `last`. With `on_bad_row` "fail" the first bad row raises
    InputError `file:line: reason`. `starts` (by piece, see `row_starts`) spares counting rows before pieces that do not
    follow each other; only generated ids need it. Closing the iterator closes the files.
    """
    fields = Fields.of(plan.columns)
    places = Places(job, plan, starts)
    done = 0
    for piece in storage.opened_ahead(pieces, read_first):
        chunker = Chunker(
            piece=piece,
            fields=fields,
            size=job.chunk_rows or DEFAULT_CHUNK_ROWS,
            first_row=places.first_row(piece),
            before=places.lines_before(piece),
            done_before=done,
            fail=job.on_bad_row == "fail",
        )
        with closing(rows_of(job, plan, piece, fields)) as stream:
            for rows in stream:
                yield from chunker.add(rows)
        last = chunker.finish(piece.stop - piece.start if piece.unit == "bytes" and piece.stop is not None else None)
        done = last.done_bytes
        places.passed(piece, chunker)
        yield last


def read_first(piece: Piece) -> str | None:
    """The path of a piece that is read from where a file is read first; None for one within a file of lines."""
    return None if piece.unit == "bytes" and piece.start else piece.path


def rows_of(job: Job, plan: Plan, piece: Piece, fields: Fields) -> Generator[Rows, None, None]:
    """The reader of the piece's format."""
    encoding = encoding_name(job.encoding)
    kind = plan.formats[piece.path]
    match kind:
        case "jsonl":
            return jsonl_reader.read(piece, fields, encoding)
        case "csv" | "tsv":
            return csv_reader.read(piece, fields, kind, encoding)
        case "parquet":
            return parquet_reader.read(piece, fields)
    assert_never(kind)


def row_starts(job: Job, plan: Plan) -> list[Start]:
    """Where each piece of the plan starts: it costs counting the rows of every piece but the last.

    Parquet files need no reading for it. InputError if stdin or a pipe is not the last input.
    """
    starts: list[Start] = []
    row = line = 0
    for piece in plan.pieces:
        line = 0 if piece.start == 0 else line
        starts.append(Start(row, line))
        if piece.index + 1 < len(plan.pieces):
            rows, lines = counted(job, plan, piece)
            row += rows
            line += lines
    return starts


def counted(job: Job, plan: Plan, piece: Piece) -> tuple[int, int]:
    """How many rows a piece has, good or bad, and how many lines."""
    kind = plan.formats[piece.path]
    match kind:
        case "jsonl":
            return jsonl_reader.count(piece, encoding_name(job.encoding))
        case "csv" | "tsv":
            return csv_reader.count(piece, kind, encoding_name(job.encoding))
        case "parquet":
            rows = (piece.stop or 0) - piece.start
            return rows, rows
    assert_never(kind)


@dataclass
class Places:
    """How many rows and lines stand before the pieces that are read; counts those that are left out if it must."""

    job: Job
    plan: Plan
    starts: Mapping[int, Start] | None
    _row: int = 0
    _next: int = 0
    _after: tuple[str, int | None, int | None] | None = None

    def first_row(self, piece: Piece) -> int:
        """The number of the piece's first row; 0 if ids are not generated."""
        if self.plan.columns.id_column is not None:
            return 0
        if self.starts is not None:
            return self.starts[piece.index].row
        if self._next > piece.index:
            self._row = self._next = 0
        while self._next < piece.index:
            self._row += counted(self.job, self.plan, self.plan.pieces[self._next])[0]
            self._next += 1
        return self._row

    def lines_before(self, piece: Piece) -> LinesBefore:
        """What to add to the piece's own line numbers; counted later, and only if asked, where nobody knows."""
        if piece.unit == "rows" or piece.start == 0:
            return LinesBefore(piece, piece.start)
        if self.starts is not None:
            return LinesBefore(piece, self.starts[piece.index].line)
        path, stop, lines = self._after or ("", None, None)
        return LinesBefore(piece, lines if (path, stop) == (piece.path, piece.start) else None)

    def passed(self, piece: Piece, chunker: Chunker) -> None:
        """The piece has been read to its end."""
        self._row += chunker.rows
        self._next = piece.index + 1
        known = chunker.before.known
        self._after = (piece.path, piece.stop, None if known is None else known + chunker.span)
