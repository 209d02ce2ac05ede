"""Read CSV and TSV: the dialect, the header, and the rows from start to end."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.core.types import InputFormat, InputSplit
from embedcli.readers.decoding import (
    BYTE_ORDER_MARK,
    MAX_REJECT_CHARACTERS,
    MAX_ROW_BYTES,
    TextDecoder,
    escape_for_reject,
    find_undecodable_byte,
    is_encodable,
    split_at_newlines,
)
from embedcli.readers.row_batch import BAD_CSV_REASON, BAD_ENCODING_REASON, WRONG_WIDTH_REASON, RejectReasons, RowBatch
from embedcli.readers.row_builder import RowBuilder, build_row_batch


class CsvDialect(csv.Dialect):
    """The CSV dialect of inputs: RFC 4180, with rows that end in CR LF, LF or CR.

    A field that contains the delimiter, a quote or a line break is quoted; a quote inside of it is doubled. Other text
    after the closing quote is an error (strict), because it usually means that rows have been swallowed.
    """

    delimiter = ","  # see DELIMITERS and ALTERNATIVE_DELIMITERS
    quotechar = '"'
    doublequote = True
    skipinitialspace = False
    lineterminator = "\n"
    quoting = csv.QUOTE_MINIMAL
    strict = True


DELIMITERS = {"csv": ",", "tsv": "\t"}
# Tried for .csv files whose header has no comma: spreadsheets write semicolons where the comma is the decimal mark, and
# databases write tabs and bars.
ALTERNATIVE_DELIMITERS = ";\t|"
CSV_BATCH_ROWS = 2048
# A broken row that covers more lines than this is an error, not a reject: a quote was never closed, and most of the
# file would be lost in that row.
MAX_SWALLOWED_LINES = 100


@dataclass
class CsvBatch:
    """Some rows of a file.

    Attributes:
        rows: The fields of each row; empty for a row that cannot be parsed.
        lines: The line that each row begins at, from 1.
        reject_reasons: Why rows are rejected, by position in the batch.
        raw_rows: Rows that cannot be parsed as they are in the file, by position.
        repeated_headers: The lines of rows that repeat the header and were skipped.
    """

    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    reject_reasons: RejectReasons = field(default_factory=dict)
    raw_rows: dict[int, str] = field(default_factory=dict)
    repeated_headers: list[int] = field(default_factory=list)

    def column(self, index: int | None) -> list[str | None]:
        """The values of a column; null in every row without a column, and in rows that are too short."""
        if index is None:
            return [None] * len(self.rows)
        if not self.reject_reasons:
            return [row[index] for row in self.rows]
        return [row[index] if index < len(row) else None for row in self.rows]


class CsvReader:
    """Reads a delimited file: its `header` and `delimiter`, then its rows in batches."""

    def __init__(self, blocks: Iterable[bytes], path: str, file_format: InputFormat, encoding: str) -> None:
        csv.field_size_limit(MAX_ROW_BYTES)
        self.path = path
        self._decoder = TextDecoder(encoding, path)
        self._encoding = encoding
        self._portion = io.StringIO()
        self._text = self._previous_end = ""
        portions = self._portions(blocks)
        first = next(portions, self._portion)
        named_delimiter = find_named_delimiter(self._text)
        self._has_delimiter_line = named_delimiter is not None
        self.delimiter = named_delimiter or detect_delimiter(self._text, file_format)
        lines = chain.from_iterable(chain([first], portions))
        self._reader = csv.reader(lines, dialect=CsvDialect, delimiter=self.delimiter)
        self._next_line = 1
        self.header = self._read_header()

    def _portions(self, blocks: Iterable[bytes]) -> Iterator[io.StringIO]:
        for text in split_at_newlines(self._decoder.decode(blocks), self.path):
            self._text, self._previous_end = text, self._text[-MAX_REJECT_CHARACTERS:]
            self._portion = io.StringIO(text, newline="")
            yield self._portion

    def _read_header(self) -> list[str]:
        if self._has_delimiter_line:
            next(self._reader)
        try:
            header = next((row for row in self._reader if row), [])
        except csv.Error as error:
            location = storage.format_location(self.path, self._reader.line_num)
            raise InputError(f"{location}: {BAD_CSV_REASON} in the header: {error}", "fix its quotes") from error
        self._next_line = self._reader.line_num + 1
        self._header_fields = header
        duplicates = [repr(escape_for_reject(name)) for name, count in Counter(header).items() if name and count > 1]
        if duplicates:
            location = storage.format_location(self.path, self._reader.line_num)
            raise InputError(
                f"{location}: the header names {', '.join(duplicates)} twice", "give every column its own name"
            )
        return [escape_for_reject(name) for name in header]

    def read_batches(self) -> Iterator[CsvBatch]:
        """Yield all rows after the header. Blank lines are skipped, and headers that concatenated files repeat."""
        batch, portion = CsvBatch(), self._portion
        while True:
            try:
                for row in self._reader:
                    if row and self._repeats_header(row):
                        batch.repeated_headers.append(self._next_line)
                    elif row:
                        batch.rows.append(row)
                        batch.lines.append(self._next_line)
                    self._next_line = self._reader.line_num + 1
                    if len(batch.rows) >= CSV_BATCH_ROWS or self._portion is not portion:
                        yield self._with_reasons(batch)
                        batch, portion = CsvBatch(), self._portion
                break
            except csv.Error as error:
                self._add_broken_row(batch, error)
        yield self._with_reasons(batch)

    def _repeats_header(self, row: list[str]) -> bool:
        """Whether a row is the header once more, with or without a byte order mark, as `cat *.csv` leaves it."""
        header = self._header_fields
        if len(row) != len(header) or row[-1] != header[-1]:
            return False
        return [row[0].removeprefix(BYTE_ORDER_MARK), *row[1:]] == header

    def _add_broken_row(self, batch: CsvBatch, error: csv.Error) -> None:
        """Reject a row with wrong quotes; InputError if it covers a large part of the file."""
        first, last = self._next_line, self._reader.line_num
        if last - first >= MAX_SWALLOWED_LINES:
            raise InputError(
                f"{storage.format_location(self.path, first)}: a quoted field in this row goes on to line {last}, "
                f"where: {error}",
                "fix the quote: write a quote inside a quoted field twice",
            ) from error
        span = f" (lines {first} to {last})" if last > first else ""
        position = len(batch.rows)
        batch.reject_reasons[position] = f"{BAD_CSV_REASON}: {error}{span}".replace("\t", "tab")
        batch.raw_rows[position] = escape_for_reject(self._last_lines(last - first + 1))
        batch.rows.append([])
        batch.lines.append(first)
        self._next_line = last + 1

    def _last_lines(self, count: int) -> str:
        """The beginning of the last lines that were parsed, as far as they are still in memory."""
        start = self._portion.tell()
        while count and start:
            start = self._text.rfind("\n", 0, start - 1) + 1
            count -= 1
        earlier = self._previous_end.splitlines(keepends=True)[-count:] if count else []
        text = "".join(earlier) + self._text[start : min(self._portion.tell(), start + MAX_REJECT_CHARACTERS)]
        return text.rstrip("\r\n")

    def _with_reasons(self, batch: CsvBatch) -> CsvBatch:
        """Reject rows that have a wrong number of fields or undecodable bytes."""
        width = len(self.header)
        if set(map(len, batch.rows)) - {width}:
            for i, row in enumerate(batch.rows):
                if len(row) != width:
                    batch.reject_reasons.setdefault(i, f"{WRONG_WIDTH_REASON}: {len(row)} instead of {width}")
        if self._decoder.has_undecodable_bytes:
            for i, row in enumerate(batch.rows):
                if not is_encodable("".join(row)):
                    batch.reject_reasons[i] = self._bad_encoding_reason(row)
        return batch

    def _bad_encoding_reason(self, row: list[str]) -> str:
        index, (byte, position) = next(
            (index, found) for index, text in enumerate(row) if (found := find_undecodable_byte(text))
        )
        offset = len(row[index][:position].encode(self._encoding, "replace"))
        return f"{BAD_ENCODING_REASON}: byte 0x{byte:02x} at byte {offset} of field {index + 1}"


def find_named_delimiter(text: str) -> str | None:
    """The delimiter that the first line of a file names, as Excel writes and reads it: `sep=;`. None without one."""
    named = re.match(r"sep=(.)(\r\n|\n|\r|$)", text, re.IGNORECASE)
    return named[1] if named and named[1] not in '\r\n"' else None


def detect_delimiter(text: str, file_format: InputFormat) -> str:
    """The delimiter of a file from its beginning.

    Args:
        text: The beginning of the file, with the header.
        file_format: "csv" or "tsv".

    Returns:
        The delimiter of the format; for CSV one of ALTERNATIVE_DELIMITERS if the header has one and no comma.
    """
    header = text.lstrip("\r\n").partition("\n")[0]
    if file_format != "csv" or len(_split_fields(header, ",")) > 1:
        return DELIMITERS[file_format]
    best = max(ALTERNATIVE_DELIMITERS, key=lambda delimiter: len(_split_fields(header, delimiter)))
    return best if len(_split_fields(header, best)) > 1 else DELIMITERS[file_format]


def _split_fields(line: str, delimiter: str) -> list[str]:
    with suppress(csv.Error):  # raised again when the header itself is read
        return next(csv.reader([line], dialect=CsvDialect, delimiter=delimiter, strict=False), [])
    return []


def read_csv(
    input_split: InputSplit,
    row_builder: RowBuilder,
    file_format: InputFormat,
    encoding: str,
    prefetched: storage.PrefetchedFiles | None = None,
) -> Generator[RowBatch, None, None]:
    """Yield all rows of a file, which is a single split.

    Raises:
        InputError: The file cannot be read, has a bad header, or a quote that is never closed.
    """
    line = 1
    with storage.open_input(input_split.path, prefetched=prefetched) as source:
        reader = CsvReader(source, input_split.path, file_format, encoding)
        indices = {
            name: reader.header.index(name) if name in reader.header else None for name in row_builder.column_names
        }
        for batch in reader.read_batches():
            line_count = (batch.lines[-1] if batch.lines else line) - line
            line += line_count
            rows = build_row_batch(
                row_builder,
                {name: batch.column(index) for name, index in indices.items()},
                batch.reject_reasons,
                partial(_raw_row, batch, reader.delimiter),
                lines=batch.lines,
                line_count=line_count,
                bytes_read=source.position,
            )
            yield replace(rows, repeated_headers=batch.repeated_headers)


def count_csv_rows(input_split: InputSplit, file_format: InputFormat, encoding: str) -> tuple[int, int]:
    """The number of rows of a file, and the line of the last one."""
    rows = line = 0
    with storage.open_input(input_split.path) as source:
        for batch in CsvReader(source, input_split.path, file_format, encoding).read_batches():
            rows += len(batch.rows)
            line = batch.lines[-1] if batch.lines else line
    return rows, line


def _raw_row(batch: CsvBatch, delimiter: str, position: int) -> str:
    """A bad row as it is in the file, or written again in the dialect."""
    if position in batch.raw_rows:
        return batch.raw_rows[position]
    out = io.StringIO()
    csv.writer(out, dialect=CsvDialect, delimiter=delimiter, lineterminator="").writerow(batch.rows[position])
    return escape_for_reject(out.getvalue())
