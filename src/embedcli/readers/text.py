"""Read plain text: one row per line, in the column `text`. Blank lines are skipped, as in JSONL."""

from __future__ import annotations

from collections.abc import Collection, Generator
from dataclasses import dataclass
from typing import Any

from embedcli import storage
from embedcli.core.types import InputSplit
from embedcli.readers.decoding import BYTE_ORDER_MARK, escape_for_reject, undecodable_reason
from embedcli.readers.lines import read_rows
from embedcli.readers.row_batch import RawRow, RejectReasons, RowBatch
from embedcli.readers.row_builder import RowBuilder

TEXT_COLUMN = "text"
NAME_NOTE = "Every line is a row, because of the file name (--format csv or tsv reads a table)"


@dataclass
class DecodedLines:
    """The lines that are not blank, as text.

    Attributes:
        texts: The lines without their ends; undecodable bytes are lone surrogates U+DC80 to U+DCFF.
        line_offsets: The position of each of them among all lines, from 0.
        reject_reasons: Why rows are rejected, by position in `texts`.
        unusual_positions: None: rows with lone surrogates are rejected.
    """

    texts: list[str]
    line_offsets: list[int]
    reject_reasons: RejectReasons
    unusual_positions: Collection[int] = ()

    def column(self, name: str) -> list[Any]:
        """The only column of a text file is `text`; others, which further inputs have, are null."""
        return self.texts if name == TEXT_COLUMN else [None] * len(self.texts)

    def raw_row(self, position: int) -> str:
        """The beginning of a line, for a reject."""
        return escape_for_reject(self.texts[position])

    def keep_raw_rows(self, length: int) -> RawRow:
        """The same function: it holds nothing but the texts."""
        return self.raw_row


def decode_lines(lines: list[Any], encoding: str = "utf-8") -> DecodedLines:
    """Decode lines. A carriage return at the end and a byte order mark at the beginning do not belong to a text."""
    decoded = DecodedLines([], [], {})
    for offset, line in enumerate(lines):
        if not line or line.isspace():
            continue
        text = line.decode("utf-8", "surrogateescape") if isinstance(line, bytes) else line
        reason = undecodable_reason(text, encoding, "the line")
        if reason is not None:
            decoded.reject_reasons[len(decoded.texts)] = reason
        decoded.texts.append(text.removesuffix("\r").removeprefix(BYTE_ORDER_MARK))
        decoded.line_offsets.append(offset)
    return decoded


def read_text(
    input_split: InputSplit, row_builder: RowBuilder, encoding: str, prefetched: storage.PrefetchedFiles | None = None
) -> Generator[RowBatch, None, None]:
    """Yield the rows of a split: the lines that begin in it and are not blank.

    Raises:
        InputError: The file cannot be read, or has become shorter since it was planned.
    """
    return read_rows(input_split, row_builder, encoding, prefetched, decode_lines)
