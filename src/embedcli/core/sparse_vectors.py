"""Sparse vectors of rows: a weight for some of the words of a vocabulary, as SPLADE computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    indices: Int32Array
    values: Float32Array
    dim: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and dimensions."""
        return len(self), self.dim

    def __getitem__(self, rows: Any) -> SparseVectors:
        """Take some rows: by numbers int64 [k], a mask bool [n] or a slice."""
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
    rows, indices = np.nonzero(dense)
    values = np.asarray(dense[rows, indices], np.float32)
    offsets = offsets_of(np.bincount(rows, minlength=len(dense)))
    return keep_largest(SparseVectors(offsets, indices.astype(np.int32), values, dense.shape[1]), top_k, min_weight)


def keep_largest(vectors: SparseVectors, top_k: int | None = None, min_weight: float | None = None) -> SparseVectors:
    """Keep the largest entries of each row; the other arguments are those of `sparsify`."""
    if top_k is None and min_weight is None:
        return vectors
    is_kept = ~(np.abs(vectors.values) < (min_weight or 0))
    if top_k is not None:
        rows = vectors.entry_rows
        order = np.lexsort((vectors.indices, -np.abs(vectors.values), rows))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - vectors.offsets[rows]
        is_kept &= rank < top_k
    offsets = offsets_of(np.bincount(vectors.entry_rows[is_kept], minlength=len(vectors)))
    return SparseVectors(offsets, vectors.indices[is_kept], vectors.values[is_kept], vectors.dim)


def merge_repeated(vectors: SparseVectors) -> SparseVectors:
    """Sort the entries of each row by dimension; of several for one dimension the largest is kept.

    Args:
        vectors: With entries in any order, as for the tokens of a text. Weights of zero are dropped, NaN is kept.
    """
    order = np.lexsort((vectors.indices, vectors.entry_rows))
    rows, indices, values = vectors.entry_rows[order], vectors.indices[order], vectors.values[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (rows[1:] != rows[:-1]) | (indices[1:] != indices[:-1])
    # np.maximum gives NaN if either number is NaN, so that what could not be computed does not disappear.
    largest = np.maximum.reduceat(values, np.flatnonzero(is_first)) if len(values) else values
    is_kept = largest != 0
    rows, indices = rows[is_first][is_kept], indices[is_first][is_kept]
    return SparseVectors(offsets_of(np.bincount(rows, minlength=len(vectors))), indices, largest[is_kept], vectors.dim)


def empty_sparse(dim: int, rows: int = 0) -> SparseVectors:
    """Sparse vectors without entries."""
    return SparseVectors(np.zeros(rows + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), dim)


def concat_sparse(parts: Sequence[SparseVectors]) -> SparseVectors:
    """Concatenate sparse vectors of the same dimensions, at least one part."""
    starts = np.cumsum([0, *(len(part.indices) for part in parts)])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
    return SparseVectors(
        np.concatenate([*offsets, starts[-1:]]).astype(np.int64),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.values for part in parts]),
        parts[0].dim,
    )
