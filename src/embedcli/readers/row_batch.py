"""Rows as the readers hand them over, columnar, and the reasons for which a row is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from embedcli.core.types import Int64Array as Positions

# What stands before the first colon of a reject's reason is one of these.
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

# The first reason found for a row, by its position among the rows at hand.
RejectReasons = dict[int, str]


class BadRow(NamedTuple):
    """A bad row: its position, why it is refused, its id if known, and its beginning as it stands in the file."""

    position: int
    reason: str
    id: Any
    raw: str


@dataclass(frozen=True)
class RowBatch:
    """Consecutive rows of a piece: the good ones as columns, the bad ones as faults.

    `lines` places every row, good or bad, counting from 1 at the piece's beginning; `good` are the positions
    of the good ones in it, ascending. `weights` is the size of each good row in characters. `span` is how
    many lines of the file these rows take, `done` how many of its bytes the piece's reader has consumed.
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

    @property
    def row_count(self) -> int:
        return len(self.lines)

    @cached_property
    def accepted_before(self) -> Positions:
        """[count + 1]: how many good rows stand before each position."""
        return np.concatenate(([0], np.cumsum(self._mask)))

    @cached_property
    def characters_before(self) -> Positions:
        """[count + 1]: the characters in the good rows before each position."""
        weights = np.zeros(self.row_count, np.int64)
        weights[self._mask] = self.text_characters
        return np.concatenate(([0], np.cumsum(weights)))

    @cached_property
    def _mask(self) -> Any:
        mask = np.zeros(self.row_count, bool)
        mask[self.accepted] = True
        return mask


def accepted_positions(count: int, faults: RejectReasons) -> Sequence[int]:
    """The positions without a fault, ascending."""
    return [i for i in range(count) if i not in faults] if faults else range(count)


def take_positions(column: list[Any], good: Sequence[int]) -> list[Any]:
    """The values at the good positions."""
    return column if len(good) == len(column) else [column[i] for i in good]
