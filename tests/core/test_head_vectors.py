"""Vectors of several heads: rows are taken, joined and replaced together, and each part keeps its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedcli.core.head_vectors import HeadVectors
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.quantization import find_unusable, is_storable
from embedcli.core.ragged import offsets_of
from embedcli.core.row_vectors import (
    DenseBuffer,
    HeadsBuffer,
    MultiVectorBuffer,
    SparseBuffer,
    as_dense,
    concat_vectors,
    find_token_vectors,
    replace_vectors,
)
from embedcli.core.sparse_vectors import sparsify

DIM = 3


def build(numbers: list[int]) -> HeadVectors:
    """Rows that are told apart by their number in each part; row n has n vectors of tokens."""
    dense = np.array(numbers, np.float32)[:, None] + np.zeros((1, DIM), np.float32)
    tokens = np.repeat(dense, numbers, axis=0)
    sparse = sparsify(dense * np.array([0, 1, 0], np.float32))
    return HeadVectors({"sparse": sparse, "dense": dense, "multi_vector": MultiVectors(offsets_of(numbers), tokens)})


def numbers_of(vectors: Any) -> list[int]:
    """The numbers of the rows, which all parts agree on."""
    assert isinstance(vectors, HeadVectors)
    dense: list[int] = np.asarray(vectors.parts["dense"])[:, 0].astype(int).tolist()
    np.testing.assert_array_equal(as_dense(vectors.parts["sparse"])[:, 1], dense)
    multi = find_token_vectors(vectors)
    assert multi is not None
    assert multi.lengths.tolist() == dense
    np.testing.assert_array_equal(multi.values[:, 0], np.repeat(dense, dense))
    return dense


def test_rows_are_taken_together() -> None:
    vectors = build([1, 2, 3, 4])
    assert (len(vectors), vectors.shape) == (4, (4, DIM))
    assert numbers_of(vectors[[3, 0, 0]]) == [4, 1, 1]
    assert numbers_of(vectors[1:3]) == [2, 3]
    assert numbers_of(vectors[np.array([True, False, False, True])]) == [1, 4]
    assert numbers_of(vectors[:0]) == []


def test_rows_are_joined_and_replaced_together() -> None:
    assert numbers_of(concat_vectors([build([1, 2]), build([]), build([3])])) == [1, 2, 3]
    assert numbers_of(replace_vectors(build([1, 2, 3]), np.array([True, False, True]), build([5, 6]))) == [5, 2, 6]


def test_parts_of_other_heads_are_not_joined() -> None:
    other = HeadVectors({"dense": np.ones((1, DIM), np.float32), "sparse": build([1]).parts["sparse"]})
    with pytest.raises(ValueError, match="different heads"):
        concat_vectors([build([1]), other])


def test_batches_arrive_in_any_order() -> None:
    buffer = HeadsBuffer(
        {
            "sparse": SparseBuffer(4, DIM, None, None),
            "dense": DenseBuffer(4, DIM),
            "multi_vector": MultiVectorBuffer(4, DIM),
        }
    )
    buffer.put(np.array([2, 0]), build([3, 1]))
    buffer.put(np.array([1]), build([2]))
    assert numbers_of(buffer.finish()) == [1, 2, 3, 0]
    with pytest.raises(TypeError, match="several heads"):
        buffer.put(np.array([3]), np.ones((1, DIM), np.float32))


@pytest.mark.parametrize("head", ["sparse", "dense", "multi_vector"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_is_unusable_if_one_of_its_parts_is(head: str, bad: float) -> None:
    vectors = build([1, 2, 3])
    part: Any = vectors.parts[head]  # type: ignore[index]
    values = part if head == "dense" else part.values
    values[1] = bad
    assert find_unusable(vectors).tolist() == [False, True, False]
    assert is_storable(vectors, "float32").tolist() == [True, False, True]


def test_a_row_needs_no_terms_but_all_else() -> None:
    vectors = build([1, 1, 0])
    np.asarray(vectors.parts["dense"])[2] = 1
    parts = {**vectors.parts, "sparse": sparsify(np.array([[0, 1, 0], [0, 0, 0], [0, 1, 0]], np.float32))}
    assert find_unusable(HeadVectors(parts)).tolist() == [False, False, True]
    assert is_storable(HeadVectors(parts), "float16").tolist() == [True, True, False]


def test_float16_overflows_in_any_part() -> None:
    vectors = build([1, 70000 // 70000])
    np.asarray(vectors.parts["dense"])[1] = 70000
    assert is_storable(vectors, "float16").tolist() == [True, False]


def test_they_are_no_single_array() -> None:
    with pytest.raises(TypeError, match="several heads"):
        as_dense(build([1]))
