"""Read plain text: one row per line, in the column `text`. Blank lines are no rows, as in JSONL."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

from embedcli import storage
from embedcli.core.types import InputSplit
from embedcli.readers.decoding import BYTE_ORDER_MARK, escape_for_reject, find_undecodable_byte
from embedcli.readers.lines import bytes_read, read_lines
from embedcli.readers.row_batch import BAD_ENCODING_REASON, RejectReasons, RowBatch
from embedcli.readers.row_builder import RowBuilder, build_row_batch

TEXT_COLUMN = "text"
NAME_NOTE = "Every line is a row, because of the file name (--format csv or tsv reads a table)"


@dataclass(frozen=True)
class DecodedLines:
    """The lines that are not blank, as text.

    Attributes:
        texts: The lines without their ends; undecodable bytes are lone surrogates U+DC80 to U+DCFF.
        line_offsets: The position of each of them among all lines, from 0.
        reject_reasons: Why rows are rejected, by position in `texts`.
    """

    texts: list[str]
    line_offsets: list[int]
    reject_reasons: RejectReasons


def decode_lines(lines: list[Any], encoding: str = "utf-8") -> DecodedLines:
    """Decode lines. A carriage return at the end and a byte order mark at the beginning do not belong to a text."""
    texts: list[str] = []
    offsets: list[int] = []
    reasons: RejectReasons = {}
    for offset, line in enumerate(lines):
        if not line or line.isspace():
            continue
        text = line.decode("utf-8", "surrogateescape") if isinstance(line, bytes) else line
        undecodable = find_undecodable_byte(text)
        if undecodable is not None:
            byte, position = undecodable
            before = len(text[:position].encode(encoding, "replace"))
            reasons[len(texts)] = f"{BAD_ENCODING_REASON}: byte 0x{byte:02x} at byte {before} of the line"
        texts.append(text.removesuffix("\r").removeprefix(BYTE_ORDER_MARK))
        offsets.append(offset)
    return DecodedLines(texts, offsets, reasons)


def read_text(
    input_split: InputSplit, row_builder: RowBuilder, encoding: str, prefetched: storage.PrefetchedFiles | None = None
) -> Generator[RowBatch, None, None]:
    """Yield the rows of a split: the lines that begin in it and are not blank.

    Raises:
        InputError: The file cannot be read, or has become shorter since it was planned.
    """
    line_count = 0
    with storage.open_input(input_split.path, prefetched=prefetched) as source:
        for lines in read_lines(source, input_split, encoding):
            decoded = decode_lines(lines, encoding)
            yield build_row_batch(
                row_builder,
                {name: _column(decoded.texts, name) for name in row_builder.column_names},
                decoded.reject_reasons,
                partial(_raw_row, decoded.texts),
                lines=[line_count + 1 + offset for offset in decoded.line_offsets],
                line_count=len(lines),
                bytes_read=bytes_read(source, input_split),
            )
            line_count += len(lines)


def _column(texts: list[str], name: str) -> list[Any]:
    """The only column of a text file is `text`; others, which further inputs have, are null."""
    return texts if name == TEXT_COLUMN else [None] * len(texts)


def _raw_row(texts: list[str], position: int) -> str:
    return escape_for_reject(texts[position])
