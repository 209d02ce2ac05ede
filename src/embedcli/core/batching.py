"""Pack rows into batches under a token budget, and group items by size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from embedcli.core.types import Int64Array


def pack_batches(
    lengths: Int64Array, budget: Callable[[], int], pad_to_multiple_of: int = 1, equal_lengths: bool = False
) -> Iterator[Int64Array]:
    """Pack rows into batches, longest rows first.

    A batch costs `padded_token_count` tokens, which is at most the budget unless the batch is a single row.

    Args:
        lengths: int64 [n]: tokens of each row.
        budget: Returns the token budget; called for each batch, because it shrinks when the device runs out of memory.
        pad_to_multiple_of: Rows are padded to the longest of their batch, rounded up to a multiple of this; 0 if rows
            are not padded.
        equal_lengths: Whether all rows of a batch have the same number of tokens.

    Yields:
        int64 [batch]: row numbers. Every row is in one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    tokens_before = np.concatenate([[0], np.cumsum(lengths[order])])
    start = 0
    while start < len(order):
        if pad_to_multiple_of:
            count = budget() // max(1, round_up_length(int(lengths[order[start]]), pad_to_multiple_of))
        else:
            count = int(np.searchsorted(tokens_before, tokens_before[start] + budget(), side="right")) - 1 - start
        if equal_lengths:
            count = min(count, int(np.searchsorted(-lengths[order], -lengths[order[start]], side="right")) - start)
        rows = order[start : start + max(1, count)]
        yield rows
        start += len(rows)


def padded_token_count(lengths: Int64Array, pad_to_multiple_of: int) -> int:
    """The tokens that the encoder computes for a batch, padding included.

    Args:
        lengths: int64 [batch]: tokens of each row.
        pad_to_multiple_of: As for `pack_batches`.
    """
    if not pad_to_multiple_of:
        return int(lengths.sum())
    return len(lengths) * round_up_length(int(lengths.max()), pad_to_multiple_of)


def round_up_length(length: int, pad_to_multiple_of: int) -> int:
    """The length of a row after padding; 0 as the multiple adds no padding."""
    return -(-length // pad_to_multiple_of) * pad_to_multiple_of if pad_to_multiple_of else length


def group_by_size(sizes: Iterable[int], max_size: int) -> Iterator[tuple[int, int]]:
    """Group successive items so that each group has at most `max_size` in total, or is a single item.

    Args:
        sizes: The size of each item.
        max_size: The limit, in the unit of `sizes`.

    Yields:
        (start, stop) of each group.
    """
    start = stop = total = 0
    for size in sizes:
        if stop > start and total + size > max_size:
            yield start, stop
            start, total = stop, 0
        total += size
        stop += 1
    if stop > start:
        yield start, stop
