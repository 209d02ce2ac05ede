"""The arithmetic of a comparison: medians, speedups, cosines, padding, floating-point operations. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.row_vectors import as_dense

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.row_vectors import EncodedVectors
    from embedcli.core.types import Int64Array


@dataclass(frozen=True)
class TransformerShape:
    """What decides how much a transformer computes.

    Attributes:
        parameters: The number of parameters without embeddings.
        layers: The number of layers.
        hidden: The width of the layers.
    """

    parameters: int
    layers: int
    hidden: int


def compute_speedups(baseline: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """How many times faster each round was: the baseline's seconds over the seconds of the same round."""
    return [theirs / ours for theirs, ours in zip(baseline, seconds, strict=True)]


def median_or_nan(values: Sequence[float]) -> float:
    """The median; NaN if there are no values."""
    return median(values) if values else float("nan")


def lowest_cosine(left: EncodedVectors, right: EncodedVectors) -> float:
    """The smallest cosine between row i of `left` and row i of `right`, or between the vectors of the same token.

    Args:
        left: float [n, dim], or the vectors of the tokens of n rows.
        right: The same kind of vectors of the same rows.

    Returns:
        The cosine, computed in float64; NaN without rows, and 0 if a row has more vectors on one side.
    """
    if not len(left):
        return float("nan")
    if not has_same_lengths(left, right):
        return 0.0
    a, b = as_dense(left).astype(np.float64), as_dense(right).astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / lengths).min())


def has_same_lengths(left: EncodedVectors, right: EncodedVectors) -> bool:
    """Whether each row has as many vectors on both sides."""
    if isinstance(left, MultiVectors) and isinstance(right, MultiVectors):
        return bool(np.array_equal(left.offsets, right.offsets))
    return not isinstance(left, MultiVectors) and not isinstance(right, MultiVectors)


def count_useful_flop(lengths: Int64Array, shape: TransformerShape) -> float:
    """Count the floating-point operations that rows need, padding excluded.

    Per token: 2 x parameters without embeddings (one multiplication and one addition each), and 4 x layers x hidden x
    the row's length for attention (scores and weighted sum).

    Args:
        lengths: int [n], the tokens of each row.
        shape: The size of the transformer.
    """
    tokens = lengths.astype(np.float64)
    per_token = 2.0 * shape.parameters + 4.0 * shape.layers * shape.hidden * tokens
    return float((tokens * per_token).sum())


def simulate_padding_share(lengths: Int64Array, order: Int64Array, batch_size: int) -> float:
    """The padded share of all computed tokens, if rows are batched in `order` and padded to the longest of a batch.

    Args:
        lengths: int [n], the tokens of each row.
        order: int [n], row numbers.
        batch_size: Rows per batch.
    """
    computed = sum(
        len(batch) * int(lengths[batch].max())
        for batch in (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    )
    return 1 - float(lengths.sum()) / computed if computed else 0.0


def order_longest_first(texts: Sequence[str]) -> NDArray[np.int64]:
    """Row numbers, int64 [n], by falling number of characters, as `SentenceTransformer.encode` batches them."""
    return np.argsort([-len(text) for text in texts]).astype(np.int64)


def pick_evenly(count: int, wanted: int) -> list[int]:
    """Pick at most `wanted` of `count` row numbers, evenly spaced and ascending."""
    if count <= wanted:
        return list(range(count))
    return [row * count // wanted for row in range(wanted)]
