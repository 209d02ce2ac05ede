"""How good vectors are, in the measures benchmark tables use. Pure arithmetic on numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Float32Array

    Numbers = NDArray[np.float64]

KMEANS_MAX_ITERATIONS = 300
KMEANS_INITIALIZATIONS = 10


# Pairs


def pearson(one: Any, two: Any) -> float:
    """Linear correlation of two series; NaN if one of them is constant."""
    a, b = np.asarray(one, np.float64), np.asarray(two, np.float64)
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length else float("nan")


def spearman(one: Any, two: Any) -> float:
    """Linear correlation of the ranks; equal values share the mean of their ranks."""
    return pearson(average_ranks(one), average_ranks(two))


def average_ranks(values: Any) -> Numbers:
    """float64 [n]: ranks from 1, equal values sharing their mean."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], np.float64)


# Retrieval: the rows found for a query, best first, and the relevance of the ones that count (0 or absent: none)


def ndcg(found: Sequence[Any], relevance: Mapping[Any, float], k: int) -> float:
    """Discounted gain of the first `k`, over that of the best order: gain = relevance, discount = log2(rank + 1).

    As trec_eval defines it (ndcg_cut).
    """
    gains = [relevance.get(row, 0.0) for row in found[:k]]
    best = sorted((gain for gain in relevance.values() if gain > 0), reverse=True)[:k]
    ideal = discounted_gain(best)
    return discounted_gain([max(gain, 0.0) for gain in gains]) / ideal if ideal else 0.0


def discounted_gain(gains: Sequence[float]) -> float:
    return float(np.sum(np.asarray(gains, np.float64) / np.log2(np.arange(2, len(gains) + 2))))


def recall(found: Sequence[Any], relevance: Mapping[Any, float], k: int) -> float:
    """The share of the relevant rows among the first `k`."""
    relevant = {row for row, gain in relevance.items() if gain > 0}
    return len(relevant & set(found[:k])) / len(relevant) if relevant else 0.0


def average_precision(found: Sequence[Any], relevance: Mapping[Any, float]) -> float:
    """Mean over the relevant rows of the precision at their rank; those not found count as 0."""
    relevant = {row for row, gain in relevance.items() if gain > 0}
    hits, total = 0, 0.0
    for rank, row in enumerate(found, 1):
        if row in relevant:
            hits += 1
            total += hits / rank
    return total / len(relevant) if relevant else 0.0


# Clusters


def v_measure(labels: Sequence[Any], clusters: Any) -> float:
    """Harmonic mean of homogeneity and completeness (Rosenberg and Hirschberg, 2007)."""
    _, one = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    _, two = np.unique(np.asarray(clusters), return_inverse=True)
    table = np.zeros((one.max(initial=-1) + 1, two.max(initial=-1) + 1))
    np.add.at(table, (one, two), 1)
    ours, theirs, both = entropy(table.sum(axis=1)), entropy(table.sum(axis=0)), entropy(table.ravel())
    shared = ours + theirs - both
    homogeneity = shared / ours if ours else 1.0
    completeness = shared / theirs if theirs else 1.0
    whole = homogeneity + completeness
    return float(2 * homogeneity * completeness / whole) if whole > 0 else 0.0


def entropy(counts: Any) -> float:
    """In nats, of a distribution given by counts."""
    shares = counts[counts > 0] / max(1, counts.sum())
    return float(-(shares * np.log(shares)).sum())


def k_means(vectors: Float32Array, k: int, seed: int = 0, starts: int = KMEANS_INITIALIZATIONS) -> NDArray[np.int64]:
    """int64 [n]: a cluster for each vector; the tightest of several runs of Lloyd's algorithm from k-means++ starts."""
    random = np.random.default_rng(seed)
    runs = [_lloyd(vectors, _spread_centers(vectors, k, random)) for _ in range(starts)]
    return min(runs, key=lambda run: run[1])[0]


def _spread_centers(vectors: Float32Array, k: int, random: np.random.Generator) -> Float32Array:
    """k-means++ (Arthur and Vassilvitskii, 2007): each next center far from those there are."""
    centers = [vectors[int(random.integers(len(vectors)))]]
    near = _distances(vectors, centers[0][None])[:, 0]
    while len(centers) < k:
        total = float(near.sum())
        chance = near / total if total > 0 else None
        centers.append(vectors[int(random.choice(len(vectors), p=chance))])
        near = np.minimum(near, _distances(vectors, centers[-1][None])[:, 0])
    return np.stack(centers)


def _lloyd(vectors: Float32Array, centers: Float32Array) -> tuple[NDArray[np.int64], float]:
    clusters = np.full(len(vectors), -1)
    distances = np.zeros(0)
    for _ in range(KMEANS_MAX_ITERATIONS):
        every = _distances(vectors, centers)
        closest, distances = every.argmin(axis=1), every.min(axis=1)
        if np.array_equal(closest, clusters):
            break
        clusters = closest
        for i in range(len(centers)):
            mine = vectors[clusters == i]
            # An empty cluster moves to the vector that lies worst.
            centers[i] = mine.mean(axis=0) if len(mine) else vectors[int(distances.argmax())]
    return clusters, float(distances.sum())


def _distances(vectors: Float32Array, centers: Float32Array) -> Numbers:
    """float64 [n, k]: squared distances."""
    squares = (vectors**2).sum(axis=1)[:, None] - 2.0 * (vectors @ centers.T) + (centers**2).sum(axis=1)
    return np.asarray(np.maximum(squares, 0), np.float64)
