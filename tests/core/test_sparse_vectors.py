"""Sparse vectors: what is kept, and that taking and joining rows loses nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedcli.core.row_vectors import DenseBuffer, SparseBuffer, as_dense, concat_vectors
from embedcli.core.sparse_vectors import SparseVectors, concat_sparse, sparsify

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
