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
from embedcli.core.types import Format, Piece
from embedcli.readers.decoding import MAX_ROW_BYTES, RAW_CHARS, Decoder, bad_byte, cut_at_newlines, encodable, printable
from embedcli.readers.row_batch import BAD_CSV, BAD_ENCODING, WRONG_WIDTH, Faults, Rows
from embedcli.readers.row_builder import Fields, assembled

DELIMITERS = {"csv": ",", "tsv": "\t"}
# What spreadsheets write to .csv files where the comma is the decimal mark, and what databases do.
OTHER_DELIMITERS = ";\t|"
BATCH_ROWS = 2048
# A broken row that swallows more lines than this is a quote that was never closed, and most of the file is lost in it.
MAX_SWALLOWED = 100


@dataclass
class Batch:
    """Some rows, each a list of fields, and the lines they begin at.

    A row that cannot be read has a fault; `broken` holds those without fields as they stand in the file.
    """

    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    faults: Faults = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)

    def column(self, at: int | None) -> list[str | None]:
        """The values of column `at`; null for all rows if there is none, and for rows that are too short."""
        if at is None:
            return [None] * len(self.rows)
        if not self.faults:
            return [row[at] for row in self.rows]
        return [row[at] if at < len(row) else None for row in self.rows]


class Table:
    """A delimited file on its way: its `header` and `delimiter`, then its rows in batches."""

    def __init__(self, blocks: Iterable[bytes], path: str, kind: Format, encoding: str) -> None:
        csv.field_size_limit(MAX_ROW_BYTES)
        self.path = path
        self._decoder = Decoder(encoding, path)
        self._encoding = encoding
        self._portion = io.StringIO()
        self._text = self._tail = ""
        portions = self._portions(blocks)
        first = next(portions, self._portion)
        self.delimiter = delimiter_of(self._text, kind)
        lines = chain.from_iterable(chain([first], portions))
        self._reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        self._next_line = 1
        self.header = self._header()

    def _portions(self, blocks: Iterable[bytes]) -> Iterator[io.StringIO]:
        for text in cut_at_newlines(self._decoder.decoded(blocks), self.path):
            self._text, self._tail = text, self._text[-RAW_CHARS:]
            self._portion = io.StringIO(text, newline="")
            yield self._portion

    def _header(self) -> list[str]:
        try:
            header = next((row for row in self._reader if row), [])
        except csv.Error as error:
            place = storage.where(self.path, self._reader.line_num)
            raise InputError(f"{place}: {BAD_CSV} in the header: {error}", "mend its quotes") from error
        self._next_line = self._reader.line_num + 1
        twice = [repr(printable(name)) for name, times in Counter(header).items() if name and times > 1]
        if twice:
            place = storage.where(self.path, self._reader.line_num)
            raise InputError(f"{place}: the header names {', '.join(twice)} twice", "give every column its own name")
        return [printable(name) for name in header]

    def batches(self) -> Iterator[Batch]:
        """All rows after the header. Blank lines are no rows."""
        batch, portion = Batch(), self._portion
        while True:
            try:
                for row in self._reader:
                    if row:
                        batch.rows.append(row)
                        batch.lines.append(self._next_line)
                    self._next_line = self._reader.line_num + 1
                    if len(batch.rows) >= BATCH_ROWS or self._portion is not portion:
                        yield self._checked(batch)
                        batch, portion = Batch(), self._portion
                break
            except csv.Error as error:
                self._break(batch, error)
        yield self._checked(batch)

    def _break(self, batch: Batch, error: csv.Error) -> None:
        """Note a row whose quotes are wrong; InputError if it swallowed a large part of the file."""
        first, last = self._next_line, self._reader.line_num
        if last - first >= MAX_SWALLOWED:
            raise InputError(
                f"{storage.where(self.path, first)}: a quoted field in this row goes on to line {last}, where: {error}",
                "mend the quote: one that is part of a quoted field is written twice",
            ) from error
        span = f" (lines {first} to {last})" if last > first else ""
        batch.faults[len(batch.rows)] = f"{BAD_CSV}: {error}{span}".replace("\t", "tab")
        batch.broken[len(batch.rows)] = printable(self._last_lines(last - first + 1))
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
        text = "".join(head) + self._text[start : min(self._portion.tell(), start + RAW_CHARS)]
        return text.rstrip("\r\n")

    def _checked(self, batch: Batch) -> Batch:
        """The same, with faults for rows that are ragged or hold bytes that could not be decoded."""
        width = len(self.header)
        if set(map(len, batch.rows)) - {width}:
            for i, row in enumerate(batch.rows):
                if len(row) != width:
                    batch.faults.setdefault(i, f"{WRONG_WIDTH}: {len(row)} instead of {width}")
        if self._decoder.dirty:
            for i, row in enumerate(batch.rows):
                if not encodable("".join(row)):
                    batch.faults[i] = self._bad_encoding(row)
        return batch

    def _bad_encoding(self, row: list[str]) -> str:
        at, mark = next((at, mark) for at, text in enumerate(row) if (mark := bad_byte(text)))
        offset = len(row[at][: mark[1]].encode(self._encoding, "replace"))
        return f"{BAD_ENCODING}: byte 0x{mark[0]:02x} at byte {offset} of field {at + 1}"


def delimiter_of(text: str, kind: Format) -> str:
    """The format's own delimiter; for CSV another one where the first line has it and no comma."""
    line = text.lstrip("\r\n").partition("\n")[0]
    if kind != "csv" or len(_cut(line, ",")) > 1:
        return DELIMITERS[kind]
    most = max(OTHER_DELIMITERS, key=lambda mark: len(_cut(line, mark)))
    return most if len(_cut(line, most)) > 1 else DELIMITERS[kind]


def _cut(line: str, delimiter: str) -> list[str]:
    with suppress(csv.Error):  # it is told when the header itself is read
        return next(csv.reader([line], delimiter=delimiter), [])
    return []


def read(piece: Piece, fields: Fields, kind: Format, encoding: str) -> Generator[Rows, None, None]:
    """All rows of a file; it is one piece."""
    line = 1
    with storage.open_input(piece.path) as source:
        table = Table(source, piece.path, kind, encoding)
        places = {name: table.header.index(name) if name in table.header else None for name in fields.names}
        for batch in table.batches():
            span = (batch.lines[-1] if batch.lines else line) - line
            line += span
            yield assembled(
                fields,
                {name: batch.column(at) for name, at in places.items()},
                batch.faults,
                partial(_shown, batch, table.delimiter),
                lines=batch.lines,
                span=span,
                done=source.position,
            )


def count(piece: Piece, kind: Format, encoding: str) -> tuple[int, int]:
    """How many rows a file has, and how many lines at least."""
    rows = line = 0
    with storage.open_input(piece.path) as source:
        for batch in Table(source, piece.path, kind, encoding).batches():
            rows += len(batch.rows)
            line = batch.lines[-1] if batch.lines else line
    return rows, line


def _shown(batch: Batch, delimiter: str, i: int) -> str:
    if i in batch.broken:
        return batch.broken[i]
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="").writerow(batch.rows[i])
    return printable(out.getvalue())
