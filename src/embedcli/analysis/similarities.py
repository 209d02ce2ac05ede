"""Similarities between vectors of one kind: of queries with the rows of a block, and of rows with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embedcli.analysis.inspect_output import compute_vector_norms
from embedcli.core.errors import UsageError
from embedcli.core.ragged import concat_ranges
from embedcli.core.sparse_vectors import SparseVectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.row_vectors import SingleVectors
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


def score_rows(
    queries: SingleVectors, rows: SingleVectors, metric: Metric, *, are_unit_rows: bool = False
) -> Float32Array:
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


def dot_products(queries: SingleVectors, rows: SingleVectors) -> Float32Array:
    """Compute the dot product of each query with each row: float32 [queries, rows]."""
    if isinstance(queries, SparseVectors) and isinstance(rows, SparseVectors):
        return sparse_dot_products(queries, rows)
    if isinstance(queries, SparseVectors) or isinstance(rows, SparseVectors):
        raise TypeError("one side has sparse vectors, the other dense ones")
    return queries @ rows.T


def row_cosines(first: SingleVectors, second: SingleVectors) -> NDArray[Any]:
    """Compute the cosine of each row of `first` with the same row of `second`: [n]; 0 if a row is all zeros."""
    if isinstance(first, SparseVectors) and isinstance(second, SparseVectors):
        products = sparse_row_products(first, second)
        lengths = compute_vector_norms(first).astype(np.float64) * compute_vector_norms(second)
        return np.asarray(products / np.where(lengths > 0, lengths, 1))
    return np.asarray(np.einsum("ij,ij->i", normalize(first), normalize(second)))


def normalize(vectors: SingleVectors) -> Any:
    """Scale vectors to length 1; zero vectors stay zero. Returns vectors of the same kind, in float32."""
    lengths = compute_vector_norms(vectors)
    divisors = np.where(lengths > 0, lengths, 1)
    if isinstance(vectors, SparseVectors):
        values = vectors.values / np.repeat(divisors, vectors.lengths)
        return SparseVectors(vectors.offsets, vectors.indices, values.astype(np.float32), vectors.dim)
    return np.asarray(vectors / divisors[:, None], np.float32)


def sparse_dot_products(queries: SparseVectors, rows: SparseVectors) -> Float32Array:
    """Compute the dot product of each query with each row through the rows that have each term of a query.

    Returns:
        float32 [queries, rows], summed in float64.
    """
    is_used = np.zeros(rows.dim, bool)
    is_used[queries.indices] = True
    entries = np.flatnonzero(is_used[rows.indices])
    entries = entries[np.argsort(rows.indices[entries], kind="stable")]
    terms, weights, owners = rows.indices[entries], rows.values[entries], rows.entry_rows[entries]
    starts = np.searchsorted(terms, queries.indices, side="left")
    counts = np.searchsorted(terms, queries.indices, side="right") - starts
    scores = np.empty((len(queries), len(rows)), np.float32)
    for query in range(len(queries)):
        own = slice(queries.offsets[query], queries.offsets[query + 1])
        found = concat_ranges(starts[own], counts[own])
        products = weights[found] * np.repeat(queries.values[own], counts[own])
        scores[query] = np.bincount(owners[found], products, minlength=len(rows))
    return scores


def sparse_row_products(first: SparseVectors, second: SparseVectors) -> NDArray[np.float64]:
    """Compute the dot product of each row of `first` with the same row of `second`: float64 [n]."""
    keys, wanted = (side.entry_rows * side.dim + side.indices for side in (first, second))
    order = np.argsort(keys, kind="stable")
    at = np.minimum(np.searchsorted(keys[order], wanted), max(0, len(keys) - 1))
    is_shared = keys[order][at] == wanted if len(keys) else np.zeros(len(wanted), bool)
    products = first.values[order[at[is_shared]]].astype(np.float64) * second.values[is_shared]
    return np.asarray(np.bincount(second.entry_rows[is_shared], products, minlength=len(second)), np.float64)
