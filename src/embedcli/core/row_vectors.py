"""Vectors of rows, dense, sparse, one for each token, or several of these: collecting and joining them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from embedcli.core import multi_vectors
from embedcli.core.head_vectors import HeadVectors, heads_of, split_heads
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.core.sparse_vectors import SparseVectors, concat_sparse, empty_sparse, keep_largest, sparsify

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray, Float32Array, Int64Array, VectorKind

    # What an encoder returns for a batch, and what is stored of a row.
    EncodedVectors: TypeAlias = Float32Array | SparseVectors | MultiVectors | HeadVectors
    RowVectors: TypeAlias = Float32Array | SparseVectors | MultiVectors | HeadVectors
    # What has one vector for each row.
    SingleVectors: TypeAlias = Float32Array | SparseVectors


class VectorBuffer(ABC):
    """The vectors of n sequences, filled batch by batch."""

    @abstractmethod
    def put(self, rows: Int64Array, vectors: EncodedVectors) -> None:
        """Store the vectors of a batch, as the encoder returned them, for the sequences `rows`."""

    @abstractmethod
    def finish(self) -> RowVectors:
        """The vectors of all sequences; those that were never stored are zero, or have no vectors."""


class DenseBuffer(VectorBuffer):
    """Dense vectors: float32 [n, dim]."""

    def __init__(self, count: int, dim: int) -> None:
        self._vectors = np.zeros((count, dim), np.float32)

    def put(self, rows: Int64Array, vectors: EncodedVectors) -> None:
        self._vectors[rows] = _require_dense(vectors)

    def finish(self) -> Float32Array:
        return self._vectors


class SparseBuffer(VectorBuffer):
    """Sparse vectors, of which only the largest entries are kept; see `sparsify`."""

    def __init__(self, count: int, dim: int, top_k: int | None, min_weight: float | None) -> None:
        self._count, self._dim = count, dim
        self._top_k, self._min_weight = top_k, min_weight
        self._rows: list[Int64Array] = []
        self._parts: list[SparseVectors] = []

    def put(self, rows: Int64Array, vectors: EncodedVectors) -> None:
        self._rows.append(rows)
        if isinstance(vectors, SparseVectors):
            self._parts.append(keep_largest(vectors, self._top_k, self._min_weight))
        else:
            self._parts.append(sparsify(_require_dense(vectors), self._top_k, self._min_weight))

    def finish(self) -> SparseVectors:
        stored = concat_sparse([*self._parts, empty_sparse(self._dim, rows=1)])
        # Sequences without a vector take the empty row at the end.
        positions = np.full(self._count, len(stored) - 1)
        if self._rows:
            rows = np.concatenate(self._rows)
            positions[rows] = np.arange(len(rows))
        return stored[positions]


class MultiVectorBuffer(VectorBuffer):
    """Vectors of tokens, each batch of which is released once it is copied to its place."""

    def __init__(self, count: int, dim: int) -> None:
        self._lengths = np.zeros(count, np.int64)
        self._dim = dim
        self._batches: list[tuple[Int64Array, MultiVectors]] = []

    def put(self, rows: Int64Array, vectors: EncodedVectors) -> None:
        if not isinstance(vectors, MultiVectors):
            raise TypeError("one vector per row where each token has one")
        self._lengths[rows] = vectors.lengths
        self._batches.append((rows, vectors))

    def finish(self) -> MultiVectors:
        offsets = offsets_of(self._lengths)
        values = np.empty((int(offsets[-1]), self._dim), np.float32)
        while self._batches:
            rows, vectors = self._batches.pop()
            for i, row in enumerate(rows.tolist()):
                source = vectors.values[vectors.offsets[i] : vectors.offsets[i + 1]]
                values[offsets[row] : offsets[row + 1]] = source
        return MultiVectors(offsets, values)


class HeadsBuffer(VectorBuffer):
    """The vectors of several heads, each in a buffer of its own."""

    def __init__(self, buffers: Mapping[VectorKind, VectorBuffer]) -> None:
        self._buffers = buffers

    def put(self, rows: Int64Array, vectors: EncodedVectors) -> None:
        if not isinstance(vectors, HeadVectors):
            raise TypeError("vectors of one kind where a model has several heads")
        for head, buffer in self._buffers.items():
            buffer.put(rows, vectors.parts[head])

    def finish(self) -> HeadVectors:
        return HeadVectors({head: require_one_head(buffer.finish()) for head, buffer in self._buffers.items()})


def concat_encoded(parts: Sequence[EncodedVectors]) -> EncodedVectors:
    """Concatenate what an encoder returned for several batches, at least one."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate([_require_dense(part) for part in parts])
    return concat_vectors(parts)


def concat_vectors(parts: Sequence[RowVectors]) -> RowVectors:
    """Concatenate vectors of one kind, at least one part; dense parts without rows do not count among others."""
    sparse = [part for part in parts if isinstance(part, SparseVectors)]
    multi = [part for part in parts if isinstance(part, MultiVectors)]
    several = [part for part in parts if isinstance(part, HeadVectors)]
    if several:
        joined = {head: concat_vectors([part.parts[head] for part in several]) for head in heads_of(several)}
        return HeadVectors({head: require_one_head(vectors) for head, vectors in joined.items()})
    if multi:
        return multi_vectors.concat_multi(multi)
    return concat_sparse(sparse) if sparse else np.concatenate([part for part in parts if isinstance(part, np.ndarray)])


def replace_vectors(vectors: EncodedVectors, is_replaced: BoolArray, by: EncodedVectors) -> EncodedVectors:
    """Vectors of one kind with other ones for some rows.

    Args:
        vectors: Of n rows.
        is_replaced: bool [n].
        by: The vectors of the rows where `is_replaced` is true, in their order.
    """
    positions = np.arange(len(vectors))
    positions[is_replaced] = len(vectors) + np.arange(len(by))
    return concat_encoded([vectors, by])[positions]


def require_one_head(vectors: RowVectors) -> Float32Array | SparseVectors | MultiVectors:
    """The same vectors. Raises TypeError if they are those of several heads."""
    if isinstance(vectors, HeadVectors):
        raise TypeError("rows have the vectors of several heads, and those of one are needed")
    return vectors


def kind_of(vectors: RowVectors) -> VectorKind:
    """The kind of vectors. Raises TypeError for those of several heads."""
    vectors = require_one_head(vectors)
    if isinstance(vectors, MultiVectors):
        return "multi_vector"
    return "sparse" if isinstance(vectors, SparseVectors) else "dense"


def require_single(vectors: RowVectors) -> SingleVectors:
    """The same vectors. Raises TypeError if rows have a vector for each token, or those of several heads."""
    vectors = require_one_head(vectors)
    if isinstance(vectors, MultiVectors):
        raise TypeError("rows have several vectors, and one is needed")
    return vectors


def find_token_vectors(vectors: RowVectors) -> MultiVectors | None:
    """The vectors of tokens, of one of several heads if there are more; None if there are none."""
    return next((part for part in split_heads(vectors) if isinstance(part, MultiVectors)), None)


def as_dense(vectors: RowVectors) -> Float32Array:
    """float32 [n, dim]; the vectors of tokens one after the other: float32 [tokens, dim]."""
    vectors = require_one_head(vectors)
    if isinstance(vectors, MultiVectors):
        return vectors.values
    return vectors.to_dense() if isinstance(vectors, SparseVectors) else vectors


def _require_dense(vectors: EncodedVectors) -> Float32Array:
    if not isinstance(vectors, np.ndarray):
        raise TypeError("sparse vectors or those of tokens where a row has a dense one")
    return vectors
