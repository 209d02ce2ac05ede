"""The arithmetic of a comparison: medians, ratios of pairs, cosines, padding, floating-point operations. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Floats, Rows


# Differences of times below this are nothing.
CLOCK_SECONDS = 0.001


@dataclass(frozen=True)
class Shape:
    """What decides how much a transformer computes: its parameters without embeddings, its layers and their width."""

    parameters: int
    layers: int
    hidden: int


def pairwise(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """How many times faster we were in each round: their seconds over ours of the same round."""
    return [their / our for their, our in zip(theirs, ours, strict=True)]


def middle(values: Sequence[float]) -> float:
    """The median; NaN of nothing."""
    return median(values) if values else float("nan")


def lowest_cosine(ours: Floats, theirs: Floats) -> float:
    """The smallest cosine between row i of one [n, dim] and row i of the other, in float64; NaN without rows."""
    if not len(ours):
        return float("nan")
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / lengths).min())


def useful_flop(lengths: Rows, shape: Shape) -> float:
    """Floating-point operations that rows of `lengths` tokens need, padding not counted.

    Per token: 2 x parameters without embeddings (each is multiplied and added once), and 4 x layers x hidden x
    the row's length for attention (scores and weighted sum).
    """
    tokens = lengths.astype(np.float64)
    per_token = 2.0 * shape.parameters + 4.0 * shape.layers * shape.hidden * tokens
    return float((tokens * per_token).sum())


def padding_share(lengths: Rows, order: Rows, batch_size: int) -> float:
    """The padded share of all computed tokens when rows in `order` go in batches, each as wide as its longest row."""
    computed = sum(
        len(batch) * int(lengths[batch].max())
        for batch in (order[at : at + batch_size] for at in range(0, len(order), batch_size))
    )
    return 1 - float(lengths.sum()) / computed if computed else 0.0


def longest_first(texts: Sequence[str]) -> NDArray[np.int64]:
    """Rows by falling number of characters: the order in which `SentenceTransformer.encode` batches them."""
    return np.argsort([-len(text) for text in texts]).astype(np.int64)


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` row numbers, evenly spread, ascending."""
    if count <= wanted:
        return list(range(count))
    return [row * count // wanted for row in range(wanted)]
