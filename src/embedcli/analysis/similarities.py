"""Similarities between vectors of one kind: of queries with the rows of a block, and of rows with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embedcli.analysis.inspect_output import compute_vector_norms
from embedcli.core.errors import UsageError
from embedcli.core.sparse_vectors import SparseVectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import Float32Array, VectorKind
    from embedcli.outputs.dataset import VectorDataset

Metric = Literal["cosine", "dot"]


def choose_metric(kind: VectorKind) -> Metric:
    """The usual similarity: sparse encoders are trained for the dot product, most dense ones for the cosine."""
    return "cosine" if kind == "dense" else "dot"


def check_same_kind(first: VectorDataset, second: VectorDataset) -> None:
    """Raise UsageError if one output has sparse vectors and the other dense ones."""
    if first.kind != second.kind:
        raise UsageError(
            f"{first.path} has {first.kind} vectors, {second.path} {second.kind} ones: "
            "their neighbours are found by different measures",
            "compare outputs of the same kind",
        )


def score_rows(queries: RowVectors, rows: RowVectors, metric: Metric, *, are_unit_rows: bool = False) -> Float32Array:
    """Compute the similarity of each query with each row.

    Args:
        queries: Vectors of queries; of length 1 for the cosine.
        rows: Vectors of rows, of the same kind and dimensions.
        metric: Cosine or dot product.
        are_unit_rows: Whether the vectors of rows are known to have length 1.

    Returns:
        float32 [queries, rows].
    """
    scores = dot_products(queries, rows)
    if metric == "cosine" and not are_unit_rows:
        lengths = compute_vector_norms(rows)
        return np.asarray(scores / np.where(lengths > 0, lengths, 1), np.float32)
    return scores


def dot_products(queries: RowVectors, rows: RowVectors) -> Float32Array:
    """Compute the dot product of each query with each row: float32 [queries, rows]."""
    if isinstance(queries, SparseVectors) and isinstance(rows, SparseVectors):
        products = to_scipy(rows) @ to_scipy(queries).T
        return np.asarray(products.toarray().T, np.float32)
    if isinstance(queries, SparseVectors) or isinstance(rows, SparseVectors):
        raise TypeError("one side has sparse vectors, the other dense ones")
    return queries @ rows.T


def row_cosines(first: RowVectors, second: RowVectors) -> NDArray[Any]:
    """Compute the cosine of each row of `first` with the same row of `second`: [n]; 0 if a row is all zeros."""
    if isinstance(first, SparseVectors) and isinstance(second, SparseVectors):
        products = np.asarray(to_scipy(first).multiply(to_scipy(second)).sum(axis=1), np.float64).reshape(-1)
        lengths = compute_vector_norms(first).astype(np.float64) * compute_vector_norms(second)
        return np.asarray(products / np.where(lengths > 0, lengths, 1))
    return np.asarray(np.einsum("ij,ij->i", normalize(first), normalize(second)))


def normalize(vectors: RowVectors) -> Any:
    """Scale vectors to length 1; zero vectors stay zero. Returns vectors of the same kind, in float32."""
    lengths = compute_vector_norms(vectors)
    divisors = np.where(lengths > 0, lengths, 1)
    if isinstance(vectors, SparseVectors):
        values = vectors.values / np.repeat(divisors, vectors.lengths)
        return SparseVectors(vectors.offsets, vectors.indices, values.astype(np.float32), vectors.dim)
    return np.asarray(vectors / divisors[:, None], np.float32)


def to_scipy(vectors: SparseVectors) -> Any:
    """The vectors as a `scipy.sparse.csr_array` [n, dim], which shares their memory."""
    from scipy.sparse import csr_array

    return csr_array((vectors.values, vectors.indices, vectors.offsets), shape=vectors.shape)
