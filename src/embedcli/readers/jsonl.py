"""Read JSONL: one JSON object per line. Plain UTF-8 files are read by byte ranges, others from start to end."""

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
    detect_encoding,
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


def parse_lines(lines: list[Any], encoding: str = "utf-8") -> ParsedLines:
    """Parse lines: all at once if all of them are valid objects, otherwise one by one."""
    try:
        rows = list(map(orjson.loads, lines))
        if set(map(type, rows)) <= {dict}:
            return ParsedLines(lines, range(len(lines)), rows, {}, set())
    except ValueError:
        pass  # parsed one by one below
    parsed = ParsedLines([], [], [], {}, set())
    for offset, line in enumerate(lines):
        if line.strip():
            _add_line(line, offset, encoding, parsed)
    return parsed


def _add_line(line: RawLine, offset: int, encoding: str, parsed: ParsedLines) -> None:
    reason: str | None = None
    row: Any = {}
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        row, reason = _parse_leniently(line, encoding, error)
        parsed.unusual_positions.add(len(parsed.lines))
    if reason is None and type(row) is not dict:
        reason = NOT_OBJECT_REASON
    if reason is not None:
        parsed.reject_reasons[len(parsed.lines)] = reason
        row = {}
    parsed.lines.append(line)
    parsed.line_offsets.append(offset)
    parsed.rows.append(row)


def _parse_leniently(line: RawLine, encoding: str, error: orjson.JSONDecodeError) -> tuple[Any, str | None]:
    """Parse with the standard library, which accepts NaN, Infinity, lone surrogates and, here, a byte order mark."""
    try:
        text = line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError as bad:
        return {}, f"{BAD_ENCODING_REASON}: byte 0x{bad.object[bad.start]:02x} at byte {bad.start} of the line"
    undecodable = find_undecodable_byte(text)
    if undecodable is not None:
        byte, position = undecodable
        offset = len(text[:position].encode(encoding, "replace"))
        return {}, f"{BAD_ENCODING_REASON}: byte 0x{byte:02x} at byte {offset} of the line"
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
    line_count = 0
    with storage.open_input(input_split.path, prefetched=prefetched) as source:
        if (source.size or 0) < (input_split.stop or 0):
            raise InputError(
                f"{storage.format_location(input_split.path)}: has become shorter while it was read",
                "run the same command again when no other program writes to the file",
            )
        encoding, blocks = _decide_encoding(source, input_split, encoding)
        for lines in iterate_lines(blocks, encoding, input_split.path, input_split.start):
            parsed = parse_lines(lines, encoding)
            yield build_row_batch(
                row_builder,
                {name: _column(parsed.rows, name) for name in row_builder.column_names},
                parsed.reject_reasons,
                partial(_raw_row, parsed.lines),
                lines=_add_to_offsets(parsed.line_offsets, line_count + 1),
                line_count=len(lines),
                bytes_read=min(source.position, input_split.stop or source.position) - input_split.start,
                unusual_positions=parsed.unusual_positions,
            )
            line_count += len(lines)


def _column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    if "." in name:
        return [nested_value(row, name) for row in rows]
    return [row.get(name) for row in rows]


def count_jsonl_rows(input_split: InputSplit, encoding: str) -> tuple[int, int]:
    """The number of rows of a split, and of its lines."""
    rows = lines = 0
    with storage.open_input(input_split.path) as source:
        encoding, blocks = _decide_encoding(source, input_split, encoding)
        for block in iterate_lines(blocks, encoding, input_split.path, input_split.start):
            lines += len(block)
            rows += len(block) - sum(not line or line.isspace() for line in block)
    return rows, lines


def count_lines_before(path: str, start: int) -> int:
    """The number of lines of a plain file before the first that begins at byte `start` or later."""
    newlines = int(start > 0)
    remaining = start - 1
    with storage.open_input(path) as source:
        while remaining > 0 and (block := source.read()):
            newlines += block[:remaining].count(b"\n")
            remaining -= len(block)
    return newlines


def _add_to_offsets(offsets: Any, first: int) -> Any:
    if isinstance(offsets, range):
        return range(first, first + len(offsets))
    return [first + offset for offset in offsets]


def _raw_row(lines: list[Any], position: int) -> str:
    line = lines[position]
    if isinstance(line, bytes):
        line = line[: 4 * MAX_REJECT_CHARACTERS].decode("utf-8", "backslashreplace")
    return escape_for_reject(line.removesuffix("\r"))


def _decide_encoding(
    source: storage.InputStream, input_split: InputSplit, encoding: str
) -> tuple[str, Iterable[bytes]]:
    """The encoding of a file, and the bytes of a split of it."""
    blocks: Iterable[bytes] = source
    if input_split.unit == "bytes" and input_split.stop is not None:
        blocks = read_line_range(source, input_split.start, input_split.stop)
    if input_split.start:
        return encoding, blocks
    marked, blocks = detect_encoding(blocks, encoding)
    return marked or encoding, blocks


def iterate_lines(blocks: Iterable[bytes], encoding: str, path: str, start: int = 0) -> Iterator[list[Any]]:
    """Yield lists of lines of a stream that begins at byte `start` of its file: bytes for UTF-8, otherwise text."""
    if encoding == "utf-8":
        return split_lines(blocks if start else strip_byte_order_mark(blocks), b"\n", path)
    return split_lines(TextDecoder(encoding, path).decode(blocks), "\n", path)


def read_line_range(source: storage.InputStream, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes of the lines that begin in [start, stop) of a plain file."""
    position = _find_first_line(source, start, stop)
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


def _find_first_line(source: storage.InputStream, start: int, stop: int) -> int:
    """The byte at which the first line after `start` begins; `stop` or more if no line begins before `stop`."""
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
