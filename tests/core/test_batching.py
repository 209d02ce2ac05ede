"""Packing rows into batches: every row once, longest first, within the budget."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedcli.core.batching import pack_batches, padded_token_count, round_up_length


@given(st.lists(st.integers(1, 600), max_size=200), st.integers(1, 4096), st.sampled_from([0, 1, 8, 16]))
def test_every_row_once_longest_first_within_budget(lengths: list[int], budget: int, pad_to_multiple_of: int) -> None:
    array = np.array(lengths, np.int64)
    batches = list(pack_batches(array, lambda: budget, pad_to_multiple_of))
    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    for batch in batches:
        tokens = (
            round_up_length(int(array[batch].max()), pad_to_multiple_of) * len(batch)
            if pad_to_multiple_of
            else int(array[batch].sum())
        )
        assert padded_token_count(array[batch], pad_to_multiple_of) == tokens
        assert tokens <= budget or len(batch) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=100))
def test_a_batch_is_as_large_as_the_budget_allows(lengths: list[int]) -> None:
    array = np.array(lengths, np.int64)
    batches = list(pack_batches(array, lambda: 100))
    for batch in batches[:-1]:
        width = int(array[batch].max())
        assert width * (len(batch) + 1) > 100


def test_a_smaller_budget_applies_to_the_next_batch() -> None:
    budgets = iter([40, 20, 20, 20, 20])
    sizes = [len(batch) for batch in pack_batches(np.full(10, 10), lambda: next(budgets))]
    assert sizes == [4, 2, 2, 2]


def test_a_hand_computed_case() -> None:
    # Widths 9->16, 5->8: 16 x 2 = 32 fits the budget of 32, then 8 x 3 = 24 (a fourth would fit, there is none).
    batches = [batch.tolist() for batch in pack_batches(np.array([5, 9, 3, 9, 4]), lambda: 32, 8)]
    assert batches == [[1, 3], [0, 4, 2]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=100))
def test_rows_that_are_not_padded_fill_the_budget(lengths: list[int]) -> None:
    array = np.array(lengths, np.int64)
    batches = list(pack_batches(array, lambda: 100, 0))
    for batch, following in pairwise(batches):
        assert array[batch].sum() + array[following[0]] > 100


@given(st.lists(st.integers(1, 30), max_size=200), st.integers(1, 400), st.sampled_from([1, 8]))
def test_rows_of_equal_length_are_together_and_none_is_padded(
    lengths: list[int], budget: int, pad_to_multiple_of: int
) -> None:
    array = np.array(lengths, np.int64)
    batches = list(pack_batches(array, lambda: budget, pad_to_multiple_of, equal_lengths=True))
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(set(array[batch].tolist())) == 1
        assert padded_token_count(array[batch], pad_to_multiple_of) <= budget or len(batch) == 1
    # No batch is smaller than the budget asks for.
    for batch, following in pairwise(batches):
        length = int(array[batch[0]])
        if array[following[0]] == length:
            assert round_up_length(length, pad_to_multiple_of) * (len(batch) + 1) > budget
