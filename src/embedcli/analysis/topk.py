"""The rows of an output nearest to some queries: exact, streamed, in memory that does not grow with the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embedcli.analysis.inspect_output import compute_row_norms
from embedcli.outputs.dataset import VectorBlock, VectorDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import BoolArray, Float32Array

Metric = Literal["cosine", "dot"]


@dataclass(frozen=True)
class Hits:
    """The best rows of one query, best first: positions in the output (from 0) and scores."""

    rows: NDArray[np.int64]
    scores: Float32Array


class TopK:
    """The k best of a stream of scores, for several queries. Of equal scores the earlier row wins."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self._scores = [np.empty(0, np.float32) for _ in range(queries)]
        self._rows = [np.empty(0, np.int64) for _ in range(queries)]

    def add(self, scores: Float32Array, start: int) -> None:
        """`scores` [queries, n] of the rows from `start` on; rows must come in ascending order. NaN never wins."""
        for i, row in enumerate(scores):
            self._add(i, row, start)

    def _add(self, i: int, scores: Float32Array, start: int) -> None:
        held = self._scores[i]
        full = len(held) == self.k
        # A later row must beat the worst one held; an equal score does not.
        worth = np.flatnonzero(scores > held[-1] if full else ~np.isnan(scores))
        if not len(worth):
            return
        if len(worth) > 4 * self.k:
            bar = np.partition(scores[worth], -self.k)[-self.k]
            worth = worth[scores[worth] >= bar]
        together = np.concatenate([held, scores[worth]])
        order = np.argsort(-together, kind="stable")[: self.k]
        self._scores[i] = together[order]
        self._rows[i] = np.concatenate([self._rows[i], worth + start])[order]

    def to_hits(self) -> list[Hits]:
        return [Hits(rows, scores) for rows, scores in zip(self._rows, self._scores, strict=True)]


def search_vectors(
    output: VectorDataset, queries: Float32Array, k: int, metric: Metric = "cosine", *, only: BoolArray | None = None
) -> list[Hits]:
    """The `k` rows with the highest score for each of `queries` [q, dim], over all rows of the output, or `only` some.

    The queries stay float32 whatever the rows are stored in: each row is scored as sentence-transformers rescores
    its candidates, by the query's own numbers against the stored ones, but every row is a candidate.
    """
    best = TopK(len(queries), k)
    queries = normalize(queries) if metric == "cosine" else queries
    exact = is_recorded_normalized(output)
    for block in output.read_blocks():
        vectors = block_as_float32(output, block)
        scores = queries @ vectors.T
        if metric == "cosine" and not exact:
            lengths = compute_row_norms(vectors)
            scores = scores / np.where(lengths > 0, lengths, 1)
        if only is not None:
            scores = np.where(only[block.first_row : block.first_row + len(block)], scores, np.nan)
        best.add(scores, block.first_row)
    return best.to_hits()


def is_recorded_normalized(output: VectorDataset) -> bool:
    """Whether the stored vectors have length 1 by what is recorded, so that dot product and cosine are the same."""
    return output.precision == "float32" and output.vector_space.get("normalize") is True


def block_as_float32(output: VectorDataset, block: VectorBlock) -> Float32Array:
    """The block's vectors as float32, without a copy where they are."""
    return block.vectors if block.vectors.dtype == np.float32 else output.block_as_float32(block)


def normalize(vectors: Float32Array) -> Float32Array:
    """The same directions with length 1; zeros stay zeros."""
    lengths = compute_row_norms(vectors)[:, None]
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


def hit_positions(hits: list[Hits]) -> list[int]:
    """Every row that some query found, ascending, once."""
    found: set[Any] = set()
    for hit in hits:
        found.update(hit.rows.tolist())
    return sorted(found)
