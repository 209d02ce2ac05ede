"""JSONL: one JSON object a line. Plain UTF-8 files are read by byte ranges, everything else front to back."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.core.types import InputSplit
from embedcli.readers.decoding import (
    BYTE_ORDER_MARK,
    MAX_REJECT_CHARACTERS,
    TextDecoder,
    escape_for_reject,
    find_undecodable_byte,
    split_lines,
    strip_byte_order_mark,
)
from embedcli.readers.nested_fields import nested_value
from embedcli.readers.row_batch import BAD_ENCODING_REASON, BAD_JSON_REASON, NOT_OBJECT_REASON, RejectReasons, RowBatch
from embedcli.readers.row_builder import RowBuilder, build_row_batch

RawLine = bytes | str
MAX_INT64_DIGITS = 20


@dataclass
class ParsedLines:
    """Some lines as objects; a line that is none has an empty object and a fault. Blank lines are left out.

    `places` are the line numbers within these lines, from 0; `odd` the rows that may hold NaN or lone surrogates.
    """

    lines: list[Any]
    line_offsets: Any
    rows: list[dict[str, Any]]
    reject_reasons: RejectReasons
    unusual_positions: set[int]


def parse_lines(lines: list[Any], encoding: str = "utf-8") -> ParsedLines:
    """Parse lines, all at once if all are well-formed objects."""
    try:
        rows = list(map(orjson.loads, lines))
        if set(map(type, rows)) <= {dict}:
            return ParsedLines(lines, range(len(lines)), rows, {}, set())
    except ValueError:
        pass  # one by one below
    found = ParsedLines([], [], [], {}, set())
    for place, line in enumerate(lines):
        if line.strip():
            _parse_one(line, place, encoding, found)
    return found


def _parse_one(line: RawLine, place: int, encoding: str, found: ParsedLines) -> None:
    reason: str | None = None
    row: Any = {}
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        row, reason = _second_try(line, encoding, error)
        found.unusual_positions.add(len(found.lines))
    if reason is None and type(row) is not dict:
        reason = NOT_OBJECT_REASON
    if reason is not None:
        found.reject_reasons[len(found.lines)] = reason
        row = {}
    found.lines.append(line)
    found.line_offsets.append(place)
    found.rows.append(row)


def _second_try(line: RawLine, encoding: str, error: orjson.JSONDecodeError) -> tuple[Any, str | None]:
    """NaN, Infinity, lone surrogates and a BOM before the object: the standard parser takes these."""
    try:
        text = line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError as bad:
        return {}, f"{BAD_ENCODING_REASON}: byte 0x{bad.object[bad.start]:02x} at byte {bad.start} of the line"
    mark = find_undecodable_byte(text)
    if mark is not None:
        offset = len(text[: mark[1]].encode(encoding, "replace"))
        return {}, f"{BAD_ENCODING_REASON}: byte 0x{mark[0]:02x} at byte {offset} of the line"
    try:
        return json.loads(text.removeprefix(BYTE_ORDER_MARK), parse_int=_number), None
    except RecursionError:
        return {}, f"{BAD_JSON_REASON}: nested too deeply"
    except ValueError:
        return {}, f"{BAD_JSON_REASON}: {error.msg} at column {error.colno}"


def _number(digits: str) -> int | float:
    """Whole numbers of more than 64 bits become floats, as orjson makes them."""
    if len(digits) <= MAX_INT64_DIGITS and -(1 << 63) <= int(digits) < 1 << 64:
        return int(digits)
    return float(digits)


def read_jsonl(
    input_split: InputSplit, fields: RowBuilder, encoding: str, prefetched: storage.PrefetchedFiles | None = None
) -> Generator[RowBatch, None, None]:
    """The rows of a piece. A line belongs to the piece in which it begins."""
    span = 0
    with storage.open_input(input_split.path, prefetched=prefetched) as source:
        if (source.size or 0) < (input_split.stop or 0):
            raise InputError(
                f"{storage.format_location(input_split.path)}: has become shorter while it was read",
                "run the same command again when nothing writes to the file",
            )
        for lines in _lines(source, input_split, encoding):
            parsed = parse_lines(lines, encoding)
            yield build_row_batch(
                fields,
                {name: _column(parsed.rows, name) for name in fields.column_names},
                parsed.reject_reasons,
                partial(_shown, parsed.lines),
                lines=_numbered(parsed.line_offsets, span + 1),
                span=len(lines),
                done=min(source.position, input_split.stop or source.position) - input_split.start,
                odd=parsed.unusual_positions,
            )
            span += len(lines)


def _column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    if "." in name:
        return [nested_value(row, name) for row in rows]
    return [row.get(name) for row in rows]


def count_jsonl_rows(input_split: InputSplit, encoding: str) -> tuple[int, int]:
    """How many rows a piece has, and how many lines."""
    rows = lines = 0
    with storage.open_input(input_split.path) as source:
        for some in _lines(source, input_split, encoding):
            lines += len(some)
            rows += len(some) - sum(not line or line.isspace() for line in some)
    return rows, lines


def count_lines_before(path: str, start: int) -> int:
    """How many lines of a plain file stand before the first one that begins at byte `start` or after it."""
    newlines = int(start > 0)
    left = start - 1
    with storage.open_input(path) as source:
        while left > 0 and (block := source.read()):
            newlines += block[:left].count(b"\n")
            left -= len(block)
    return newlines


def _numbered(places: Any, first: int) -> Any:
    if isinstance(places, range):
        return range(first, first + len(places))
    return [first + place for place in places]


def _shown(lines: list[Any], i: int) -> str:
    line = lines[i]
    if isinstance(line, bytes):
        line = line[: 4 * MAX_REJECT_CHARACTERS].decode("utf-8", "backslashreplace")
    return escape_for_reject(line.removesuffix("\r"))


def _lines(source: storage.InputStream, input_split: InputSplit, encoding: str) -> Iterator[list[Any]]:
    if input_split.unit == "bytes" and input_split.stop is not None:
        return iterate_lines(
            read_line_range(source, input_split.start, input_split.stop), encoding, input_split.path, input_split.start
        )
    return iterate_lines(source, encoding, input_split.path)


def iterate_lines(blocks: Iterable[bytes], encoding: str, path: str, start: int = 0) -> Iterator[list[Any]]:
    """Lines of a stream that begins at byte `start` of its file: bytes if it is UTF-8, else text."""
    if encoding == "utf-8":
        return split_lines(blocks if start else strip_byte_order_mark(blocks), b"\n", path)
    return split_lines(TextDecoder(encoding, path).decode(blocks), "\n", path)


def read_line_range(source: storage.InputStream, start: int, stop: int) -> Iterator[bytes]:
    """The bytes of the lines that begin in [start, stop) of a plain file."""
    position = _first_line(source, start, stop)
    if position >= stop:
        return
    source.seek(position)
    for block in source:
        holds_last = position + len(block) >= stop
        end = block.find(b"\n", max(0, stop - 1 - position)) + 1 if holds_last else 0
        if end:
            yield block[:end]
            return
        position += len(block)
        yield block


def _first_line(source: storage.InputStream, start: int, stop: int) -> int:
    """Where the first line begins that begins at `start` or after it; `stop` or more if none does before."""
    if start == 0:
        return 0
    position = start - 1
    source.seek(position)
    for block in source:
        end = block.find(b"\n") + 1
        if end or position >= stop:
            return position + (end or len(block))
        position += len(block)
    return stop
