"""Sparse vectors: what is kept, and that taking and joining rows loses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedcli.core.ragged import offsets_of
from embedcli.core.row_vectors import DenseBuffer, SparseBuffer, as_dense, concat_vectors, replace_vectors
from embedcli.core.sparse_vectors import SparseVectors, concat_sparse, keep_largest, merge_repeated, sparsify

DIM = 7
Dense = Any
WEIGHTS = st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 2.5, -1.5])


def dense_rows() -> st.SearchStrategy[Dense]:
    return arrays.arrays(np.float32, st.tuples(st.integers(0, 6), st.just(DIM)), elements=WEIGHTS)


@given(dense_rows())
def test_it_holds_the_same_numbers(dense: Dense) -> None:
    sparse = sparsify(dense)
    np.testing.assert_array_equal(sparse.to_dense(), dense)
    assert (sparse.values != 0).all()
    assert sparse.shape == dense.shape


@given(dense_rows(), st.integers(1, DIM), st.sampled_from([None, 0.5, 0.75, 3.0]))
def test_top_k_keeps_the_largest_and_min_weight_drops_the_rest(dense: Dense, top_k: int, least: float | None) -> None:
    sparse = sparsify(dense, top_k, least)
    for row, kept in zip(dense, (sparse[[number]] for number in range(len(dense))), strict=True):
        allowed = [i for i in np.flatnonzero(row) if least is None or abs(row[i]) >= least]
        expected = sorted(sorted(allowed, key=lambda i: (-abs(row[i]), i))[:top_k])
        assert kept.indices.tolist() == expected
        np.testing.assert_array_equal(kept.values, row[expected])


TOKENS = st.lists(st.tuples(st.integers(0, DIM - 1), st.sampled_from([0.0, 0.5, 0.75, 2.0])), max_size=9)


@given(st.lists(TOKENS, max_size=5))
def test_of_repeated_tokens_the_largest_weight_is_kept(rows: list[list[tuple[int, float]]]) -> None:
    entries = [entry for row in rows for entry in row]
    indices = np.array([token for token, _ in entries], np.int32)
    values = np.array([weight for _, weight in entries], np.float32)
    merged = merge_repeated(SparseVectors(offsets_of([len(row) for row in rows]), indices, values, DIM))
    expected = np.zeros((len(rows), DIM), np.float32)
    for number, row in enumerate(rows):
        for token, weight in row:
            expected[number, token] = max(expected[number, token], weight)
    np.testing.assert_array_equal(merged.to_dense(), expected)
    np.testing.assert_array_equal(merged.indices, sparsify(expected).indices)
    np.testing.assert_array_equal(merged.offsets, sparsify(expected).offsets)


def test_what_could_not_be_computed_does_not_disappear_among_repeated_tokens() -> None:
    entries = np.array([1, 1, 0], np.int32), np.array([np.nan, 2, 3], np.float32)
    merged = merge_repeated(SparseVectors(np.array([0, 3]), *entries, DIM))
    assert merged.find_unusable().tolist() == [True]


@given(dense_rows(), st.one_of(st.none(), st.integers(1, DIM)), st.sampled_from([None, 0.75]))
def test_sparse_vectors_are_cut_as_dense_ones(dense: Dense, top_k: int | None, least: float | None) -> None:
    cut, wanted = keep_largest(sparsify(dense), top_k, least), sparsify(dense, top_k, least)
    for name in ("offsets", "indices", "values"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(wanted, name))


@given(dense_rows(), st.data())
def test_rows_are_replaced_in_place(dense: Dense, data: st.DataObject) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(dense), max_size=len(dense))), bool)
    others = np.full((int(mask.sum()), DIM), 9, np.float32)
    expected = dense.copy()
    expected[mask] = others
    np.testing.assert_array_equal(as_dense(replace_vectors(sparsify(dense), mask, sparsify(others))), expected)
    np.testing.assert_array_equal(as_dense(replace_vectors(dense, mask, others)), expected)


@given(dense_rows(), st.data())
def test_rows_are_taken_as_from_an_array(dense: Dense, data: st.DataObject) -> None:
    sparse = sparsify(dense)
    numbers = data.draw(st.lists(st.integers(0, len(dense) - 1), max_size=9)) if len(dense) else []
    np.testing.assert_array_equal(sparse[numbers].to_dense(), dense[np.array(numbers, int)])
    np.testing.assert_array_equal(sparse[1:3].to_dense(), dense[1:3])
    mask = dense.any(axis=1)
    np.testing.assert_array_equal(sparse[mask].to_dense(), dense[mask])


@given(st.lists(dense_rows(), min_size=1, max_size=4))
def test_joined_parts_are_the_rows_of_all(parts: list[Dense]) -> None:
    joined = concat_sparse([sparsify(part) for part in parts])
    np.testing.assert_array_equal(joined.to_dense(), np.concatenate(parts))
    np.testing.assert_array_equal(as_dense(concat_vectors(parts)), np.concatenate(parts))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_cannot_be_used(bad: float) -> None:
    dense = np.array([[0, 1, 0], [0, 0, 0], [bad, 0, 2], [1, 1, 70000]], np.float32)
    assert sparsify(dense).find_unusable().tolist() == [False, True, True, False]
    assert sparsify(dense[[0, 3]]).find_larger(65520).tolist() == [False, True]


@pytest.mark.parametrize("as_encoded", [np.asarray, sparsify])
def test_a_buffer_takes_batches_of_both_forms(as_encoded: Any) -> None:
    buffer = SparseBuffer(2, 3, 1, None)
    buffer.put(np.array([1, 0]), as_encoded(np.array([[1, 3, 2], [5, 0, 0]], np.float32)))
    np.testing.assert_array_equal(as_dense(buffer.finish()), [[5, 0, 0], [0, 3, 0]])


@pytest.mark.parametrize("make", [DenseBuffer, lambda count, dim: SparseBuffer(count, dim, None, None)])
def test_batches_arrive_in_any_order_and_missing_rows_are_zero(make: Any) -> None:
    dense = np.arange(1, 1 + 6 * DIM, dtype=np.float32).reshape(6, DIM)
    buffer = make(6, DIM)
    for rows in ([4, 1], [0], [5, 2]):
        buffer.put(np.array(rows), dense[rows])
    expected = dense.copy()
    expected[3] = 0
    np.testing.assert_array_equal(as_dense(buffer.finish()), expected)


def test_a_buffer_without_rows() -> None:
    empty = SparseBuffer(0, DIM, None, None).finish()
    assert (len(empty), empty.dim) == (0, DIM)
    assert isinstance(empty, SparseVectors)
