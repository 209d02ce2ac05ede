"""Parse the lines of a delimited file into rows, so that a wrong quote costs one line.

The rows are parsed by the module csv, portion by portion. What is added here, and why:

- A row whose quotes are wrong is one reject, the line where it begins, and the lines after it are read again. Readers
  such as pyarrow.csv end at a quote that is never closed, or lose all rows up to the next quote, and they keep no line
  numbers of multi-line rows.
- Only the line end of the file ends a line: the module csv and pyarrow.csv take every carriage return for one.
- A row may begin in one portion and end in another, within bounds for its lines and characters.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from embedcli.readers.csv_dialect import CsvDialect, count_fields
from embedcli.readers.decoding import MAX_REJECT_CHARACTERS, escape_for_reject
from embedcli.readers.row_batch import BAD_CSV_REASON, RejectReasons

CSV_BATCH_ROWS = 2048
# A row that covers more lines or characters than this has a quote that was never closed: the lines are read again. A
# chunk closes at twice as many characters.
MAX_ROW_LINES = 100_000
MAX_MULTILINE_ROW_CHARACTERS = 16 << 20
# In place of carriage returns and line feeds that do not end a line, while the module csv parses a text: it would take
# them for line ends. Decoded text has no such surrogate.
PLACEHOLDER = "\ud800"
LONE_RETURN = re.compile(r"\r(?!\n|\Z)")


@dataclass
class ParsedRows:
    """Some rows of a file.

    Attributes:
        rows: The fields of each row; empty for a row that cannot be parsed.
        lines: The line that each row begins at, from 1.
        reject_reasons: Why rows cannot be parsed, by position in `rows`.
        raw_rows: The lines of these rows as they are in the file, by position.
    """

    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    reject_reasons: RejectReasons = field(default_factory=dict)
    raw_rows: dict[int, str] = field(default_factory=dict)


class RowParser:
    """Parses successive portions of a file. The result does not depend on where the portions end.

    Attributes:
        width: The number of fields of the first row that can be parsed; None before it.
    """

    def __init__(self, dialect: CsvDialect, first_line: int = 1) -> None:
        self.width: int | None = None
        self._dialect = dialect
        self._options = dialect.parser_options()
        self._next_line = first_line
        self._is_at_end = False
        self._has_placeholders = False
        self._batch = ParsedRows()
        self._text = self._pending = ""

    def parse(self, portions: Iterable[str]) -> Iterator[ParsedRows]:
        """Yield all rows but blank lines: the first one that can be parsed as the last of its batch, then the others.

        Args:
            portions: Parts of the file that end at line ends, but for the last one.
        """
        waiting: list[str] = []
        waiting_characters = 0
        for portion in portions:
            waiting.append(portion)
            waiting_characters += len(portion)
            # A row that goes on for many portions is parsed again only when twice as much of it is there.
            if waiting_characters >= min(len(self._pending), MAX_MULTILINE_ROW_CHARACTERS):
                yield from self._parse_text(self._pending + self._protect("".join(waiting)), is_last=False)
                waiting, waiting_characters = [], 0
        yield from self._parse_text(self._pending + self._protect("".join(waiting)), is_last=True)

    def _protect(self, text: str) -> str:
        r"""Make \n the line end, and replace characters that the module csv would take for line ends."""
        if self._dialect.line_end == "\r":
            return text.replace("\n", PLACEHOLDER).replace("\r", "\n")
        if text.count("\r") > text.count("\r\n"):
            return LONE_RETURN.sub(PLACEHOLDER, text)
        return text

    def _restore(self, text: str) -> str:
        if self._dialect.line_end == "\r":
            return text.replace("\n", "\r").replace(PLACEHOLDER, "\n")
        return text.replace(PLACEHOLDER, "\r")

    def _parse_text(self, text: str, *, is_last: bool) -> Iterator[ParsedRows]:
        """Yield the rows of a text, and keep a row that is not complete as `_pending`."""
        self._pending, self._text = "", text
        self._has_placeholders = self._dialect.line_end == "\r" or PLACEHOLDER in text
        source = io.StringIO(text, newline="\n")
        is_done = False
        while not is_done:
            self._is_at_end = False
            reader = csv.reader(chain(source, self._mark_end()), **self._options)
            lines_before = self._next_line - 1
            error: csv.Error | None = None
            try:
                for row in reader:
                    next_line = lines_before + reader.line_num + 1
                    if next_line - self._next_line > 1 and self._swallows_rows(row, next_line, source):
                        break
                    if row:
                        self._batch.rows.append(row)
                        self._batch.lines.append(self._next_line)
                    self._next_line = next_line
                    if len(self._batch.rows) >= CSV_BATCH_ROWS or (row and self.width is None):
                        self.width = self.width or len(row)
                        yield self._take_batch()
                else:
                    break
            except csv.Error as raised:
                error = raised
            is_done = self._handle_bad_row(source, lines_before + reader.line_num, error, is_last=is_last)
        if self._batch.rows:
            yield self._take_batch()

    def _mark_end(self) -> Iterator[str]:
        self._is_at_end = True
        yield from ()

    def _swallows_rows(self, row: list[str], next_line: int, source: io.StringIO) -> bool:
        """Whether a row of several lines is out of bounds, or has a wrong width where each line has the right one.

        That is what a stray quote leaves which an unrelated quote closes.
        """
        is_surely_within_bounds = next_line - self._next_line <= MAX_ROW_LINES and (
            source.tell() <= MAX_MULTILINE_ROW_CHARACTERS
        )
        if len(row) == self.width and is_surely_within_bounds:
            return False
        start = find_start_of_lines(self._text, source.tell(), next_line - self._next_line)
        if is_out_of_bounds(next_line - self._next_line, source.tell() - start):
            return True
        if self.width in (None, len(row)):
            return False
        first, *others = self._text[start : source.tell()].split("\n")
        delimiter, quote = self._dialect.delimiter, self._dialect.quote
        widths = {count_fields(line, delimiter, quote) for line in others if line.strip()}
        return {*widths, count_fields(first, delimiter, None)} == {self.width}

    def _handle_bad_row(self, source: io.StringIO, last_line: int, error: csv.Error | None, *, is_last: bool) -> bool:
        """Reject the line in which a bad row begins, and go back to the next one.

        Returns:
            True if the row may go on in the next portion: then it is kept and not rejected.
        """
        text, stop = self._text, source.tell()
        line_count = last_line - self._next_line + 1
        start = find_start_of_lines(text, stop, line_count)
        is_unbounded = is_out_of_bounds(line_count, stop - start)
        if self._is_at_end and not is_last and not is_unbounded:
            self._pending = text[start:]
            return True
        if is_unbounded:
            detail = (
                f"a quoted field covers more than {MAX_ROW_LINES} lines or {MAX_MULTILINE_ROW_CHARACTERS} characters"
            )
        elif error is None:
            detail = f"a quoted field goes on to line {last_line}, over lines that are rows"
        else:
            span = f" (a quoted field goes on to line {last_line})" if line_count > 1 else ""
            detail = f"{error}{span}".replace("\t", "tab")
        line_stop = text.find("\n", start) + 1 or len(text)
        self._add_bad_line(f"{BAD_CSV_REASON}: {detail}", text[start : min(line_stop, start + MAX_REJECT_CHARACTERS)])
        source.seek(line_stop)
        return False

    def _add_bad_line(self, reason: str, line: str) -> None:
        position = len(self._batch.rows)
        self._batch.reject_reasons[position] = reason
        self._batch.raw_rows[position] = escape_for_reject(self._restore(line).rstrip("\r\n"))
        self._batch.rows.append([])
        self._batch.lines.append(self._next_line)
        self._next_line += 1

    def _take_batch(self) -> ParsedRows:
        batch, self._batch = self._batch, ParsedRows()
        if self._has_placeholders:
            batch.rows = [[self._restore(value) for value in row] for row in batch.rows]
        return batch


def is_out_of_bounds(lines: int, characters: int) -> bool:
    """Whether a row is long enough, in lines and characters, that a quote was probably never closed."""
    return lines > 1 and (lines > MAX_ROW_LINES or characters > MAX_MULTILINE_ROW_CHARACTERS)


def find_start_of_lines(text: str, stop: int, count: int) -> int:
    """The position at which the last `count` lines before `stop` begin."""
    start = stop
    while count and start:
        start = text.rfind("\n", 0, start - 1) + 1
        count -= 1
    return start
