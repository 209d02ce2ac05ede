"""The rows of an output nearest to some queries: exact, streamed, in memory that does not grow with the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embedcli.analysis.inspect_output import row_norms
from embedcli.outputs.dataset import Block, Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Bools, Floats

Metric = Literal["cosine", "dot"]


@dataclass(frozen=True)
class Hits:
    """The best rows of one query, best first: positions in the output (from 0) and scores."""

    rows: NDArray[np.int64]
    scores: Floats


class Best:
    """The k best of a stream of scores, for several queries. Of equal scores the earlier row wins."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self._scores = [np.empty(0, np.float32) for _ in range(queries)]
        self._rows = [np.empty(0, np.int64) for _ in range(queries)]

    def add(self, scores: Floats, start: int) -> None:
        """`scores` [queries, n] of the rows from `start` on; rows must come in ascending order. NaN never wins."""
        for i, row in enumerate(scores):
            self._add(i, row, start)

    def _add(self, i: int, scores: Floats, start: int) -> None:
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

    def hits(self) -> list[Hits]:
        return [Hits(rows, scores) for rows, scores in zip(self._rows, self._scores, strict=True)]


def search(
    output: Output, queries: Floats, k: int, metric: Metric = "cosine", *, only: Bools | None = None
) -> list[Hits]:
    """The `k` rows with the highest score for each of `queries` [q, dim], over all rows of the output, or `only` some.

    The queries stay float32 whatever the rows are stored in: each row is scored as sentence-transformers rescores
    its candidates, by the query's own numbers against the stored ones, but every row is a candidate.
    """
    best = Best(len(queries), k)
    queries = unit(queries) if metric == "cosine" else queries
    exact = says_unit(output)
    for block in output.blocks():
        vectors = comparable(output, block)
        scores = queries @ vectors.T
        if metric == "cosine" and not exact:
            lengths = row_norms(vectors)
            scores = scores / np.where(lengths > 0, lengths, 1)
        if only is not None:
            scores = np.where(only[block.start : block.start + len(block)], scores, np.nan)
        best.add(scores, block.start)
    return best.hits()


def says_unit(output: Output) -> bool:
    """Whether the stored vectors have length 1 by what is recorded, so that dot product and cosine are the same."""
    return output.precision == "float32" and output.space.get("normalize") is True


def comparable(output: Output, block: Block) -> Floats:
    """The block's vectors as float32, without a copy where they are."""
    return block.vectors if block.vectors.dtype == np.float32 else output.floats(block)


def unit(vectors: Floats) -> Floats:
    """The same directions with length 1; zeros stay zeros."""
    lengths = row_norms(vectors)[:, None]
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


def positions(hits: list[Hits]) -> list[int]:
    """Every row that some query found, ascending, once."""
    found: set[Any] = set()
    for hit in hits:
        found.update(hit.rows.tolist())
    return sorted(found)
