"""Chunks of the pieces of a plan, numbered the same whichever pieces are read, and by whom."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from embedcli import storage
from embedcli.core.job import Job
from embedcli.core.types import DEFAULT_CHUNK_ROWS, Chunk, InputPlan, InputSplit
from embedcli.readers import csv as csv_reader
from embedcli.readers import jsonl as jsonl_reader
from embedcli.readers import parquet as parquet_reader
from embedcli.readers.chunker import Chunker, PrecedingLines
from embedcli.readers.decoding import normalize_encoding_name
from embedcli.readers.row_batch import RowBatch
from embedcli.readers.row_builder import RowBuilder


class SplitStart(NamedTuple):
    """What stands before a piece: `row` rows in all inputs, `line` lines in its own file."""

    first_row: int
    lines_before: int


def read_chunks(
    job: Job, plan: InputPlan, splits: Iterable[InputSplit], starts: Mapping[int, SplitStart] | None = None
) -> Generator[Chunk, None, None]:
    """The rows of some pieces of the plan, in their order, as chunks of `job.chunk_rows` good rows.

    The chunks of a piece are the same whichever other pieces are read. Every row is in a chunk or among its
    rejects. A piece ends with a chunk that has `last`. With `on_bad_row` "fail" the first bad row raises
    InputError `file:line: reason`. `starts` (by piece, see `row_starts`) spares counting rows before pieces that do not
    follow each other; only generated ids need it. Closing the iterator closes the files.
    """
    fields = RowBuilder.from_columns(plan.columns)
    places = RowNumbering(job, plan, starts)
    done = 0
    prefetched = storage.PrefetchedFiles()
    for piece in prefetched.iterate(splits, sequential_path):
        chunker = Chunker(
            input_split=piece,
            row_builder=fields,
            chunk_rows=job.chunk_rows or DEFAULT_CHUNK_ROWS,
            first_row=places.first_row(piece),
            preceding_lines=places.lines_before(piece),
            bytes_before=done,
            fails_on_bad_row=job.on_bad_row == "fail",
        )
        with closing(read_split_rows(job, plan, piece, fields, prefetched)) as stream:
            for rows in stream:
                yield from chunker.add(rows)
        last = chunker.finish(piece.stop - piece.start if piece.unit == "bytes" and piece.stop is not None else None)
        done = last.bytes_read
        places.mark_read(piece, chunker)
        yield last


def sequential_path(input_split: InputSplit) -> str | None:
    """The path of a piece that is read from where a file is read first; None for one within a file of lines."""
    return None if input_split.unit == "bytes" and input_split.start else input_split.path


def read_split_rows(
    job: Job, plan: InputPlan, input_split: InputSplit, fields: RowBuilder, prefetched: storage.PrefetchedFiles
) -> Generator[RowBatch, None, None]:
    """The reader of the piece's format."""
    encoding = normalize_encoding_name(job.encoding)
    kind = plan.formats[input_split.path]
    match kind:
        case "jsonl":
            return jsonl_reader.read_jsonl(input_split, fields, encoding, prefetched)
        case "csv" | "tsv":
            return csv_reader.read_csv(input_split, fields, kind, encoding, prefetched)
        case "parquet":
            return parquet_reader.read_parquet(input_split, fields, prefetched)
    assert_never(kind)


def count_split_starts(job: Job, plan: InputPlan) -> list[SplitStart]:
    """Where each piece of the plan starts: it costs counting the rows of every piece but the last.

    Parquet files need no reading for it. InputError if stdin or a pipe is not the last input.
    """
    starts: list[SplitStart] = []
    row = line = 0
    for piece in plan.splits:
        line = 0 if piece.start == 0 else line
        starts.append(SplitStart(row, line))
        if piece.index + 1 < len(plan.splits):
            rows, lines = count_rows_and_lines(job, plan, piece)
            row += rows
            line += lines
    return starts


def count_rows_and_lines(job: Job, plan: InputPlan, input_split: InputSplit) -> tuple[int, int]:
    """How many rows a piece has, good or bad, and how many lines."""
    kind = plan.formats[input_split.path]
    match kind:
        case "jsonl":
            return jsonl_reader.count_jsonl_rows(input_split, normalize_encoding_name(job.encoding))
        case "csv" | "tsv":
            return csv_reader.count_csv_rows(input_split, kind, normalize_encoding_name(job.encoding))
        case "parquet":
            rows = (input_split.stop or 0) - input_split.start
            return rows, rows
    assert_never(kind)


@dataclass
class RowNumbering:
    """How many rows and lines stand before the pieces that are read; counts those that are left out if it must."""

    job: Job
    plan: InputPlan
    starts: Mapping[int, SplitStart] | None
    _row: int = 0
    _next: int = 0
    _after: tuple[str, int | None, int | None] | None = None

    def first_row(self, input_split: InputSplit) -> int:
        """The number of the piece's first row; 0 if ids are not generated."""
        if self.plan.columns.id_column is not None:
            return 0
        if self.starts is not None:
            return self.starts[input_split.index].first_row
        if self._next > input_split.index:
            self._row = self._next = 0
        while self._next < input_split.index:
            self._row += count_rows_and_lines(self.job, self.plan, self.plan.splits[self._next])[0]
            self._next += 1
        return self._row

    def lines_before(self, input_split: InputSplit) -> PrecedingLines:
        """What to add to the piece's own line numbers; counted later, and only if asked, where nobody knows."""
        if input_split.unit == "rows" or input_split.start == 0:
            return PrecedingLines(input_split, input_split.start)
        if self.starts is not None:
            return PrecedingLines(input_split, self.starts[input_split.index].lines_before)
        path, stop, lines = self._after or ("", None, None)
        return PrecedingLines(input_split, lines if (path, stop) == (input_split.path, input_split.start) else None)

    def mark_read(self, input_split: InputSplit, chunker: Chunker) -> None:
        """The piece has been read to its end."""
        self._row += chunker.row_count
        self._next = input_split.index + 1
        known = chunker.preceding_lines.known_count
        self._after = (input_split.path, input_split.stop, None if known is None else known + chunker.line_count)
