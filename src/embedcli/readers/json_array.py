"""Read a JSON array of objects, `[{...}, ...]`, without holding more than one element of it in memory."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.core.types import InputSplit
from embedcli.readers.decoding import (
    BYTE_ORDER_MARK,
    MAX_ROW_BYTES,
    TextDecoder,
    strip_byte_order_mark,
)
from embedcli.readers.jsonl import parse_lines
from embedcli.readers.row_batch import RowBatch
from embedcli.readers.row_builder import RowBuilder, build_row_batch

TO_JSONL_HINT = "make it JSONL: jq -c '.[]' FILE | embedcli encode - OUTPUT"
# A string that is whole in the block, or what changes the nesting; and what matters inside of a string.
STRUCTURE = r'"(?:[^"\\]++|\\.)*+"|["\[\]{},]'
# A field with a list of objects.
LIST_OF_OBJECTS = re.compile(r'("(?:[^"\\]++|\\.)*+")\s*:\s*\[\s*\{')
STRING_END = r'["\\]'


class Element(NamedTuple):
    """The text of an element of the array, and the line that it begins at, from 1."""

    text: Any
    line: int


class ArraySplitter:
    """Cuts a JSON array into its elements as blocks arrive; what an element holds is not checked.

    Blocks, like the elements, are bytes or text.

    Attributes:
        line: The line that has been reached, from 1.
    """

    def __init__(self, path: str, *, is_text: bool) -> None:
        self.line = 1
        self._path = path
        structure, string_end = (STRUCTURE, STRING_END) if is_text else (STRUCTURE.encode(), STRING_END.encode())
        self._structure: re.Pattern[Any] = re.compile(structure, re.DOTALL)
        self._string_end: re.Pattern[Any] = re.compile(string_end)
        self._newline: Any = "\n" if is_text else b"\n"
        self._parts: list[Any] = []
        self._pending_length = 0
        self._depth = 0
        self._in_string = False
        self._skipped = 0
        self._is_closed = False

    def split(self, block: Any) -> list[Element]:
        """The elements that end in the next block.

        Raises:
            InputError: The array is followed by something else, or an element is longer than MAX_ROW_BYTES.
        """
        elements: list[Element] = []
        start, position = 0, self._skipped
        self._skipped = 0
        while position < len(block):
            pattern = self._string_end if self._in_string else self._structure
            match = None if self._is_closed else pattern.search(block, position)
            if match is None:
                break
            character, position = _first_character(match[0]), match.end()
            if self._in_string:
                self._in_string = character != '"'
                position += character == "\\"  # the escaped character does not end the string
            elif character == '"':
                self._in_string = len(match[0]) == 1
            elif character in "[{":
                self._depth += 1
                if self._depth == 1:
                    self.line += block[:position].count(self._newline)
                    start = position
            elif character in "]}":
                self._depth -= 1
                self._is_closed = not self._depth
            if self._is_closed or (character == "," and self._depth == 1):
                elements += self._finish_element(block[start : position - 1])
                start = position
        self._skipped = max(0, position - len(block))
        self._keep(block[start:])
        return elements

    def _finish_element(self, end: Any) -> list[Element]:
        """The element that ends here, if it is not blank; a comma before the closing bracket leaves a blank one."""
        raw = self._newline[:0].join([*self._parts, end])
        self._parts, self._pending_length = [], 0
        text = raw.lstrip()
        element = Element(text.rstrip(), self.line + raw[: len(raw) - len(text)].count(self._newline))
        self.line += raw.count(self._newline)
        return [element] if text else []

    def _keep(self, rest: Any) -> None:
        """Keep the beginning of an element whose end has not been seen; InputError if text follows the array."""
        if not self._depth:
            before_end = rest[: len(rest) - len(rest.lstrip())]
            self.line += before_end.count(self._newline)
            if self._is_closed and len(before_end) < len(rest):
                raise InputError(
                    f"{storage.format_location(self._path, self.line)}: the JSON array has ended, and more follows",
                    f"remove what follows the array, or {TO_JSONL_HINT}",
                )
            return
        self._parts.append(rest)
        self._pending_length += len(rest)
        if self._pending_length > MAX_ROW_BYTES:
            raise InputError(
                f"{storage.format_location(self._path, self.line)}: this element of the JSON array is longer than "
                f"{MAX_ROW_BYTES >> 20} MiB",
                "check its quotes and brackets",
            )

    def finish(self) -> None:
        """Check that the array was closed.

        Raises:
            InputError: It was not: the file is cut off, or an element lacks a quote or a bracket.
        """
        if self._is_closed:
            return
        raw = self._newline[:0].join(self._parts)
        line = self.line + raw[: len(raw) - len(raw.lstrip())].count(self._newline)
        location = storage.format_location(self._path, line)
        if not raw.strip():
            raise InputError(
                f"{location}: the JSON array is cut off: it is not closed", "fetch the file again if it is incomplete"
            )
        raise InputError(
            f"{location}: the JSON array is cut off, or a quote or bracket of this element is not closed",
            "fetch the file again if it is incomplete, or correct this element",
        )


def _first_character(text: str | bytes) -> str:
    return chr(text[0]) if isinstance(text, bytes) else text[0]


def split_elements(blocks: Iterable[bytes], encoding: str, path: str) -> Iterator[tuple[list[Element], int]]:
    """Yield lists of elements of a JSON array, and the line that has been reached: bytes for UTF-8, otherwise text.

    Raises:
        InputError: The array is cut off or followed by something else, or an element is too long.
    """
    is_utf8 = encoding == "utf-8"
    splitter = ArraySplitter(path, is_text=not is_utf8)
    parts: Iterator[Any] = strip_byte_order_mark(blocks) if is_utf8 else TextDecoder(encoding, path).decode(blocks)
    for block in parts:
        yield splitter.split(block), splitter.line
    splitter.finish()


def read_json_array(
    input_split: InputSplit, row_builder: RowBuilder, encoding: str, prefetched: storage.PrefetchedFiles | None = None
) -> Generator[RowBatch, None, None]:
    """Yield the rows of a file, which is a single split: the elements of its array.

    Raises:
        InputError: The file cannot be read, or its array is cut off or followed by something else.
    """
    last_line = 0
    with storage.open_input(input_split.path, prefetched=prefetched) as source:
        for elements, line in split_elements(source, encoding, input_split.path):
            parsed = parse_lines([element.text for element in elements], encoding, "element")
            batch = build_row_batch(
                row_builder,
                {name: parsed.column(name) for name in row_builder.column_names},
                parsed.reject_reasons,
                parsed.raw_row,
                lines=[elements[offset].line for offset in parsed.line_offsets],
                line_count=line - last_line,
                bytes_read=source.position,
                unusual_positions=parsed.unusual_positions,
            )
            yield replace(batch, raw_row=parsed.keep_raw_rows(row_builder.kept_raw_length))
            last_line = line


def count_elements(input_split: InputSplit, encoding: str) -> tuple[int, int]:
    """The number of elements of the array, and of the lines that it covers."""
    rows = last_line = 0
    with storage.open_input(input_split.path) as source:
        for elements, line in split_elements(source, encoding, input_split.path):
            rows += len(elements)
            last_line = line
    return rows, last_line


def first_elements(blocks: Iterable[bytes], encoding: str, path: str, max_rows: int, max_bytes: int) -> list[Element]:
    """The first `max_rows` elements within `max_bytes`, or the first one if it is longer, whatever the block sizes."""
    elements: list[Element] = []
    size = 0

    def aligned_blocks() -> Iterator[bytes]:
        nonlocal size
        for block in blocks:
            room = max(0, max_bytes - size)
            for part in (block[:room], block[room:]):
                size += len(part)
                yield part

    for found, _ in split_elements(aligned_blocks(), encoding, path):
        elements += found if size <= max_bytes or not elements else []
        if len(elements) >= max_rows or (elements and size >= max_bytes):
            break
    return elements[: max_rows if size <= max_bytes else 1]


def check_one_object_per_line(lines: Sequence[Any], path: str) -> None:
    """Check the first lines of JSONL, of which none is an object.

    Raises:
        InputError: They are an array, or objects that go over several lines.
    """
    texts = (line.decode("utf-8", "replace") if isinstance(line, bytes) else line for line in lines)
    start = "\n".join(texts).removeprefix(BYTE_ORDER_MARK).lstrip()
    if start.startswith("["):
        raise InputError(
            f"{storage.format_location(path)}: is one JSON array, not one JSON object per line", "use --format json"
        )
    if not start.startswith("{") or _depth(start.partition("\n")[0]) <= 0:
        return
    named = next((match for match in LIST_OF_OBJECTS.finditer(start) if _depth(start[: match.start()]) == 1), None)
    if named is None:
        raise InputError(
            f"{storage.format_location(path)}: has JSON objects over several lines, not one per line",
            "make it JSONL: jq -c . FILE | embedcli encode - OUTPUT",
        )
    raise InputError(
        f"{storage.format_location(path)}: is one JSON object over several lines, with the rows in {named[1]}",
        f"make it JSONL: jq -c '.[{named[1]}][]' FILE | embedcli encode - OUTPUT",
    )


def _depth(text: str) -> int:
    """How many brackets are open at the end of a text."""
    tokens = [match[0] for match in re.finditer(STRUCTURE, text, re.DOTALL)]
    return sum((token in "[{") - (token in "]}") for token in tokens)
