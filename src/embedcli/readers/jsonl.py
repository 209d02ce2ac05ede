"""Read JSONL: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from embedcli import storage
from embedcli.core.types import InputSplit
from embedcli.readers.decoding import (
    BYTE_ORDER_MARK,
    MAX_REJECT_CHARACTERS,
    escape_for_reject,
    undecodable_reason,
)
from embedcli.readers.lines import read_rows
from embedcli.readers.nested_fields import nested_value
from embedcli.readers.row_batch import (
    BAD_ENCODING_REASON,
    BAD_JSON_REASON,
    NOT_OBJECT_REASON,
    RawRow,
    RejectReasons,
    RowBatch,
)
from embedcli.readers.row_builder import RowBuilder

RawLine = bytes | str
MAX_INT64_DIGITS = 20


@dataclass
class ParsedLines:
    """Lines as JSON objects, without blank lines.

    Attributes:
        lines: The lines.
        line_offsets: The position of each of them among the lines that were parsed, from 0.
        rows: The object in each line; an empty one if the row is rejected.
        reject_reasons: Why rows are rejected, by position in `rows`.
        unusual_positions: Rows that may contain NaN or lone surrogates.
    """

    lines: list[Any]
    line_offsets: Any
    rows: list[dict[str, Any]]
    reject_reasons: RejectReasons
    unusual_positions: set[int]

    def column(self, name: str) -> list[Any]:
        """The value of a column or nested field in each row; null where a row does not have it."""
        if "." in name:
            return [nested_value(row, name) for row in self.rows]
        return [row.get(name) for row in self.rows]

    def raw_row(self, position: int) -> str:
        """The beginning of a line as it is in the file, for a reject."""
        # A character takes up to four bytes.
        return _raw_line([line[: 4 * MAX_REJECT_CHARACTERS] for line in self.lines[position : position + 1]], 0)

    def keep_raw_rows(self, length: int) -> RawRow:
        """A `raw_row` that holds only so many bytes of each line: fields that are not read may be large."""
        return partial(_raw_line, [line[:length] for line in self.lines])


def _raw_line(lines: list[RawLine], position: int) -> str:
    line = lines[position]
    if isinstance(line, bytes):
        line = line.decode("utf-8", "backslashreplace")
    return escape_for_reject(line.removesuffix("\r"))


def parse_lines(lines: list[Any], encoding: str = "utf-8", unit: str = "line") -> ParsedLines:
    """Parse lines: all at once if all of them are valid objects, otherwise one by one.

    Args:
        lines: JSON texts, as bytes in UTF-8 or as decoded text.
        encoding: The text encoding of the file.
        unit: What the texts are, for reasons to reject them.
    """
    try:
        rows = list(map(orjson.loads, lines))
        if set(map(type, rows)) <= {dict}:
            return ParsedLines(lines, range(len(lines)), rows, {}, set())
    except ValueError:
        pass  # parsed one by one below
    parsed = ParsedLines([], [], [], {}, set())
    if not any(lines):  # many blank lines
        return parsed
    for offset, line in enumerate(lines):
        if line.strip():
            _add_line(line, offset, encoding, unit, parsed)
    return parsed


def _add_line(line: RawLine, offset: int, encoding: str, unit: str, parsed: ParsedLines) -> None:
    reason: str | None = None
    row: Any = {}
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        row, reason = _parse_leniently(line, encoding, unit, error)
        parsed.unusual_positions.add(len(parsed.lines))
    if reason is None and type(row) is not dict:
        reason = NOT_OBJECT_REASON
    if reason is not None:
        parsed.reject_reasons[len(parsed.lines)] = reason
        row = {}
    parsed.lines.append(line)
    parsed.line_offsets.append(offset)
    parsed.rows.append(row)


def _parse_leniently(line: RawLine, encoding: str, unit: str, error: orjson.JSONDecodeError) -> tuple[Any, str | None]:
    """Parse with the standard library, which accepts NaN, Infinity, lone surrogates and, here, a byte order mark."""
    try:
        text = line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError as bad:
        return {}, f"{BAD_ENCODING_REASON}: byte 0x{bad.object[bad.start]:02x} at byte {bad.start} of the {unit}"
    reason = undecodable_reason(text, encoding, f"the {unit}")
    if reason is not None:
        return {}, reason
    try:
        return json.loads(text.removeprefix(BYTE_ORDER_MARK), parse_int=_parse_integer), None
    except RecursionError:
        return {}, f"{BAD_JSON_REASON}: nested too deeply"
    except ValueError:
        return {}, f"{BAD_JSON_REASON}: {error.msg} at column {error.colno}"


def _parse_integer(digits: str) -> int | float:
    """An integer of more than 64 bits becomes a float, as with orjson."""
    if len(digits) <= MAX_INT64_DIGITS and -(1 << 63) <= int(digits) < 1 << 64:
        return int(digits)
    return float(digits)


def read_jsonl(
    input_split: InputSplit, row_builder: RowBuilder, encoding: str, prefetched: storage.PrefetchedFiles | None = None
) -> Generator[RowBatch, None, None]:
    """Yield the rows of a split: the lines that begin in it.

    Raises:
        InputError: The file cannot be read, or has become shorter since it was planned.
    """
    return read_rows(input_split, row_builder, encoding, prefetched, parse_lines)
