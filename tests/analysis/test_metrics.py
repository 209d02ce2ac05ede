"""Evaluation metrics: equal to scipy, to scikit-learn and to values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import cluster, datasets, metrics

from embedcli.analysis.metrics import (
    average_precision,
    k_means,
    ndcg,
    pearson,
    recall,
    spearman,
    v_measure,
)

SERIES = st.lists(
    st.tuples(st.integers(-5, 5), st.floats(-100, 100).map(lambda x: round(x, 3))), min_size=3, max_size=60
)


@given(SERIES)
def test_correlations_equal_those_of_scipy(pairs: list[tuple[int, float]]) -> None:
    one, two = zip(*pairs, strict=True)
    assume(len(set(one)) > 1)
    assume(np.std(two) > 1e-3)
    assert spearman(one, two) == pytest.approx(pearson(scipy.stats.rankdata(one), scipy.stats.rankdata(two)), abs=1e-9)
    assert pearson(one, two) == pytest.approx(scipy.stats.pearsonr(one, two).statistic, abs=1e-9)
    assert spearman(one, two) == pytest.approx(scipy.stats.spearmanr(one, two).statistic, abs=1e-9)


def test_correlations_by_hand() -> None:
    # ranks of 10, 20, 20, 30 are 1, 2.5, 2.5, 4; of 1, 2, 3, 4 they are themselves
    assert spearman([10, 20, 20, 30], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert pearson([1, 2, 3], [2, 4, 7]) == pytest.approx(5 / math.sqrt(2 * 38 / 3))
    assert math.isnan(pearson([0.1] * 3, [1, 2, 3]))
    assert math.isnan(spearman([1, 1], [1, 2]))
    assert math.isnan(pearson([1, math.nan, 3], [1, 2, 3]))
    assert math.isnan(spearman([1, math.nan, 3], [1, 2, 3]))


def test_retrieval_by_hand() -> None:
    retrieved, relevance = ["a", "x", "b", "y"], {"a": 1.0, "b": 3.0, "c": 2.0, "z": 0.0}
    # gains 1, 0, 3 at ranks 1, 2, 3; the best order is 3, 2, 1
    expected = (1 / math.log2(2) + 3 / math.log2(4)) / (3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4))
    assert ndcg(retrieved, relevance, 10) == pytest.approx(expected)
    assert ndcg(retrieved, relevance, 1) == pytest.approx(1 / 3)
    assert recall(retrieved, relevance, 1) == pytest.approx(1 / 3)
    assert recall(retrieved, relevance, 10) == pytest.approx(2 / 3)
    assert average_precision(retrieved, relevance) == pytest.approx((1 / 1 + 2 / 3) / 3)
    assert [ndcg([], {}, 5), recall([], {}, 5), average_precision(["a"], {})] == [0, 0, 0]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(1, 12), st.integers(0, 99))
def test_retrieval_metrics_equal_those_of_scikit_learn(gains: list[int], k: int, seed: int) -> None:
    assume(any(gains))
    scores = np.random.default_rng(seed).permutation(len(gains))
    retrieved = np.argsort(-scores).tolist()
    relevance: dict[Any, float] = dict(enumerate(map(float, gains)))
    assert ndcg(retrieved, relevance, k) == pytest.approx(metrics.ndcg_score([gains], [scores], k=k))
    binary = [int(gain > 0) for gain in gains]
    assert average_precision(retrieved, relevance) == pytest.approx(metrics.average_precision_score(binary, scores))


LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=60)


@given(LABELS)
def test_v_measure_equals_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    labels, clusters = zip(*pairs, strict=True)
    assert v_measure(labels, clusters) == pytest.approx(metrics.v_measure_score(labels, clusters), abs=1e-9)


def test_v_measure_by_hand() -> None:
    assert v_measure(["a", "a", "b", "b"], [1, 1, 0, 0]) == 1
    assert v_measure(["a", "a", "b", "b"], [0, 1, 0, 1]) == 0
    # every row alone: homogeneous, and complete by H(labels) / H(clusters) = 1 / 2
    assert v_measure(["a", "a", "b", "b"], [0, 1, 2, 3]) == pytest.approx(2 * 0.5 / 1.5)


def test_k_means_finds_the_clusters_that_scikit_learn_finds() -> None:
    vectors, labels = datasets.make_blobs(400, 6, centers=5, cluster_std=0.6, random_state=1)
    clusters = k_means(vectors.astype(np.float32), 5)
    expected = cluster.KMeans(5, n_init=10, random_state=0).fit(vectors).labels_
    assert v_measure(labels, clusters) == pytest.approx(1)
    assert metrics.adjusted_rand_score(expected, clusters) == pytest.approx(1)
    assert np.array_equal(clusters, k_means(vectors.astype(np.float32), 5))


def test_k_means_with_fewer_points_than_clusters_and_equal_points() -> None:
    assert len(set(k_means(np.eye(3, dtype=np.float32), 3).tolist())) == 3
    assert set(k_means(np.ones((4, 2), np.float32), 2).tolist()) <= {0, 1}
