"""Exact top-k search equals scoring and sorting all rows, for every block size, precision and tie."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.analysis.similarities import normalize
from embedcli.analysis.topk import TopK, search_vectors
from embedcli.core import quantization as core_quantization
from embedcli.core.types import Precision
from embedcli.outputs import dataset
from embedcli.outputs.dataset import open_dataset
from sample_outputs import FORMATS, PRECISIONS, make_output, unit_vectors

SCORE = st.one_of(st.integers(-3, 3).map(float), st.just(float("nan")))


@given(st.lists(st.lists(SCORE, min_size=1, max_size=40), max_size=12), st.integers(1, 8))
def test_top_k_equals_a_stable_sort_of_all_scores(blocks: list[list[float]], k: int) -> None:
    best, start = TopK(1, k), 0
    for block in blocks:
        best.add(np.array([block], np.float32), start)
        start += len(block)
    scores = [score for block in blocks for score in block]
    expected = sorted((i for i, score in enumerate(scores) if not math.isnan(score)), key=lambda i: -scores[i])[:k]
    hits = best.to_hits()[0]
    assert hits.rows.tolist() == expected
    assert hits.scores.tolist() == [scores[i] for i in expected]


@pytest.mark.parametrize("stored_as", PRECISIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_search_equals_scoring_all_rows(
    tmp_path: Path, name: str, stored_as: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "BLOCK_BYTES", 4096)
    vectors = unit_vectors(700, 32)
    queries = unit_vectors(3, 32, seed=9) * 2
    output = open_dataset(str(make_output(tmp_path / name, vectors, stored_as=stored_as)))
    ranges = core_quantization.compute_ranges(vectors)
    restored = core_quantization.dequantize(
        core_quantization.quantize(vectors, stored_as, ranges), stored_as, 32, ranges
    )
    scores = normalize(queries) @ normalize(restored).T
    for hit, expected in zip(search_vectors(output, queries, 10), scores, strict=True):
        order = np.argsort(-expected, kind="stable")[:10]
        assert np.allclose(hit.scores, expected[order], atol=1e-6)
        assert hit.rows.tolist() == order.tolist()


@pytest.mark.parametrize("stored_as", ["binary", "ubinary"])
def test_bits_rank_as_sentence_transformers_rescores_them(tmp_path: Path, stored_as: Precision) -> None:
    """Its rescoring multiplies the float query by the unpacked bits; with all rows as candidates the order is equal."""
    from sentence_transformers.util import quantization

    vectors, queries = unit_vectors(300, 64), unit_vectors(4, 64, seed=5)
    output = open_dataset(str(make_output(tmp_path / "out.parquet", vectors, stored_as=stored_as)))
    packed = quantization.quantize_embeddings(vectors, "ubinary")
    bits = np.unpackbits(packed, axis=-1).astype(int)
    for query, hit in zip(queries, search_vectors(output, queries, 20), strict=True):
        rescored = bits @ query
        assert np.allclose(rescored[hit.rows], np.sort(rescored)[::-1][:20], atol=1e-5)


def test_cosine_and_dot_differ_where_lengths_do(tmp_path: Path) -> None:
    vectors = np.array([[1, 0], [3, 3], [0.1, 0]], np.float32)
    output = open_dataset(str(make_output(tmp_path / "out.parquet", vectors, space={"normalize": False})))
    query = np.array([[1, 0]], np.float32)
    assert search_vectors(output, query, 3)[0].rows.tolist() == [0, 2, 1]
    assert search_vectors(output, query, 3)[0].scores.tolist() == pytest.approx([1, 1, 0.5**0.5])
    assert search_vectors(output, query, 3, "dot")[0].rows.tolist() == [1, 0, 2]


def test_rows_of_zeros_and_nan_do_not_win(tmp_path: Path) -> None:
    vectors = np.array([[0, 0], [np.nan, 1], [-1, 0], [1, 0]], np.float32)
    output = open_dataset(str(make_output(tmp_path / "out.parquet", vectors, space={"normalize": False})))
    hits = search_vectors(output, np.array([[1, 0]], np.float32), 10)[0]
    assert hits.rows.tolist() == [3, 0, 2]
    assert hits.scores.tolist() == [1, 0, -1]
