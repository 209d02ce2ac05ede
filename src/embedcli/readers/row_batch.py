"""The rows that a format's reader yields, as columns, and the reasons to reject a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from embedcli.core.types import Int64Array as Positions

# The kinds of rejects: a reason is one of these, or one of these, a colon and details. The reasons are part of the hash
# by which a staging folder recognizes its chunks: another wording makes jobs that are under way start again.
BAD_JSON_REASON = "bad JSON"
NOT_OBJECT_REASON = "not a JSON object"
BAD_CSV_REASON = "bad CSV"
WRONG_WIDTH_REASON = "wrong number of columns"
BAD_ENCODING_REASON = "bad encoding"
MISSING_TEXT_REASON = "text is missing or null"
NOT_TEXT_REASON = "text is not a string"
EMPTY_TEXT_REASON = "text is empty"
SURROGATE_REASON = "lone surrogate"
MISSING_FIELD_REASON = "template column is missing or null"
NOT_FIELD_REASON = "template column is neither a string nor a whole number"
MISSING_ID_REASON = "id is missing or null"
WRONG_ID_REASON = "id has another type"
WRONG_KEPT_REASON = "kept column has another type"

WIDTHS = " instead of "

# The first reason found to reject a row, by the position of the row in its batch.
RejectReasons = dict[int, str]
RawRow = Callable[[int], str]


class BadRow(NamedTuple):
    """A row to reject: its position in the batch, the reason, its id if known, and its beginning as in the file."""

    position: int
    reason: str
    id: Any
    raw: str


@dataclass(frozen=True)
class RowBatch:
    """Consecutive rows of a split: accepted rows as columns, and the bad rows.

    Attributes:
        texts: The texts of the accepted rows.
        ids: Their ids; None if ids are generated.
        kept: A table with their kept columns.
        accepted: The positions of the accepted rows in the batch, ascending.
        lines: The line of every row, accepted or bad, from 1 at the beginning of the split.
        text_characters: int64 [accepted]: the size of each accepted row in characters.
        bad_rows: The rows to reject, by position.
        line_count: How many lines of the file the batch covers.
        bytes_read: How many bytes of the split have been read so far.
        raw_row: Returns the beginning of a row as it is in the file, by position. It is kept with the rows until they
            are encoded, so it must not hold more than it needs for that.
        repeated_headers: The lines of headers that were skipped between the rows.
    """

    texts: list[str]
    ids: pa.Array | None
    kept: pa.Table
    accepted: Sequence[int]
    lines: Sequence[int]
    text_characters: Positions
    bad_rows: list[BadRow]
    line_count: int
    bytes_read: int
    raw_row: RawRow
    repeated_headers: Sequence[int] = ()

    @property
    def row_count(self) -> int:
        """Accepted and bad rows."""
        return len(self.lines)

    def head(self, count: int) -> RowBatch:
        """The first `count` rows of the batch."""
        accepted = int(self.accepted_before[count])
        return replace(
            self,
            texts=self.texts[:accepted],
            ids=None if self.ids is None else self.ids.slice(0, accepted),
            kept=self.kept.slice(0, accepted),
            accepted=self.accepted[:accepted],
            lines=self.lines[:count],
            text_characters=self.text_characters[:accepted],
            bad_rows=[bad_row for bad_row in self.bad_rows if bad_row.position < count],
            repeated_headers=[line for line in self.repeated_headers if line < self.lines[count]],
        )

    @cached_property
    def accepted_before(self) -> Positions:
        """int64 [row_count + 1]: accepted rows before each position."""
        return np.concatenate(([0], np.cumsum(self._is_accepted)))

    @cached_property
    def characters_before(self) -> Positions:
        """int64 [row_count + 1]: characters of the accepted rows before each position."""
        characters = np.zeros(self.row_count, np.int64)
        characters[self._is_accepted] = self.text_characters
        return np.concatenate(([0], np.cumsum(characters)))

    @cached_property
    def _is_accepted(self) -> Any:
        mask = np.zeros(self.row_count, bool)
        mask[self.accepted] = True
        return mask


def wrong_width_reason(found: int, expected: int) -> str:
    """The reason to reject a row with another number of fields than the header."""
    return f"{WRONG_WIDTH_REASON}: {found}{WIDTHS}{expected}"


def parse_wrong_width_reason(reason: str) -> tuple[int, int] | None:
    """The numbers of fields that a reason was made from: found and expected; None for any other reason."""
    kind, _, detail = reason.partition(": ")
    found, _, expected = detail.partition(WIDTHS)
    if kind != WRONG_WIDTH_REASON or not (found.isdigit() and expected.isdigit()):
        return None
    return int(found), int(expected)


def accepted_positions(count: int, reasons: RejectReasons) -> Sequence[int]:
    """The positions of rows that are not rejected, ascending."""
    return [i for i in range(count) if i not in reasons] if reasons else range(count)


def take_positions(column: list[Any], positions: Sequence[int]) -> list[Any]:
    """The values at ascending positions."""
    return column if len(positions) == len(column) else [column[i] for i in positions]
