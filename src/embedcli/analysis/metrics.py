"""Evaluation metrics on numbers: correlations, nDCG, recall, average precision, k-means, v-measure."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.errors import UsageError
from embedcli.models.refusals import is_installed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Float32Array

KMEANS_INITIALIZATIONS = 10


# Pairs


def pearson(first: Any, second: Any) -> float:
    """Compute the linear correlation of two series; NaN if one of them is constant or has a NaN."""
    one, two = _centred(first), _centred(second)
    lengths = float(np.linalg.norm(one) * np.linalg.norm(two))
    return min(1.0, max(-1.0, float(one @ two) / lengths)) if lengths > 0 else math.nan


def spearman(first: Any, second: Any) -> float:
    """Compute the rank correlation of two series; equal values share their mean rank. NaN as for `pearson`."""
    return pearson(_mean_ranks(first), _mean_ranks(second))


def _centred(series: Any) -> NDArray[np.float64]:
    """Return a series around its mean; exactly 0 where it is constant, which a rounded mean would not give."""
    values = np.asarray(series, np.float64)
    return values * 0 if (values == values[:1]).all() else values - values.mean()


def _mean_ranks(series: Any) -> NDArray[np.float64]:
    """Return the rank of each value from 1, the mean rank where values are equal; NaN everywhere if one is NaN."""
    values = np.asarray(series, np.float64)
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    _, positions, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_ranks = np.cumsum(counts)
    return np.asarray((last_ranks - (counts - 1) / 2)[positions], np.float64)


# Retrieval. Each function takes the retrieved rows of one query, best first, and the relevance of rows (absent: 0).
# scikit-learn's ndcg_score and average_precision_score need a score for every row; here a relevant row that was not
# retrieved counts as 0 (trec_eval).


def ndcg(retrieved: Sequence[Any], relevance: Mapping[Any, float], k: int) -> float:
    """Compute the normalized discounted cumulative gain of the first `k` rows, as trec_eval's ndcg_cut.

    The gain of a row is its relevance, the discount log2(rank + 1).

    Returns:
        A value from 0 to 1; 0 if no row is relevant.
    """
    gains = [max(relevance.get(row, 0.0), 0.0) for row in retrieved[:k]]
    ideal_gains = sorted((gain for gain in relevance.values() if gain > 0), reverse=True)[:k]
    ideal = discounted_gain(ideal_gains)
    return discounted_gain(gains) / ideal if ideal else 0.0


def discounted_gain(gains: Sequence[float]) -> float:
    return float(np.sum(np.asarray(gains, np.float64) / np.log2(np.arange(2, len(gains) + 2))))


def recall(retrieved: Sequence[Any], relevance: Mapping[Any, float], k: int) -> float:
    """Compute the fraction of relevant rows among the first `k` retrieved; 0 if no row is relevant."""
    relevant = {row for row, gain in relevance.items() if gain > 0}
    return len(relevant & set(retrieved[:k])) / len(relevant) if relevant else 0.0


def average_precision(retrieved: Sequence[Any], relevance: Mapping[Any, float]) -> float:
    """Average the precision at the rank of each relevant row; relevant rows that were not retrieved count as 0."""
    relevant = {row for row, gain in relevance.items() if gain > 0}
    hits, total = 0, 0.0
    for rank, row in enumerate(retrieved, 1):
        if row in relevant:
            hits += 1
            total += hits / rank
    return total / len(relevant) if relevant else 0.0


# Clusters


def require_scikit_learn() -> None:
    """Raise UsageError if scikit-learn, which finds and measures clusters, is not installed."""
    if not is_installed("sklearn"):
        raise UsageError("--label needs scikit-learn, not installed here", "pip install scikit-learn")


def v_measure(labels: Sequence[Any], clusters: Any) -> float:
    """Compute the harmonic mean of homogeneity and completeness (Rosenberg and Hirschberg, 2007)."""
    from sklearn.metrics import v_measure_score

    with warnings.catch_warnings():
        # Many labels with few rows each are unusual for a classifier, not for clusters.
        warnings.simplefilter("ignore", UserWarning)
        return float(v_measure_score([str(label) for label in labels], clusters))


def k_means(vectors: Float32Array, k: int, seed: int = 0) -> NDArray[np.int64]:
    """Cluster vectors by k-means, the best of several initializations.

    Args:
        vectors: Array [n, dim] with at least `k` rows.
        k: Number of clusters; fewer are used if there are fewer distinct vectors.
        seed: Seed of the initializations: the same seed gives the same clusters.

    Returns:
        The cluster index of each vector [n].
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than clusters
        clusters = KMeans(k, n_init=KMEANS_INITIALIZATIONS, random_state=seed).fit(vectors).labels_
    return np.asarray(clusters, np.int64)
