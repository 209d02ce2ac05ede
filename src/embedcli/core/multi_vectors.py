"""Several vectors for each row, one for each of its tokens, as late-interaction models (ColBERT) compute them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.ragged import RaggedRows, offsets_of

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray, Float32Array


@dataclass(frozen=True)
class MultiVectors(RaggedRows):
    """The vectors of n rows, one row after the other. An entry is a vector.

    Attributes:
        values: float32 [tokens, dim]; of rows that were read, [tokens, stored width] as they are stored.
    """

    values: Float32Array

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and dimensions."""
        return len(self), int(self.values.shape[1])

    def __getitem__(self, rows: Any) -> MultiVectors:
        """Take some rows: by numbers int64 [k], a mask bool [n] or a slice. All rows in their order are not copied."""
        numbers = np.arange(len(self))[rows]
        if np.array_equal(numbers, np.arange(len(self))):
            return self
        offsets, tokens = self.list_entries(numbers)
        return MultiVectors(offsets, self.values[tokens])

    def view_rows(self, start: int, stop: int) -> MultiVectors:
        """Take the rows from `start` to `stop` without a copy of their vectors."""
        offsets = self.offsets[start : stop + 1]
        return MultiVectors(offsets - offsets[0], self.values[offsets[0] : offsets[-1]])

    def split_by_vectors(self, most: int) -> Iterator[tuple[int, int]]:
        """Divide the rows into ranges, start and stop, of at most `most` vectors, or of one row that has more."""
        start = 0
        while start < len(self):
            stop = int(np.searchsorted(self.offsets, self.offsets[start] + most, side="right")) - 1
            stop = max(start + 1, min(stop, len(self)))
            yield start, stop
            start = stop

    def find_unusable(self) -> BoolArray:
        """bool [n]: True for a row without vectors, or with one that is not finite, or only with zeros."""
        is_bad = np.asarray(~np.isfinite(self.values).all(axis=1))
        return self.find_rows_with(is_bad) | ~self.find_rows_with(np.asarray(self.values.any(axis=1)))

    def find_larger(self, bound: float) -> BoolArray:
        """bool [n]: True for a row with a number of at least this size."""
        return self.find_rows_with(np.asarray((np.abs(self.values) >= bound).any(axis=1)))


def concat_multi(parts: Sequence[MultiVectors]) -> MultiVectors:
    """Concatenate vectors of the same dimensions, at least one part; a single part is returned as it is."""
    parts = [part for part in parts if len(part)] or list(parts[:1])
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([part.lengths for part in parts])
    return MultiVectors(offsets_of(lengths), np.concatenate([part.values for part in parts]))
