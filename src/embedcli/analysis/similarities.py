"""Similarities between vectors of one kind: of queries with the rows of a block, and of rows with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embedcli.analysis.inspect_output import compute_vector_norms
from embedcli.core.errors import UsageError
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import concat_ranges
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.core.types import KIND_ADJECTIVES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import Float32Array, VectorKind
    from embedcli.outputs.dataset import VectorDataset

Metric = Literal["cosine", "dot", "maxsim"]
# The usual similarity: sparse encoders are trained for the dot product, most dense ones for the cosine, and models with
# a vector for each token for MaxSim.
USUAL_METRICS: dict[VectorKind, Metric] = {"dense": "cosine", "sparse": "dot", "multi_vector": "maxsim"}
# Products of vectors that `maxsim` holds at a time: 16 MB, a few times the processor's cache.
MAX_PRODUCTS = 4 << 20


def choose_metric(output: VectorDataset, asked: Metric | None = None) -> Metric:
    """Return the metric that was asked for, else the usual one. Raises UsageError if it does not fit the vectors."""
    if asked is None:
        return USUAL_METRICS[output.kind]
    if (asked == "maxsim") != (output.kind == "multi_vector"):
        given, needed = ("each token", "each row") if output.kind == "multi_vector" else ("each row", "each token")
        raise UsageError(
            f"--metric {asked} needs a vector for {needed}, and {output.path} has one for {given}",
            "leave --metric out: the usual metric of the vectors is used",
        )
    return asked


def check_same_kind(first: VectorDataset, second: VectorDataset) -> None:
    """Raise UsageError unless both outputs have vectors of the same kind."""
    if first.kind != second.kind:
        raise UsageError(
            f"{first.path} has {KIND_ADJECTIVES[first.kind]} vectors, {second.path} {KIND_ADJECTIVES[second.kind]} "
            "ones: "
            "their neighbours are found by different measures",
            "compare outputs of the same kind",
        )


def score_rows(queries: RowVectors, rows: RowVectors, metric: Metric, *, are_unit_rows: bool = False) -> Float32Array:
    """Compute the similarity of each query with each row.

    Args:
        queries: Vectors of queries; of length 1 for the cosine.
        rows: Vectors of rows, of the same kind and dimensions.
        metric: Cosine, dot product, or MaxSim for vectors of tokens.
        are_unit_rows: Whether the vectors of rows are known to have length 1.

    Returns:
        float32 [queries, rows]; NaN for a row without vectors, and for a sparse one that shares no term with the query.
    """
    scores = dot_products(queries, rows)
    if metric == "cosine" and not are_unit_rows:
        lengths = compute_vector_norms(rows)
        return np.asarray(scores / np.where(lengths > 0, lengths, 1), np.float32)
    return scores


def dot_products(queries: RowVectors, rows: RowVectors) -> Float32Array:
    """Compute the dot product of each query with each row, or the MaxSim of their tokens: float32 [queries, rows]."""
    if isinstance(queries, SparseVectors) and isinstance(rows, SparseVectors):
        return sparse_dot_products(queries, rows)
    if isinstance(queries, MultiVectors) and isinstance(rows, MultiVectors):
        return maxsim(queries, rows)
    if isinstance(queries, np.ndarray) and isinstance(rows, np.ndarray):
        return np.asarray(queries @ rows.T)
    raise TypeError("the vectors of both sides differ in kind")


def maxsim(queries: MultiVectors, rows: MultiVectors) -> Float32Array:
    """Compute MaxSim (Khattab and Zaharia, "ColBERT", SIGIR 2020) of each query with each row.

    For each vector of the query the largest dot product with a vector of the row, summed over the query. It is that
    of `MultiVectorEncoder.similarity`, except that a row without vectors scores NaN.

    Returns:
        float32 [queries, rows].
    """
    has_vectors = rows.lengths > 0
    starts, owners = rows.offsets[:-1][has_vectors], queries.entry_rows
    scores = np.full((len(queries), len(rows)), np.nan, np.float32)
    sums = np.zeros((len(queries), len(starts)), np.float32)
    step = max(1, MAX_PRODUCTS // max(1, len(rows.values)))
    for start in range(0, len(owners) if len(starts) else 0, step):
        products = queries.values[start : start + step] @ rows.values.T
        best = np.maximum.reduceat(products, starts, axis=1)
        first_of_query = np.flatnonzero(np.diff(owners[start : start + step], prepend=-1))
        sums[owners[start + first_of_query]] += np.add.reduceat(best, first_of_query, axis=0)
    scores[:, has_vectors] = sums
    return scores


def row_cosines(first: RowVectors, second: RowVectors) -> NDArray[Any]:
    """Compute the cosine of each row of `first` with the same row of `second`: [n]; 0 if a row is all zeros.

    Of vectors of tokens, the mean over those of `first` of the largest cosine with one of `second`.
    """
    if isinstance(first, SparseVectors) and isinstance(second, SparseVectors):
        products = sparse_row_products(first, second)
        lengths = compute_vector_norms(first).astype(np.float64) * compute_vector_norms(second)
        return np.asarray(products / np.where(lengths > 0, lengths, 1))
    if isinstance(first, MultiVectors) and isinstance(second, MultiVectors):
        return mean_largest_cosines(normalize(first), normalize(second))
    return np.asarray(np.einsum("ij,ij->i", normalize(first), normalize(second)))


def mean_largest_cosines(first: MultiVectors, second: MultiVectors) -> NDArray[Any]:
    """Compute for each row the mean over its unit vectors in `first` of the largest cosine with one in `second`."""
    starts = zip(*(part for side in (first, second) for part in (side.offsets[:-1], side.offsets[1:])), strict=True)
    means = [
        float((first.values[start:stop] @ second.values[other_start:other_stop].T).max(axis=1).mean())
        for start, stop, other_start, other_stop in starts
    ]
    return np.array(means, np.float32)


def normalize(vectors: RowVectors) -> Any:
    """Scale vectors to length 1; zero vectors stay zero. Returns vectors of the same kind, in float32."""
    lengths = compute_vector_norms(vectors)
    divisors = np.where(lengths > 0, lengths, 1)
    if isinstance(vectors, SparseVectors):
        values = vectors.values / np.repeat(divisors, vectors.lengths)
        return SparseVectors(vectors.offsets, vectors.indices, values.astype(np.float32), vectors.dim)
    if isinstance(vectors, MultiVectors):
        return MultiVectors(vectors.offsets, np.asarray(vectors.values / divisors[:, None], np.float32))
    return np.asarray(vectors / divisors[:, None], np.float32)


def sparse_dot_products(queries: SparseVectors, rows: SparseVectors) -> Float32Array:
    """Compute the dot product of each query with each row through the rows that have each term of a query.

    A row that shares no term with a query does not match it, as in the inverted indexes of search engines.

    Returns:
        float32 [queries, rows], summed in float64; NaN for a row that shares no term with the query.
    """
    is_used = np.zeros(rows.dim, bool)
    is_used[queries.indices] = True
    entries = np.flatnonzero(is_used[rows.indices])
    entries = entries[np.argsort(rows.indices[entries], kind="stable")]
    terms, weights, owners = rows.indices[entries], rows.values[entries], rows.entry_rows[entries]
    starts = np.searchsorted(terms, queries.indices, side="left")
    counts = np.searchsorted(terms, queries.indices, side="right") - starts
    scores = np.full((len(queries), len(rows)), np.nan, np.float32)
    for query in range(len(queries)):
        own = slice(queries.offsets[query], queries.offsets[query + 1])
        found = concat_ranges(starts[own], counts[own])
        products = weights[found] * np.repeat(queries.values[own], counts[own])
        sums = np.bincount(owners[found], products, minlength=len(rows))
        matches = np.zeros(len(rows), bool)
        matches[owners[found]] = True
        scores[query, matches] = sums[matches]
    return scores


def sparse_row_products(first: SparseVectors, second: SparseVectors) -> NDArray[np.float64]:
    """Compute the dot product of each row of `first` with the same row of `second`: float64 [n]."""
    keys, wanted = (side.entry_rows * side.dim + side.indices for side in (first, second))
    order = np.argsort(keys, kind="stable")
    at = np.minimum(np.searchsorted(keys[order], wanted), max(0, len(keys) - 1))
    is_shared = keys[order][at] == wanted if len(keys) else np.zeros(len(wanted), bool)
    products = first.values[order[at[is_shared]]].astype(np.float64) * second.values[is_shared]
    return np.asarray(np.bincount(second.entry_rows[is_shared], products, minlength=len(second)), np.float64)
