"""Read the splits of a plan as chunks; rows and chunks are numbered the same whichever splits a process reads."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from embedcli import storage
from embedcli.core.constants import DEFAULT_CHUNK_ROWS
from embedcli.core.job import Job
from embedcli.core.types import Chunk, InputPlan, InputSplit
from embedcli.readers import arrow as arrow_reader
from embedcli.readers import csv as csv_reader
from embedcli.readers import json_array
from embedcli.readers import jsonl as jsonl_reader
from embedcli.readers import parquet as parquet_reader
from embedcli.readers import text as text_reader
from embedcli.readers.chunker import Chunker, PrecedingLines
from embedcli.readers.csv_dialect import CsvOptions
from embedcli.readers.decoding import MAX_REJECT_CHARACTERS, normalize_encoding_name
from embedcli.readers.lines import count_rows
from embedcli.readers.row_batch import RowBatch
from embedcli.readers.row_builder import RowBuilder

# What a chunk keeps of its rows as they are in the file, for rejects of the encoder.
KEPT_RAW_BYTES = 8 << 20


class SplitStart(NamedTuple):
    """The number of rows before a split in all inputs, and the number of lines before it in its file."""

    first_row: int
    lines_before: int


def read_chunks(
    job: Job, plan: InputPlan, splits: Iterable[InputSplit], starts: Mapping[int, SplitStart] | None = None
) -> Generator[Chunk, None, None]:
    """Read splits as chunks of `job.chunk_rows` accepted rows. Every row is in a chunk or one of its rejects.

    The chunks of a split do not depend on which other splits are read. Closing the iterator closes the files.

    Args:
        job: The job.
        plan: The plan of its inputs.
        splits: The splits to read, in any order.
        starts: The start of each split by index, from `count_split_starts`. Without it, rows before splits that do not
            follow each other are counted, if ids are generated.

    Yields:
        The chunks of each split; the last one of a split has `is_last`.

    Raises:
        InputError: An input cannot be read; with --on-bad-row fail also for the first bad row.
    """
    chunk_rows = job.chunk_rows or DEFAULT_CHUNK_ROWS
    kept_raw_length = min(MAX_REJECT_CHARACTERS, KEPT_RAW_BYTES // chunk_rows)
    row_builder = replace(RowBuilder.from_columns(plan.columns), kept_raw_length=kept_raw_length)
    numbering = RowNumbering(job, plan, starts)
    bytes_read = 0
    prefetched = storage.PrefetchedFiles()
    for input_split in prefetched.iterate(splits, sequential_path):
        chunker = Chunker(
            input_split=input_split,
            row_builder=row_builder,
            chunk_rows=chunk_rows,
            first_row=numbering.first_row(input_split),
            preceding_lines=numbering.lines_before(input_split),
            bytes_before=bytes_read,
            fails_on_bad_row=job.on_bad_row == "fail",
        )
        with closing(read_split_rows(job, plan, input_split, row_builder, prefetched)) as stream:
            for rows in stream:
                yield from chunker.add(rows)
        is_byte_range = input_split.unit == "bytes" and input_split.stop is not None
        last = chunker.finish((input_split.stop or 0) - input_split.start if is_byte_range else None)
        bytes_read = last.bytes_read
        numbering.mark_read(input_split, chunker)
        yield last


def sequential_path(input_split: InputSplit) -> str | None:
    """The path of a split that is read from the start of its file; None for a later byte range."""
    return None if input_split.unit == "bytes" and input_split.start else input_split.path


def read_split_rows(
    job: Job, plan: InputPlan, input_split: InputSplit, row_builder: RowBuilder, prefetched: storage.PrefetchedFiles
) -> Generator[RowBatch, None, None]:
    """Yield the rows of a split with the reader of its format."""
    stream = _read_all_rows(job, plan, input_split, row_builder, prefetched)
    return stream if input_split.max_rows is None else limit_rows(stream, input_split.max_rows)


def _read_all_rows(
    job: Job, plan: InputPlan, input_split: InputSplit, row_builder: RowBuilder, prefetched: storage.PrefetchedFiles
) -> Generator[RowBatch, None, None]:
    encoding = encoding_of(job, plan, input_split)
    file_format = plan.formats[input_split.path]
    row_builder = row_builder.for_path(input_split.path)
    match file_format:
        case "jsonl":
            rows = jsonl_reader.read_jsonl(input_split, row_builder, encoding, prefetched)
        case "json":
            rows = json_array.read_json_array(input_split, row_builder, encoding, prefetched)
        case "text":
            rows = text_reader.read_text(input_split, row_builder, encoding, prefetched)
        case "csv" | "tsv":
            options = CsvOptions.from_job(job)
            rows = csv_reader.read_csv(input_split, row_builder, file_format, encoding, options, prefetched)
        case "parquet":
            rows = parquet_reader.read_parquet(input_split, row_builder, prefetched)
        case "arrow":
            read_arrow = arrow_reader.read_arrow_file if input_split.unit == "rows" else arrow_reader.read_arrow_stream
            rows = read_arrow(input_split, row_builder, prefetched)
        case _:
            assert_never(file_format)
    return rows


def count_split_starts(job: Job, plan: InputPlan) -> list[SplitStart]:
    """Find the start of each split, by counting the rows of every split but the last.

    Parquet and Arrow files are not read for it.

    Raises:
        InputError: An input cannot be read, or a stream is not the last input.
    """
    starts: list[SplitStart] = []
    row = line = 0
    for input_split in plan.splits:
        line = 0 if input_split.start == 0 else line
        starts.append(SplitStart(row, line))
        if input_split.index + 1 < len(plan.splits):
            rows, lines = count_rows_and_lines(job, plan, input_split)
            row += rows
            line += lines
    return starts


def encoding_of(job: Job, plan: InputPlan, input_split: InputSplit) -> str:
    """The canonical name of the text encoding of a split's file."""
    return plan.encodings.get(input_split.path) or normalize_encoding_name(job.encoding)


def limit_rows(stream: Generator[RowBatch, None, None], max_rows: int) -> Generator[RowBatch, None, None]:
    """Yield at most `max_rows` rows, accepted or bad, and close the stream."""
    with closing(stream):
        for rows in stream:
            yield rows if rows.row_count <= max_rows else rows.head(max_rows)
            max_rows -= rows.row_count
            if max_rows <= 0:
                return


def count_rows_up_to(job: Job, plan: InputPlan, input_split: InputSplit, max_rows: int) -> int:
    """The number of rows of a split, accepted and bad, or `max_rows` if it has more."""
    if input_split.unit == "all":
        row_builder = RowBuilder.from_columns(plan.columns)
        limited = replace(input_split, max_rows=max_rows)
        with closing(read_split_rows(job, plan, limited, row_builder, storage.PrefetchedFiles())) as stream:
            return sum(rows.row_count for rows in stream)
    return min(max_rows, count_rows_and_lines(job, plan, input_split)[0])


def count_rows_and_lines(job: Job, plan: InputPlan, input_split: InputSplit) -> tuple[int, int]:
    """The number of rows of a split, accepted and bad, and the number of its lines."""
    file_format = plan.formats[input_split.path]
    match file_format:
        case "jsonl" | "text":
            return count_rows(input_split, encoding_of(job, plan, input_split))
        case "json":
            return json_array.count_elements(input_split, encoding_of(job, plan, input_split))
        case "csv" | "tsv":
            options = CsvOptions.from_job(job)
            return csv_reader.count_csv_rows(input_split, file_format, encoding_of(job, plan, input_split), options)
        case "arrow" if input_split.unit == "all":
            return arrow_reader.count_stream_rows(input_split)
        case "parquet" | "arrow":
            rows = (input_split.stop or 0) - input_split.start
            return rows, rows
    assert_never(file_format)


@dataclass
class RowNumbering:
    """Finds the number of rows and lines before the splits that are read, counting skipped splits where needed."""

    job: Job
    plan: InputPlan
    starts: Mapping[int, SplitStart] | None
    _next_row: int = 0
    _next_split: int = 0
    _previous_end: tuple[str, int | None, int | None] | None = None

    def first_row(self, input_split: InputSplit) -> int:
        """The number of the first row of a split; 0 if ids are not generated."""
        if self.plan.columns.id_column is not None:
            return 0
        if self.starts is not None:
            return self.starts[input_split.index].first_row
        if self._next_split > input_split.index:
            self._next_row = self._next_split = 0
        while self._next_split < input_split.index:
            self._next_row += count_rows_and_lines(self.job, self.plan, self.plan.splits[self._next_split])[0]
            self._next_split += 1
        return self._next_row

    def lines_before(self, input_split: InputSplit) -> PrecedingLines:
        """The number of lines before a split, to add to its own line numbers; counted on demand if not known."""
        if input_split.unit == "rows" or input_split.start == 0:
            return PrecedingLines(input_split, input_split.start)
        if self.starts is not None:
            return PrecedingLines(input_split, self.starts[input_split.index].lines_before)
        path, stop, lines = self._previous_end or ("", None, None)
        return PrecedingLines(input_split, lines if (path, stop) == (input_split.path, input_split.start) else None)

    def mark_read(self, input_split: InputSplit, chunker: Chunker) -> None:
        """Note that a split was read to its end."""
        self._next_row += chunker.row_count
        self._next_split = input_split.index + 1
        lines_before = chunker.preceding_lines.known_count
        self._previous_end = (
            input_split.path,
            input_split.stop,
            None if lines_before is None else lines_before + chunker.line_count,
        )
