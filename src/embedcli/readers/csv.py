"""Read CSV and TSV: the dialect, the header, and the rows from start to end."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.core.types import InputFormat, InputSplit
from embedcli.readers.csv_dialect import DEFAULT_OPTIONS, CsvDialect, CsvOptions, LineEnd, detect_dialect
from embedcli.readers.csv_rows import ParsedRows, RowParser
from embedcli.readers.decoding import (
    BYTE_ORDER_MARK,
    MAX_ROW_BYTES,
    TextDecoder,
    escape_for_reject,
    is_encodable,
    split_at_line_ends,
    undecodable_reason,
)
from embedcli.readers.row_batch import BAD_CSV_REASON, RawRow, RowBatch, wrong_width_reason
from embedcli.readers.row_builder import RowBuilder, build_row_batch

# The dialect is decided from this many characters at the beginning of a file.
HEAD_CHARACTERS = 64 << 10
# The same if they contain carriage returns and no line feed: perhaps the first line is a long one.
LONG_HEAD_CHARACTERS = 4 << 20
# Rows of up to so many columns are kept whole until they are encoded.
FEW_COLUMNS = 8


@dataclass
class CsvBatch(ParsedRows):
    """Some rows of a file, without its header.

    Attributes:
        repeated_headers: The lines of rows that repeat the header and were skipped.
    """

    repeated_headers: list[int] = field(default_factory=list)

    def column(self, index: int | None) -> list[str | None]:
        """The values of a column; null in every row without a column, and in rows that are too short."""
        if index is None:
            return [None] * len(self.rows)
        if not self.reject_reasons:
            return [row[index] for row in self.rows]
        return [row[index] if index < len(row) else None for row in self.rows]


class CsvReader:
    """Reads a delimited file: its `header`, then its rows in batches.

    Attributes:
        header: The names of the columns; `column0`, `column1`, ... if the file has none.
        dialect: How the file is written.
        head: The beginning of the file, by which that was decided.
    """

    def __init__(
        self,
        blocks: Iterable[bytes],
        path: str,
        file_format: InputFormat,
        encoding: str,
        options: CsvOptions = DEFAULT_OPTIONS,
    ) -> None:
        csv.field_size_limit(MAX_ROW_BYTES)
        self.path = path
        self._encoding = encoding
        self._decoder = TextDecoder(self._encoding, path)
        self.head, texts = read_head(self._decoder.decode(blocks))
        self.dialect = detect_dialect(self.head, file_format, options)
        portions = split_at_line_ends(texts, self.dialect.line_end, path)
        skipped = self.dialect.skipped_lines
        parser = RowParser(self.dialect, first_line=skipped + 1)
        self._batches = parser.parse(skip_lines(portions, skipped, self.dialect.line_end))
        self._has_header = options.has_header
        self.header = self._read_header() if self._has_header else self._number_columns()

    def _read_header(self) -> list[str]:
        batch = next((batch for batch in self._batches if batch.rows), None)
        header = self._header_fields = batch.rows[0] if batch else []
        if batch is None:
            return []
        location = storage.format_location(self.path, batch.lines[0])
        if batch.reject_reasons:
            detail = batch.reject_reasons[0].removeprefix(f"{BAD_CSV_REASON}: ")
            raise InputError(
                f"{location}: {BAD_CSV_REASON} in the header: {detail}", "fix its quotes, or use --quote none"
            )
        if not is_encodable("".join(header)):
            raise InputError(
                f"{location}: the header is not {self._encoding.upper()}: {self._bad_encoding_reason(header)}",
                "use --encoding latin-1 or another",
            )
        duplicates = [repr(name) for name, count in Counter(header).items() if name and count > 1]
        if duplicates:
            raise InputError(
                f"{location}: the header names {', '.join(duplicates)} twice", "give every column its own name"
            )
        return header

    def _number_columns(self) -> list[str]:
        """Names for the columns of a file without a header, from its first row that can be parsed."""
        first_batches = []
        width = 0
        while not width and (batch := next(self._batches, None)) is not None:
            first_batches.append(batch)
            width = max(map(len, batch.rows), default=0)
        self._batches = chain(first_batches, self._batches)
        return [f"column{i}" for i in range(width)]

    @property
    def has_undecodable_bytes(self) -> bool:
        """Whether the text read so far has bytes that do not fit the encoding."""
        return self._decoder.has_undecodable_bytes

    def read_batches(self) -> Iterator[CsvBatch]:
        """Yield all rows after the header. Blank lines are skipped, and headers that concatenated files repeat."""
        for parsed in self._batches:
            batch = CsvBatch(parsed.rows, parsed.lines, parsed.reject_reasons, parsed.raw_rows)
            if self._has_header:
                batch = self._without_headers(batch)
            self._add_reasons(batch)
            yield batch

    def _without_headers(self, batch: CsvBatch) -> CsvBatch:
        repeated = {i for i, row in enumerate(batch.rows) if self._repeats_header(row)}
        if not repeated:
            return batch
        kept = [i for i in range(len(batch.rows)) if i not in repeated]
        return CsvBatch(
            [batch.rows[i] for i in kept],
            [batch.lines[i] for i in kept],
            {new: batch.reject_reasons[i] for new, i in enumerate(kept) if i in batch.reject_reasons},
            {new: batch.raw_rows[i] for new, i in enumerate(kept) if i in batch.raw_rows},
            [batch.lines[i] for i in sorted(repeated)],
        )

    def _repeats_header(self, row: list[str]) -> bool:
        """Whether a row is the header once more, with or without a byte order mark, as `cat *.csv` leaves it."""
        header = self._header_fields
        if len(row) != len(header) or not row or row[-1].removeprefix(BYTE_ORDER_MARK) != header[-1]:
            return False
        return [row[0].removeprefix(BYTE_ORDER_MARK), *row[1:]] == header

    def _add_reasons(self, batch: CsvBatch) -> None:
        """Reject rows that have a wrong number of fields or undecodable bytes."""
        width = len(self.header)
        if set(map(len, batch.rows)) - {width}:
            for i, row in enumerate(batch.rows):
                if len(row) != width:
                    batch.reject_reasons.setdefault(i, wrong_width_reason(len(row), width))
        if self.has_undecodable_bytes:
            for i, row in enumerate(batch.rows):
                if not is_encodable("".join(row)):
                    batch.reject_reasons[i] = self._bad_encoding_reason(row)

    def _bad_encoding_reason(self, row: list[str]) -> str:
        reasons = (undecodable_reason(text, self._encoding, f"field {i}") for i, text in enumerate(row, 1))
        return next(reason for reason in reasons if reason is not None)


def read_head(texts: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The beginning of a text, which does not depend on the size of its parts, and all of its parts."""
    parts: list[str] = []
    count = 0
    needed = HEAD_CHARACTERS
    for text in texts:
        parts.append(text)
        count += len(text)
        if count >= needed:
            head = "".join(parts)[:HEAD_CHARACTERS]
            if "\n" in head or "\r" not in head or needed == LONG_HEAD_CHARACTERS:
                break
            needed = LONG_HEAD_CHARACTERS
    return "".join(parts)[:needed], chain(parts, texts)


def skip_lines(portions: Iterator[str], count: int, line_end: LineEnd) -> Iterator[str]:
    """Yield the portions without the first `count` lines."""
    for portion in portions:
        start = 0
        while count and start < len(portion):
            start = portion.find(line_end, start) + 1 or len(portion)
            count -= 1
        yield portion[start:]


def read_csv(
    input_split: InputSplit,
    row_builder: RowBuilder,
    file_format: InputFormat,
    encoding: str,
    options: CsvOptions = DEFAULT_OPTIONS,
    prefetched: storage.PrefetchedFiles | None = None,
) -> Generator[RowBatch, None, None]:
    """Yield all rows of a file, which is a single split.

    Raises:
        InputError: The file cannot be read, or has a bad header.
    """
    line = 1
    with storage.open_input(input_split.path, prefetched=prefetched) as source:
        reader = CsvReader(source, input_split.path, file_format, encoding, options)
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
                partial(_raw_row, batch, reader.dialect),
                lines=batch.lines,
                line_count=line_count,
                bytes_read=source.position,
            )
            raw_row = _keep_raw_rows(batch, reader.dialect, row_builder.kept_raw_length)
            yield replace(rows, repeated_headers=batch.repeated_headers, raw_row=raw_row)


def count_csv_rows(
    input_split: InputSplit, file_format: InputFormat, encoding: str, options: CsvOptions = DEFAULT_OPTIONS
) -> tuple[int, int]:
    """The number of rows of a file, and the line of the last one."""
    rows = line = 0
    with storage.open_input(input_split.path) as source:
        for batch in CsvReader(source, input_split.path, file_format, encoding, options).read_batches():
            rows += len(batch.rows)
            line = batch.lines[-1] if batch.lines else line
    return rows, line


def _keep_raw_rows(batch: CsvBatch, dialect: CsvDialect, length: int) -> RawRow:
    """`_raw_row` for the rows of a batch; of many columns, most of which are not read, only the beginning is kept."""
    if max(map(len, batch.rows), default=0) <= FEW_COLUMNS:
        return partial(_raw_row, batch, dialect)
    lines = [line[:length] for line in _format_rows(batch.rows, dialect)]
    return lambda position: escape_for_reject(lines[position])


def _raw_row(batch: CsvBatch, dialect: CsvDialect, position: int) -> str:
    """A bad row as it is in the file, or written again in the dialect."""
    if position in batch.raw_rows:
        return batch.raw_rows[position]
    return escape_for_reject(_format_rows(batch.rows[position : position + 1], dialect)[0])


def _format_rows(rows: list[list[str]], dialect: CsvDialect) -> list[str]:
    """Rows as lines in a dialect. Most need no quotes, and a join takes a tenth of the time of a writer."""
    lines = list(map(dialect.delimiter.join, rows))
    quote = dialect.quote
    if quote is not None:
        for i, row in enumerate(rows):
            line = lines[i]
            if quote in line or "\n" in line or "\r" in line or line.count(dialect.delimiter) != len(row) - 1:
                out = io.StringIO()
                # Fields with line ends are quoted if they have a character of the line terminator.
                csv.writer(out, **dialect.parser_options(), lineterminator="\r\n").writerow(row)
                lines[i] = out.getvalue().removesuffix("\r\n")
    return lines
