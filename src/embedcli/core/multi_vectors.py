"""Several vectors for each row, one for each of its tokens, as late-interaction models (ColBERT) compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray, Float32Array, Int64Array


@dataclass(frozen=True)
class MultiVectors:
    """The vectors of n rows, one row after the other.

    Attributes:
        offsets: int64 [n + 1]: row i has the vectors `offsets[i]` to `offsets[i + 1]`.
        values: float32 [tokens, dim].
    """

    offsets: Int64Array
    values: Float32Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and dimensions."""
        return len(self), int(self.values.shape[1])

    @property
    def lengths(self) -> Int64Array:
        """int64 [n]: vectors of each row."""
        return np.diff(self.offsets)

    def __getitem__(self, rows: Any) -> MultiVectors:
        """Take some rows: by numbers int64 [k], a mask bool [n] or a slice. All rows in their order are not copied."""
        numbers = np.arange(len(self))[rows]
        if np.array_equal(numbers, np.arange(len(self))):
            return self
        lengths = self.lengths[numbers]
        offsets = offsets_of(lengths)
        tokens = np.repeat(self.offsets[:-1][numbers] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return MultiVectors(offsets, self.values[tokens])

    def find_unusable(self) -> BoolArray:
        """bool [n]: True for a row without vectors, or with one that is not finite, or only with zeros."""
        is_bad = np.asarray(~np.isfinite(self.values).all(axis=1))
        return self._rows_with(is_bad) | ~self._rows_with(np.asarray(self.values.any(axis=1)))

    def find_larger(self, bound: float) -> BoolArray:
        """bool [n]: True for a row with a number of at least this size."""
        return self._rows_with(np.asarray((np.abs(self.values) >= bound).any(axis=1)))

    def _rows_with(self, is_meant: BoolArray) -> BoolArray:
        """bool [n]: True for a row with a vector that is meant, by vector."""
        rows = np.zeros(len(self), bool)
        rows[np.repeat(np.arange(len(self)), self.lengths)[is_meant]] = True
        return rows


def offsets_of(lengths: Any) -> Int64Array:
    """int64 [n + 1]: where rows of these lengths begin and end."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def concat_multi(parts: Sequence[MultiVectors]) -> MultiVectors:
    """Concatenate vectors of the same dimensions, at least one part; a single part is returned as it is."""
    parts = [part for part in parts if len(part)] or list(parts[:1])
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([part.lengths for part in parts])
    return MultiVectors(offsets_of(lengths), np.concatenate([part.values for part in parts]))


def replace_rows(vectors: MultiVectors, is_replaced: BoolArray, by: MultiVectors) -> MultiVectors:
    """Vectors with other ones for some rows.

    Args:
        vectors: Of n rows.
        is_replaced: bool [n].
        by: The vectors of the rows where `is_replaced` is true, in their order.
    """
    positions = np.arange(len(vectors))
    positions[is_replaced] = len(vectors) + np.arange(len(by))
    return concat_multi([vectors, by])[positions]
