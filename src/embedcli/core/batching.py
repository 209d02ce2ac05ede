"""Lengths to batches under a padded-token budget, and sizes to groups. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from embedcli.core.types import Int64Array


def pack_batches(lengths: Int64Array, budget: Callable[[], int], pad_to_multiple_of: int = 1) -> Iterator[Int64Array]:
    """Yield index arrays that cover every row once, longest rows first.

    A batch costs rows x width padded tokens, where width is its longest length rounded up to
    `multiple`, or, with 0, the sum of its lengths; it stays within `budget()`, asked anew for each
    batch, unless it holds a single row.
    """
    order = np.argsort(-lengths, kind="stable")
    before = np.concatenate([[0], np.cumsum(lengths[order])])
    at = 0
    while at < len(order):
        if pad_to_multiple_of:
            count = budget() // max(1, round_up_length(int(lengths[order[at]]), pad_to_multiple_of))
        else:
            count = int(np.searchsorted(before, before[at] + budget(), side="right")) - 1 - at
        rows = order[at : at + max(1, count)]
        yield rows
        at += len(rows)


def padded_token_count(lengths: Int64Array, pad_to_multiple_of: int) -> int:
    """The tokens that a batch of rows of these lengths computes, padding included."""
    return (
        len(lengths) * round_up_length(int(lengths.max()), pad_to_multiple_of)
        if pad_to_multiple_of
        else int(lengths.sum())
    )


def round_up_length(length: int, pad_to_multiple_of: int) -> int:
    """The smallest multiple of `multiple` that holds `length` tokens; 0 pads nothing."""
    return -(-length // pad_to_multiple_of) * pad_to_multiple_of if pad_to_multiple_of else length


def group_by_size(sizes: Iterable[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges [start, stop) of successive items, each as many as come to `most` together, one at least."""
    start = there = count = 0
    for size in sizes:
        if count > start and there + size > most:
            yield start, count
            start, there = count, 0
        there += size
        count += 1
    if count > start:
        yield start, count
