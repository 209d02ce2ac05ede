"""CSV and TSV: a header, then rows; quoted fields may hold newlines. Read front to back."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.core.types import InputFormat, InputSplit
from embedcli.readers.decoding import (
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

DELIMITERS = {"csv": ",", "tsv": "\t"}
# What spreadsheets write to .csv files where the comma is the decimal mark, and what databases do.
ALTERNATIVE_DELIMITERS = ";\t|"
CSV_BATCH_ROWS = 2048
# A broken row that swallows more lines than this is a quote that was never closed, and most of the file is lost in it.
MAX_SWALLOWED_LINES = 100


@dataclass
class CsvBatch:
    """Some rows, each a list of fields, and the lines they begin at.

    A row that cannot be read has a fault; `broken` holds those without fields as they stand in the file.
    """

    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    reject_reasons: RejectReasons = field(default_factory=dict)
    raw_rows: dict[int, str] = field(default_factory=dict)

    def column(self, at: int | None) -> list[str | None]:
        """The values of column `at`; null for all rows if there is none, and for rows that are too short."""
        if at is None:
            return [None] * len(self.rows)
        if not self.reject_reasons:
            return [row[at] for row in self.rows]
        return [row[at] if at < len(row) else None for row in self.rows]


class CsvReader:
    """A delimited file on its way: its `header` and `delimiter`, then its rows in batches."""

    def __init__(self, blocks: Iterable[bytes], path: str, kind: InputFormat, encoding: str) -> None:
        csv.field_size_limit(MAX_ROW_BYTES)
        self.path = path
        self._decoder = TextDecoder(encoding, path)
        self._encoding = encoding
        self._portion = io.StringIO()
        self._text = self._tail = ""
        portions = self._portions(blocks)
        first = next(portions, self._portion)
        self.delimiter = detect_delimiter(self._text, kind)
        lines = chain.from_iterable(chain([first], portions))
        self._reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        self._next_line = 1
        self.header = self._header()

    def _portions(self, blocks: Iterable[bytes]) -> Iterator[io.StringIO]:
        for text in split_at_newlines(self._decoder.decode(blocks), self.path):
            self._text, self._tail = text, self._text[-MAX_REJECT_CHARACTERS:]
            self._portion = io.StringIO(text, newline="")
            yield self._portion

    def _header(self) -> list[str]:
        try:
            header = next((row for row in self._reader if row), [])
        except csv.Error as error:
            place = storage.format_location(self.path, self._reader.line_num)
            raise InputError(f"{place}: {BAD_CSV_REASON} in the header: {error}", "mend its quotes") from error
        self._next_line = self._reader.line_num + 1
        twice = [repr(escape_for_reject(name)) for name, times in Counter(header).items() if name and times > 1]
        if twice:
            place = storage.format_location(self.path, self._reader.line_num)
            raise InputError(f"{place}: the header names {', '.join(twice)} twice", "give every column its own name")
        return [escape_for_reject(name) for name in header]

    def read_batches(self) -> Iterator[CsvBatch]:
        """All rows after the header. Blank lines are no rows."""
        batch, portion = CsvBatch(), self._portion
        while True:
            try:
                for row in self._reader:
                    if row:
                        batch.rows.append(row)
                        batch.lines.append(self._next_line)
                    self._next_line = self._reader.line_num + 1
                    if len(batch.rows) >= CSV_BATCH_ROWS or self._portion is not portion:
                        yield self._checked(batch)
                        batch, portion = CsvBatch(), self._portion
                break
            except csv.Error as error:
                self._break(batch, error)
        yield self._checked(batch)

    def _break(self, batch: CsvBatch, error: csv.Error) -> None:
        """Note a row whose quotes are wrong; InputError if it swallowed a large part of the file."""
        first, last = self._next_line, self._reader.line_num
        if last - first >= MAX_SWALLOWED_LINES:
            raise InputError(
                f"{storage.format_location(self.path, first)}: a quoted field in this row goes on to line {last}, where: {error}",
                "mend the quote: one that is part of a quoted field is written twice",
            ) from error
        span = f" (lines {first} to {last})" if last > first else ""
        batch.reject_reasons[len(batch.rows)] = f"{BAD_CSV_REASON}: {error}{span}".replace("\t", "tab")
        batch.raw_rows[len(batch.rows)] = escape_for_reject(self._last_lines(last - first + 1))
        batch.rows.append([])
        batch.lines.append(first)
        self._next_line = last + 1

    def _last_lines(self, count: int) -> str:
        """The beginning of the last lines the reader took, as far as they are still at hand."""
        start = self._portion.tell()
        while count and start:
            start = self._text.rfind("\n", 0, start - 1) + 1
            count -= 1
        head = self._tail.splitlines(keepends=True)[-count:] if count else []
        text = "".join(head) + self._text[start : min(self._portion.tell(), start + MAX_REJECT_CHARACTERS)]
        return text.rstrip("\r\n")

    def _checked(self, batch: CsvBatch) -> CsvBatch:
        """The same, with faults for rows that are ragged or hold bytes that could not be decoded."""
        width = len(self.header)
        if set(map(len, batch.rows)) - {width}:
            for i, row in enumerate(batch.rows):
                if len(row) != width:
                    batch.reject_reasons.setdefault(i, f"{WRONG_WIDTH_REASON}: {len(row)} instead of {width}")
        if self._decoder.has_undecodable_bytes:
            for i, row in enumerate(batch.rows):
                if not is_encodable("".join(row)):
                    batch.reject_reasons[i] = self._bad_encoding(row)
        return batch

    def _bad_encoding(self, row: list[str]) -> str:
        at, mark = next((at, mark) for at, text in enumerate(row) if (mark := find_undecodable_byte(text)))
        offset = len(row[at][: mark[1]].encode(self._encoding, "replace"))
        return f"{BAD_ENCODING_REASON}: byte 0x{mark[0]:02x} at byte {offset} of field {at + 1}"


def detect_delimiter(text: str, kind: InputFormat) -> str:
    """The format's own delimiter; for CSV another one where the first line has it and no comma."""
    line = text.lstrip("\r\n").partition("\n")[0]
    if kind != "csv" or len(_cut(line, ",")) > 1:
        return DELIMITERS[kind]
    most = max(ALTERNATIVE_DELIMITERS, key=lambda mark: len(_cut(line, mark)))
    return most if len(_cut(line, most)) > 1 else DELIMITERS[kind]


def _cut(line: str, delimiter: str) -> list[str]:
    with suppress(csv.Error):  # it is told when the header itself is read
        return next(csv.reader([line], delimiter=delimiter), [])
    return []


def read_csv(
    input_split: InputSplit,
    fields: RowBuilder,
    kind: InputFormat,
    encoding: str,
    prefetched: storage.PrefetchedFiles | None = None,
) -> Generator[RowBatch, None, None]:
    """All rows of a file; it is one piece."""
    line = 1
    with storage.open_input(input_split.path, prefetched=prefetched) as source:
        table = CsvReader(source, input_split.path, kind, encoding)
        places = {name: table.header.index(name) if name in table.header else None for name in fields.column_names}
        for batch in table.read_batches():
            span = (batch.lines[-1] if batch.lines else line) - line
            line += span
            yield build_row_batch(
                fields,
                {name: batch.column(at) for name, at in places.items()},
                batch.reject_reasons,
                partial(_shown, batch, table.delimiter),
                lines=batch.lines,
                span=span,
                done=source.position,
            )


def count_csv_rows(input_split: InputSplit, kind: InputFormat, encoding: str) -> tuple[int, int]:
    """How many rows a file has, and how many lines at least."""
    rows = line = 0
    with storage.open_input(input_split.path) as source:
        for batch in CsvReader(source, input_split.path, kind, encoding).read_batches():
            rows += len(batch.rows)
            line = batch.lines[-1] if batch.lines else line
    return rows, line


def _shown(batch: CsvBatch, delimiter: str, i: int) -> str:
    if i in batch.raw_rows:
        return batch.raw_rows[i]
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="").writerow(batch.rows[i])
    return escape_for_reject(out.getvalue())
