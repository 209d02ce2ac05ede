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
from embedcli.core.types import Piece
from embedcli.readers.decoding import BOM, RAW_CHARS, Decoder, bad_byte, lines_of, printable, without_bom
from embedcli.readers.nested_fields import value_in
from embedcli.readers.row_batch import BAD_ENCODING, BAD_JSON, NOT_OBJECT, Faults, Rows
from embedcli.readers.row_builder import Fields, assembled

Line = bytes | str
INT64_DIGITS = 20


@dataclass
class Parsed:
    """Some lines as objects; a line that is none has an empty object and a fault. Blank lines are left out.

    `places` are the line numbers within these lines, from 0; `odd` the rows that may hold NaN or lone surrogates.
    """

    lines: list[Any]
    places: Any
    rows: list[dict[str, Any]]
    faults: Faults
    odd: set[int]


def parse(lines: list[Any], encoding: str = "utf-8") -> Parsed:
    """Parse lines, all at once if all are well-formed objects."""
    try:
        rows = list(map(orjson.loads, lines))
        if set(map(type, rows)) <= {dict}:
            return Parsed(lines, range(len(lines)), rows, {}, set())
    except ValueError:
        pass  # one by one below
    found = Parsed([], [], [], {}, set())
    for place, line in enumerate(lines):
        if line.strip():
            _parse_one(line, place, encoding, found)
    return found


def _parse_one(line: Line, place: int, encoding: str, found: Parsed) -> None:
    reason: str | None = None
    row: Any = {}
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        row, reason = _second_try(line, encoding, error)
        found.odd.add(len(found.lines))
    if reason is None and type(row) is not dict:
        reason = NOT_OBJECT
    if reason is not None:
        found.faults[len(found.lines)] = reason
        row = {}
    found.lines.append(line)
    found.places.append(place)
    found.rows.append(row)


def _second_try(line: Line, encoding: str, error: orjson.JSONDecodeError) -> tuple[Any, str | None]:
    """NaN, Infinity, lone surrogates and a BOM before the object: the standard parser takes these."""
    try:
        text = line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError as bad:
        return {}, f"{BAD_ENCODING}: byte 0x{bad.object[bad.start]:02x} at byte {bad.start} of the line"
    mark = bad_byte(text)
    if mark is not None:
        offset = len(text[: mark[1]].encode(encoding, "replace"))
        return {}, f"{BAD_ENCODING}: byte 0x{mark[0]:02x} at byte {offset} of the line"
    try:
        return json.loads(text.removeprefix(BOM), parse_int=_number), None
    except RecursionError:
        return {}, f"{BAD_JSON}: nested too deeply"
    except ValueError:
        return {}, f"{BAD_JSON}: {error.msg} at column {error.colno}"


def _number(digits: str) -> int | float:
    """Whole numbers of more than 64 bits become floats, as orjson makes them."""
    if len(digits) <= INT64_DIGITS and -(1 << 63) <= int(digits) < 1 << 64:
        return int(digits)
    return float(digits)


def read(piece: Piece, fields: Fields, encoding: str) -> Generator[Rows, None, None]:
    """The rows of a piece. A line belongs to the piece in which it begins."""
    span = 0
    with storage.open_input(piece.path) as source:
        if (source.size or 0) < (piece.stop or 0):
            raise InputError(
                f"{storage.where(piece.path)}: has become shorter while it was read",
                "run the same command again when nothing writes to the file",
            )
        for lines in _lines(source, piece, encoding):
            parsed = parse(lines, encoding)
            yield assembled(
                fields,
                {name: _column(parsed.rows, name) for name in fields.names},
                parsed.faults,
                partial(_shown, parsed.lines),
                lines=_numbered(parsed.places, span + 1),
                span=len(lines),
                done=min(source.position, piece.stop or source.position) - piece.start,
                odd=parsed.odd,
            )
            span += len(lines)


def _column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    if "." in name:
        return [value_in(row, name) for row in rows]
    return [row.get(name) for row in rows]


def count(piece: Piece, encoding: str) -> tuple[int, int]:
    """How many rows a piece has, and how many lines."""
    rows = lines = 0
    with storage.open_input(piece.path) as source:
        for some in _lines(source, piece, encoding):
            lines += len(some)
            rows += len(some) - sum(not line or line.isspace() for line in some)
    return rows, lines


def lines_before(path: str, start: int) -> int:
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
        line = line[: 4 * RAW_CHARS].decode("utf-8", "backslashreplace")
    return printable(line.removesuffix("\r"))


def _lines(source: storage.Input, piece: Piece, encoding: str) -> Iterator[list[Any]]:
    if piece.unit == "bytes" and piece.stop is not None:
        return stream_lines(range_blocks(source, piece.start, piece.stop), encoding, piece.path, piece.start)
    return stream_lines(source, encoding, piece.path)


def stream_lines(blocks: Iterable[bytes], encoding: str, path: str, start: int = 0) -> Iterator[list[Any]]:
    """Lines of a stream that begins at byte `start` of its file: bytes if it is UTF-8, else text."""
    if encoding == "utf-8":
        return lines_of(blocks if start else without_bom(blocks), b"\n", path)
    return lines_of(Decoder(encoding, path).decoded(blocks), "\n", path)


def range_blocks(source: storage.Input, start: int, stop: int) -> Iterator[bytes]:
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


def _first_line(source: storage.Input, start: int, stop: int) -> int:
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
