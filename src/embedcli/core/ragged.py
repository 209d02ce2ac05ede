"""Rows with different numbers of entries, stored one row after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray, Int64Array


@dataclass(frozen=True)
class RaggedRows:
    """Which of the entries each of n rows has.

    Attributes:
        offsets: int64 [n + 1]: row i has the entries `offsets[i]` to `offsets[i + 1]`; the first is 0.
    """

    offsets: Int64Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64Array:
        """int64 [n]: entries of each row."""
        return np.diff(self.offsets)

    @property
    def entry_rows(self) -> Int64Array:
        """int64 [entries]: the row of each entry."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def find_rows_with(self, is_meant: BoolArray) -> BoolArray:
        """bool [n]: True for a row with an entry that is meant; `is_meant` is bool [entries]."""
        rows = np.zeros(len(self), bool)
        rows[self.entry_rows[is_meant]] = True
        return rows

    def list_entries(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Offsets of some rows, numbered by int64 [k], and the numbers of their entries: int64 [k + 1], [entries]."""
        lengths = self.lengths[rows]
        return offsets_of(lengths), concat_ranges(self.offsets[:-1][rows], lengths)


def offsets_of(lengths: Any) -> Int64Array:
    """int64 [n + 1]: where rows of these lengths begin and end."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def concat_ranges(starts: Int64Array, counts: Int64Array) -> Int64Array:
    """Concatenate the ranges `starts[i]`, `starts[i] + 1` ... of `counts[i]` numbers each: int64 [sum(counts)]."""
    ends = np.cumsum(counts)
    numbers = np.repeat(starts - (ends - counts), counts)
    numbers += np.arange(len(numbers))
    return numbers
