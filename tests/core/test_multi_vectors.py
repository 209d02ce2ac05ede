"""Vectors of tokens: taking, joining and replacing rows keeps each row's own vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.core.multi_vectors import MultiVectors, concat_multi
from embedcli.core.quantization import find_unusable, is_storable
from embedcli.core.ragged import offsets_of
from embedcli.core.row_vectors import MultiVectorBuffer, concat_vectors, replace_vectors

LENGTHS = st.lists(st.integers(0, 4), max_size=8)


def build(lengths: list[int], start: int = 0) -> MultiVectors:
    """Each number of a vector says where it is."""
    count = sum(lengths)
    values = np.arange(start, start + count * 2, dtype=np.float32).reshape(count, 2) + 1
    return MultiVectors(offsets_of(lengths), values)


def rows_of(vectors: MultiVectors) -> list[list[Any]]:
    starts, stops = vectors.offsets[:-1], vectors.offsets[1:]
    return [vectors.values[start:stop].tolist() for start, stop in zip(starts, stops, strict=True)]


@given(LENGTHS, st.data())
def test_rows_are_taken_by_number_mask_and_slice(lengths: list[int], data: st.DataObject) -> None:
    vectors, count = build(lengths), len(lengths)
    rows = rows_of(vectors)
    numbers = data.draw(st.lists(st.integers(0, count - 1), max_size=10) if count else st.just([]))
    assert rows_of(vectors[np.array(numbers, np.int64)]) == [rows[i] for i in numbers]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    assert rows_of(vectors[mask]) == [row for row, kept in zip(rows, mask, strict=True) if kept]
    assert rows_of(vectors[1:3]) == rows[1:3]
    assert vectors.shape == (count, 2)


@given(LENGTHS, st.data())
def test_a_view_has_the_vectors_of_its_rows_without_a_copy(lengths: list[int], data: st.DataObject) -> None:
    vectors = build(lengths)
    start = data.draw(st.integers(0, len(lengths)))
    stop = data.draw(st.integers(start, len(lengths)))
    view = vectors.view_rows(start, stop)
    assert rows_of(view) == rows_of(vectors)[start:stop]
    assert not view.values.size or np.shares_memory(view.values, vectors.values)


@given(LENGTHS, st.integers(0, 9))
def test_rows_are_divided_by_their_vectors(lengths: list[int], most: int) -> None:
    ranges = list(build(lengths).split_by_vectors(most))
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(len(lengths)))
    for start, stop in ranges:
        assert stop - start == 1 or sum(lengths[start:stop]) <= most
    # No range could have taken the row after it.
    assert all(sum(lengths[start : stop + 1]) > most for start, stop in ranges[:-1])


@given(st.lists(LENGTHS, min_size=1, max_size=4))
def test_parts_are_joined_in_order(parts: list[list[int]]) -> None:
    built = [build(lengths, 100 * i) for i, lengths in enumerate(parts)]
    joined = concat_multi(built)
    assert rows_of(joined) == [row for part in built for row in rows_of(part)]
    assert joined.values.shape[1] == 2


def test_dense_rows_that_are_none_do_not_count() -> None:
    joined = concat_vectors([np.empty((0, 2), np.float32), build([2, 1])])
    assert isinstance(joined, MultiVectors)
    assert rows_of(joined) == rows_of(build([2, 1]))


@given(LENGTHS, st.data())
def test_rows_are_replaced_in_place(lengths: list[int], data: st.DataObject) -> None:
    vectors = build(lengths)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))), bool)
    others = build([3] * int(mask.sum()), 1000)
    wanted, new = rows_of(vectors), iter(rows_of(others))
    expected = [next(new) if replaced else row for row, replaced in zip(wanted, mask, strict=True)]
    replaced = replace_vectors(vectors, mask, others)
    assert isinstance(replaced, MultiVectors)
    assert rows_of(replaced) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_needs_vectors_that_are_finite_and_one_that_is_not_zero(bad: float) -> None:
    vectors = build([2, 0, 3, 1, 2])
    vectors.values[3, 1] = bad
    vectors.values[5] = 0
    vectors.values[6] = 0
    assert find_unusable(vectors).tolist() == [False, True, True, True, False]


def test_float16_overflows() -> None:
    vectors = build([1, 2])
    vectors.values[2, 0] = 70000
    assert is_storable(vectors, "float32").tolist() == [True, True]
    assert is_storable(vectors, "float16").tolist() == [True, False]


def test_a_buffer_puts_batches_in_their_places() -> None:
    buffer = MultiVectorBuffer(5, 2)
    buffer.put(np.array([3, 0]), build([2, 1]))
    buffer.put(np.array([4, 2]), build([0, 3], 50))
    first, second = rows_of(build([2, 1])), rows_of(build([0, 3], 50))
    assert rows_of(buffer.finish()) == [first[1], [], second[1], first[0], []]
