"""Decide how a delimited file is written: delimiter, quotes, header and line ends, from options and its beginning."""

from __future__ import annotations

import csv
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import InputFormat

LineEnd = Literal["\n", "\r"]

DELIMITERS = {"csv": ",", "tsv": "\t"}
# TSV is read without quotes, as databases and command line tools write it: there a quote is a character like others.
QUOTES = {"csv": '"', "tsv": None}
# Tried for .csv files whose header has no comma: spreadsheets write semicolons where the comma is the decimal mark, and
# databases write tabs and bars.
ALTERNATIVE_DELIMITERS = ";\t|"
# A quoted field after a delimiter or at the beginning of a line, which may contain line ends.
QUOTED_FIELD = r"(?:^|(?<=[\r\n{delimiters}])){quote}[^{quote}]*+(?:{quote}{quote}[^{quote}]*+)*+{quote}"


@dataclass(frozen=True)
class CsvOptions:
    """The options of a job that say how delimited files are written.

    Attributes:
        delimiter: The character between fields; None to take that of the format, or to detect it in the header of CSV.
        quote: The character around fields that contain delimiters, quotes or line ends; "none" without quotes; None
            for the default of the format: `"` in CSV, none in TSV.
        escape: The character that takes the next one literally; None without one.
        has_header: Whether the first row names the columns.
        skip_lines: The number of lines before the header or the first row.
    """

    delimiter: str | None = None
    quote: str | None = None
    escape: str | None = None
    has_header: bool = True
    skip_lines: int = 0

    @classmethod
    def from_job(cls, job: Job) -> CsvOptions:
        """The options of a job."""
        return cls(job.delimiter, job.quote, job.escape, job.header, job.skip_lines)


DEFAULT_OPTIONS = CsvOptions()


@dataclass(frozen=True)
class CsvDialect:
    """The dialect of one file: RFC 4180 but for what the attributes say.

    A field that contains the delimiter, a quote or a line end is quoted; a quote inside of it is doubled. Other text
    after the closing quote is an error (strict), because it usually means that rows have been swallowed.

    Attributes:
        delimiter: The character between fields.
        quote: The character around fields; None without quotes.
        escape: The character that takes the next one literally; None without one.
        line_end: The character that ends a line.
        skipped_lines: The number of lines before the header or the first row.
    """

    delimiter: str
    quote: str | None
    escape: str | None
    line_end: LineEnd
    skipped_lines: int = 0

    def parser_options(self) -> dict[str, Any]:
        """The arguments for the parser and the writer of the module csv."""
        return {
            "delimiter": self.delimiter,
            "quotechar": self.quote,
            "escapechar": self.escape if self.escape != self.quote else None,
            "doublequote": True,
            "quoting": csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            "strict": True,
        }


def detect_dialect(head: str, file_format: InputFormat, options: CsvOptions) -> CsvDialect:
    """Detect the dialect of a file.

    Args:
        head: The beginning of the file, at least its header.
        file_format: "csv" or "tsv".
        options: What the user said.

    Raises:
        UsageError: Two of delimiter, quote and escape are the same character.
    """
    quote = QUOTES[file_format] if options.quote is None else options.quote
    quote = None if quote == "none" else quote
    line_end = detect_line_end(head, quote, options.delimiter)
    named = find_named_delimiter(head, line_end)
    skipped_lines = max(options.skip_lines, int(named is not None))
    body = "".join(split_keeping_ends(head, line_end)[skipped_lines:])
    delimiter = options.delimiter or named or detect_delimiter(body, file_format, quote, line_end)
    if options.quote is None and quote is None and options.has_header and is_header_quoted(body, delimiter, line_end):
        quote = '"'
    check_characters_differ(delimiter, quote, options.escape)
    return CsvDialect(delimiter, quote, options.escape, line_end, skipped_lines)


def check_characters_differ(delimiter: str, quote: str | None, escape: str | None) -> None:
    """UsageError if the delimiter is also the quote or the escape character."""
    for option, character in (("--quote", quote), ("--escape", escape)):
        if character == delimiter:
            raise UsageError(
                f"the fields are separated by {delimiter!r}, which is also the character of {option}",
                f"use another --delimiter or {option}",
            )


def detect_line_end(head: str, quote: str | None = '"', delimiter: str | None = None) -> LineEnd:
    r"""The character that ends the lines of a file, decided once from its beginning.

    Args:
        head: The beginning of the file.
        quote: The character around fields, whose line ends do not count; None without quotes.
        delimiter: The character between fields, if the user named it.

    Returns:
        "\n" if there is one outside of quoted fields; then a carriage return ends a line only together with it. "\r" if
        there are only carriage returns.
    """
    has_lone_return = head.count("\r") > head.count("\r\n")
    if not has_lone_return:
        return "\n"
    if quote is not None and quote in head:
        delimiters = re.escape(DELIMITERS["csv"] + ALTERNATIVE_DELIMITERS + (delimiter or ""))
        head = re.sub(QUOTED_FIELD.format(delimiters=delimiters, quote=re.escape(quote)), "", head)
    return "\n" if "\n" in head or "\r" not in head else "\r"


def split_keeping_ends(text: str, line_end: LineEnd) -> list[str]:
    """The lines of a text with their ends."""
    return re.findall(f"[^{line_end}]*{line_end}|[^{line_end}]+", text)


def find_named_delimiter(head: str, line_end: LineEnd = "\n") -> str | None:
    """The delimiter that the first line of a file names, as Excel writes and reads it: `sep=;`. None without one."""
    named = re.fullmatch(r"sep=(.)", head.partition(line_end)[0].removesuffix("\r"), re.IGNORECASE)
    return named[1] if named and named[1] not in '\r\n"' else None


def detect_delimiter(text: str, file_format: InputFormat, quote: str | None = '"', line_end: LineEnd = "\n") -> str:
    """The delimiter of a file from its header.

    Args:
        text: The beginning of the file, with the header.
        file_format: "csv" or "tsv".
        quote: The character around fields; None without quotes.
        line_end: The character that ends the lines.

    Returns:
        The delimiter of the format; for CSV one of ALTERNATIVE_DELIMITERS if the header has one and no comma.
    """
    header = text.lstrip("\r\n").partition(line_end)[0]
    if file_format != "csv" or count_fields(header, ",", quote) > 1:
        return DELIMITERS[file_format]
    candidates = [delimiter for delimiter in ALTERNATIVE_DELIMITERS if delimiter != quote]
    best = max(candidates, key=lambda delimiter: count_fields(header, delimiter, quote))
    return best if count_fields(header, best, quote) > 1 else DELIMITERS[file_format]


def count_fields(line: str, delimiter: str, quote: str | None) -> int:
    """The number of fields of a line; 0 if its quotes are wrong."""
    if delimiter == quote:
        return 0
    options = CsvDialect(delimiter, quote, None, "\n").parser_options()
    with suppress(csv.Error):  # raised again when the header itself is read
        return len(next(csv.reader([line], **options | {"strict": False}), []))
    return 0


def is_header_quoted(text: str, delimiter: str, line_end: LineEnd) -> bool:
    """Whether every column name is quoted in the header with which a text begins."""
    header = text.lstrip("\r\n").partition(line_end)[0].rstrip("\r")
    return all(re.fullmatch(r'"[^"]*+(?:""[^"]*+)*+"', name) for name in header.split(delimiter))


def looks_quoted(head: str, delimiter: str) -> bool:
    """Whether all quotes in the beginning of a file that is read without quotes are at both ends of fields.

    At least one field must begin and end with a quote within a line. Others may contain line ends.
    """
    if '"' not in head:
        return False
    within_line = re.compile(
        rf'(?:^|(?<=[\r\n{re.escape(delimiter)}]))"(?:[^"\r\n]|"")*+"(?=[\r\n{re.escape(delimiter)}]|\Z)'
    )
    remaining, count = within_line.subn("", head)
    if not count:
        return False
    with_line_ends = QUOTED_FIELD.format(delimiters=re.escape(delimiter), quote='"')
    remaining = re.sub(rf"{with_line_ends}(?=[\r\n{re.escape(delimiter)}]|\Z)", "", remaining)
    # The beginning may end within a quoted field.
    cut_off = re.compile(rf'(?:^|(?<=[\r\n{re.escape(delimiter)}]))"(?:[^"]|"")*+\Z')
    return '"' not in cut_off.sub("", remaining)
