"""Lengths to batches under a padded-token budget. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from embedcli.contracts import Rows


def pack(lengths: Rows, budget: Callable[[], int], multiple: int = 1) -> Iterator[Rows]:
    """Yield index arrays that cover every row once, longest rows first.

    A batch costs rows x width padded tokens, where width is its longest length rounded up to
    `multiple`; it stays within `budget()`, asked anew for each batch, unless it holds a single row.
    """
    order = np.argsort(-lengths, kind="stable")
    at = 0
    while at < len(order):
        width = padded(int(lengths[order[at]]), multiple)
        rows = order[at : at + max(1, budget() // max(1, width))]
        yield rows
        at += len(rows)


def padded(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that holds `length` tokens."""
    return -(-length // multiple) * multiple
