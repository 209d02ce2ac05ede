"""Sparse vectors of rows: a weight for some of the words of a vocabulary, as SPLADE computes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.ragged import RaggedRows, offsets_of

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray, Float32Array, Int32Array


@dataclass(frozen=True)
class SparseVectors(RaggedRows):
    """Sparse vectors of n rows, one after the other (the CSR layout of scipy).

    Attributes:
        indices: int32 [entries]: the dimension of each entry, ascending within a row.
        values: float32 [entries]: its weight.
        dim: The number of dimensions: the size of the vocabulary.
        damage: Why rows of a file could not be read, by their number; they have no entries here.
    """

    indices: Int32Array
    values: Float32Array
    dim: int
    damage: Mapping[int, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and dimensions."""
        return len(self), self.dim

    def __getitem__(self, rows: Any) -> SparseVectors:
        """Take some rows, without their damage: by numbers int64 [k], a mask bool [n] or a slice."""
        offsets, entries = self.list_entries(np.arange(len(self))[rows])
        return SparseVectors(offsets, self.indices[entries], self.values[entries], self.dim)

    def to_dense(self) -> Float32Array:
        """float32 [n, dim]."""
        dense = np.zeros(self.shape, np.float32)
        dense[self.entry_rows, self.indices] = self.values
        return dense

    def find_unusable(self) -> BoolArray:
        """bool [n]: True for a row without entries, or with one that is not finite."""
        return np.asarray(self.find_rows_with(~np.isfinite(self.values)) | (self.lengths == 0))

    def find_larger(self, bound: float) -> BoolArray:
        """bool [n]: True for a row with an entry of at least this size."""
        return self.find_rows_with(np.abs(self.values) >= bound)


def sparsify(dense: Float32Array, top_k: int | None = None, min_weight: float | None = None) -> SparseVectors:
    """Keep the entries of vectors that are not zero.

    Args:
        dense: float32 [n, dim].
        top_k: Keep at most this many entries of a row, the largest; of equal ones those of lower dimensions.
        min_weight: Keep only entries of at least this size.
    """
    kept = dense != 0 if min_weight is None else (dense != 0) & ~(np.abs(dense) < min_weight)
    rows, indices = np.nonzero(kept)
    values = dense[rows, indices]
    if top_k is not None:
        order = np.lexsort((indices, -np.abs(values), rows))
        starts = offsets_of(np.bincount(rows, minlength=len(dense)))
        rank = np.arange(len(rows)) - starts[rows[order]]
        chosen = np.sort(order[rank < top_k])
        rows, indices, values = rows[chosen], indices[chosen], values[chosen]
    offsets = offsets_of(np.bincount(rows, minlength=len(dense)))
    return SparseVectors(offsets, indices.astype(np.int32), np.asarray(values, np.float32), dense.shape[1])


def empty_sparse(dim: int, rows: int = 0) -> SparseVectors:
    """Sparse vectors without entries."""
    return SparseVectors(np.zeros(rows + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), dim)


def concat_sparse(parts: Sequence[SparseVectors]) -> SparseVectors:
    """Concatenate sparse vectors of the same dimensions, at least one part."""
    starts = np.cumsum([0, *(len(part.indices) for part in parts)])
    first_rows = np.cumsum([0, *map(len, parts)]).tolist()
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
    return SparseVectors(
        np.concatenate([*offsets, starts[-1:]]).astype(np.int64),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.values for part in parts]),
        parts[0].dim,
        {first + row: why for first, part in zip(first_rows, parts, strict=False) for row, why in part.damage.items()},
    )
