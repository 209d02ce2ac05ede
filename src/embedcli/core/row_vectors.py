"""Vectors of rows, dense or sparse: collecting them batch by batch, and joining them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from embedcli.core.sparse_vectors import SparseVectors, concat_sparse, sparsify

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, Int64Array

    RowVectors: TypeAlias = Float32Array | SparseVectors


class VectorBuffer(ABC):
    """The vectors of n sequences, filled batch by batch."""

    @abstractmethod
    def put(self, rows: Int64Array, vectors: Float32Array) -> None:
        """Store the vectors of a batch: float32 [batch, dim], for the sequences `rows`."""

    @abstractmethod
    def finish(self) -> RowVectors:
        """The vectors of all sequences; those that were never stored are zero."""


class DenseBuffer(VectorBuffer):
    """Dense vectors: float32 [n, dim]."""

    def __init__(self, count: int, dim: int) -> None:
        self._vectors = np.zeros((count, dim), np.float32)

    def put(self, rows: Int64Array, vectors: Float32Array) -> None:
        self._vectors[rows] = vectors

    def finish(self) -> Float32Array:
        return self._vectors


class SparseBuffer(VectorBuffer):
    """Sparse vectors, of which only the largest entries are kept; see `sparsify`."""

    def __init__(self, count: int, dim: int, top_k: int | None, min_weight: float | None) -> None:
        self._count, self._dim = count, dim
        self._top_k, self._min_weight = top_k, min_weight
        self._rows: list[Int64Array] = []
        self._parts: list[SparseVectors] = []

    def put(self, rows: Int64Array, vectors: Float32Array) -> None:
        self._rows.append(rows)
        self._parts.append(sparsify(vectors, self._top_k, self._min_weight))

    def finish(self) -> SparseVectors:
        nothing = SparseVectors(np.zeros(2, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), self._dim)
        stored = concat_sparse([*self._parts, nothing])
        # Sequences without a vector take the empty row at the end.
        positions = np.full(self._count, len(stored) - 1)
        if self._rows:
            rows = np.concatenate(self._rows)
            positions[rows] = np.arange(len(rows))
        return stored[positions]


def concat_vectors(parts: Sequence[RowVectors]) -> RowVectors:
    """Concatenate vectors of one kind, at least one part; dense parts without rows do not count among sparse ones."""
    sparse = [part for part in parts if isinstance(part, SparseVectors)]
    return concat_sparse(sparse) if sparse else np.concatenate([part for part in parts if isinstance(part, np.ndarray)])


def as_dense(vectors: RowVectors) -> Float32Array:
    """float32 [n, dim]."""
    return vectors.to_dense() if isinstance(vectors, SparseVectors) else vectors
