"""Sparse outputs are searched and compared as their dense equivalents would be by the dot product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from embedcli.analysis.compare import compare_outputs, measure_row_cosines, read_vectors
from embedcli.analysis.similarities import normalize, row_cosines, score_rows
from embedcli.analysis.topk import search_vectors
from embedcli.core.errors import UsageError
from embedcli.core.row_vectors import as_dense
from embedcli.core.sparse_vectors import SparseVectors, concat_sparse, sparsify
from embedcli.outputs import dataset as dataset_module
from embedcli.outputs.dataset import VectorDataset, open_dataset
from sample_outputs import make_output, sparse_vectors, unit_vectors

ROWS, DIM = 500, 60


@pytest.fixture
def vectors() -> SparseVectors:
    """Small whole weights, so that many scores are equal."""
    random = np.random.default_rng(3)
    weights = random.integers(-1, 3, (ROWS, DIM)) * (random.random((ROWS, DIM)) < 0.1)
    weights[:, 0] = 1
    return sparsify(weights.astype(np.float32))


@pytest.fixture
def output(tmp_path: Path, vectors: SparseVectors, monkeypatch: pytest.MonkeyPatch) -> VectorDataset:
    monkeypatch.setattr(dataset_module, "BLOCK_BYTES", 50 << 10)
    made = open_dataset(str(make_output(tmp_path / "out.parquet", vectors, ids=[f"r{i}" for i in range(ROWS)])))
    assert len(list(made.read_blocks())) > 5
    return made


@pytest.mark.parametrize("k", [1, 7, 100, ROWS + 5])
def test_the_highest_dot_products_are_found_and_of_equal_ones_the_earlier(
    output: VectorDataset, vectors: SparseVectors, k: int
) -> None:
    queries = vectors[[5, 400, 77]]
    scores = as_dense(queries).astype(np.float64) @ as_dense(vectors).T.astype(np.float64)
    for query, hits in enumerate(search_vectors(output, queries, k)):
        expected = np.argsort(-scores[query], kind="stable")[:k]
        assert hits.rows.tolist() == expected.tolist()
        assert np.allclose(hits.scores, scores[query][expected])


def test_the_cosine_can_be_asked_for(output: VectorDataset, vectors: SparseVectors) -> None:
    hits = search_vectors(output, vectors[[9]], 3, "cosine")[0]
    assert hits.rows[0] == 9
    assert hits.scores[0] == pytest.approx(1, abs=1e-6)
    assert np.all(hits.scores <= 1 + 1e-6)


def test_scores_are_those_of_scipy_and_of_dense_vectors(vectors: SparseVectors) -> None:
    queries = sparse_vectors(4, DIM, terms=9)
    dense = as_dense(queries) @ as_dense(vectors).T
    assert np.allclose(dense, (csr_array(as_dense(queries)) @ csr_array(as_dense(vectors)).T).toarray(), atol=1e-5)
    shares_term = (as_dense(queries) != 0).astype(int) @ (as_dense(vectors) != 0).T.astype(int) > 0
    assert 0 < shares_term.mean() < 1
    expected = np.where(shares_term, dense, np.nan)
    assert np.allclose(score_rows(queries, vectors, "dot"), expected, atol=1e-5, equal_nan=True)
    lengths = np.linalg.norm(as_dense(vectors), axis=1)
    assert np.allclose(score_rows(queries, vectors, "cosine"), expected / lengths, atol=1e-5, equal_nan=True)


def test_only_rows_that_share_a_term_are_found_also_if_their_weights_cancel_out(tmp_path: Path) -> None:
    rows = sparsify(np.array([[0, 0, 5], [1, 1, 0], [2, 0, 0], [0, 0, 1]], np.float32))
    output = open_dataset(str(make_output(tmp_path / "out.parquet", rows, ids=list("abcd"))))
    (hits,) = search_vectors(output, sparsify(np.array([[1, -1, 0]], np.float32)), 4)
    assert hits.rows.tolist() == [2, 1]
    assert hits.scores.tolist() == [2, 0]


def test_outputs_agree_on_rows_that_have_fewer_neighbours(tmp_path: Path) -> None:
    rows = sparsify(np.array([[1, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]], np.float32))
    outputs = [open_dataset(str(make_output(tmp_path / f"{i}.parquet", rows, ids=list("abcdef")))) for i in range(2)]
    compared = compare_outputs(*outputs, k=4, rows=None, moved=0, seed=0)
    assert compared.overlaps.tolist() == [1] * 6
    other = sparsify(np.array([[1, 0, 0], [2, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]], np.float32))
    changed = open_dataset(str(make_output(tmp_path / "other.parquet", other, ids=list("abcdef"))))
    compared = compare_outputs(outputs[0], changed, k=4, rows=None, moved=0, seed=0)
    assert compared.overlaps.tolist() == pytest.approx([1, 1, 1, 2 / 3, 2 / 3, 2 / 3])


def test_cosines_of_rows_ignore_rows_without_terms() -> None:
    first = sparsify(np.array([[1, 0, 2], [0, 0, 0], [0, 3, 0]], np.float32))
    second = sparsify(np.array([[2, 0, 4], [1, 1, 1], [1, 0, 0]], np.float32))
    assert row_cosines(first, second) == pytest.approx([1, 0, 0])
    assert np.allclose(np.linalg.norm(as_dense(normalize(first)), axis=1), [1, 0, 1])


def test_vectors_are_read_in_the_order_that_was_asked_for(output: VectorDataset, vectors: SparseVectors) -> None:
    wanted = np.array([499, 3, 250, 4])
    assert np.array_equal(as_dense(read_vectors(output, wanted)), as_dense(vectors)[wanted])


def test_neighbours_of_two_outputs_overlap(tmp_path: Path, output: VectorDataset, vectors: SparseVectors) -> None:
    ids = [f"r{i}" for i in range(ROWS)]
    same = compare_outputs(output, output, k=5, rows=50, moved=2, seed=0).as_json()
    assert same["overlap"] == {"mean": 1.0, "min": 1.0}
    assert same["cosine"]["min"] == pytest.approx(1, abs=1e-6)
    changed = concat_sparse([vectors[:250], sparse_vectors(250, DIM, terms=6)])
    other = open_dataset(str(make_output(tmp_path / "other.parquet", changed, ids=ids, space={"model": "tests/other"})))
    found = compare_outputs(output, other, k=5, rows=ROWS, moved=3, seed=0).as_json()
    dense = [as_dense(vectors), as_dense(changed)]
    assert found["overlap"]["mean"] == pytest.approx(np.mean(overlaps(dense[0], dense[1], 5)), abs=1e-6)
    assert {int(row["id"][1:]) >= 250 for row in found["moved"]} == {True}


def overlaps(first: np.ndarray, second: np.ndarray, k: int) -> list[float]:
    found = []
    for row in range(len(first)):
        nearest = []
        for side in (first, second):
            order = [i for i in np.argsort(-(side @ side[row]), kind="stable")[: k + 1].tolist() if i != row]
            nearest.append(set(order[:k]))
        found.append(len(nearest[0] & nearest[1]) / k)
    return found


def test_a_sparse_and_a_dense_output_are_not_compared(tmp_path: Path, output: VectorDataset) -> None:
    dense = open_dataset(str(make_output(tmp_path / "dense.parquet", unit_vectors(ROWS, DIM))))
    with pytest.raises(UsageError, match=r"out\.parquet has sparse vectors, .*dense\.parquet dense ones: their"):
        compare_outputs(output, dense, k=5, rows=5, moved=1, seed=0)


def test_the_output_that_keeps_more_terms_queries_both(tmp_path: Path) -> None:
    full = sparse_vectors(200, DIM, terms=30)
    cut = sparsify(as_dense(full), top_k=5)
    paths = [make_output(tmp_path / name, part) for name, part in (("cut.parquet", cut), ("full.parquet", full))]
    first, second = (open_dataset(str(path)) for path in paths)
    there = compare_outputs(first, second, k=5, rows=100, moved=0, seed=0).as_json()["overlap"]
    back = compare_outputs(second, first, k=5, rows=100, moved=0, seed=0).as_json()["overlap"]
    assert there == back


def test_a_row_without_terms_in_both_outputs_has_not_changed() -> None:
    first = SparseVectors(np.array([0, 0, 1, 1]), np.array([3], np.int32), np.array([2], np.float32), 5)
    second = SparseVectors(np.array([0, 0, 1, 2]), np.array([3, 1], np.int32), np.array([4, 1], np.float32), 5)
    assert measure_row_cosines(first, second).tolist() == [1, 1, 0]
