"""Exact nearest-neighbour search over an output, streamed in constant memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import storage
from embedcli.analysis.similarities import Metric, choose_metric, normalize, score_rows
from embedcli.core.errors import InputError
from embedcli.core.multi_vectors import MultiVectors
from embedcli.outputs.dataset import VectorBlock, VectorDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import BoolArray, Float32Array


@dataclass(frozen=True)
class Hits:
    """The best rows of one query, best first: their positions in the output (from 0) and scores."""

    rows: NDArray[np.int64]
    scores: Float32Array


class TopK:
    """Keeps the k best of a stream of scores for several queries. Of equal scores the earlier row wins."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self._scores = [np.empty(0, np.float32) for _ in range(queries)]
        self._rows = [np.empty(0, np.int64) for _ in range(queries)]

    def add(self, scores: Float32Array, start: int) -> None:
        """Add the scores of the next rows.

        Args:
            scores: Array [queries, n]; NaN never wins.
            start: Position of the first of these rows; calls must be in ascending order.
        """
        for query, row in enumerate(scores):
            self._add_to_query(query, row, start)

    def _add_to_query(self, query: int, scores: Float32Array, start: int) -> None:
        held = self._scores[query]
        is_full = len(held) == self.k
        # A later row must be better than the worst one held: an equal score is not enough.
        candidates = np.flatnonzero(scores > held[-1] if is_full else ~np.isnan(scores))
        if not len(candidates):
            return
        if len(candidates) > 4 * self.k:
            threshold = np.partition(scores[candidates], -self.k)[-self.k]
            candidates = candidates[scores[candidates] >= threshold]
        merged = np.concatenate([held, scores[candidates]])
        order = np.argsort(-merged, kind="stable")[: self.k]
        self._scores[query] = merged[order]
        self._rows[query] = np.concatenate([self._rows[query], candidates + start])[order]

    def to_hits(self) -> list[Hits]:
        return [Hits(rows, scores) for rows, scores in zip(self._rows, self._scores, strict=True)]


def search_vectors(
    output: VectorDataset,
    queries: RowVectors,
    k: int,
    metric: Metric | None = None,
    *,
    only: BoolArray | None = None,
) -> list[Hits]:
    """Find the rows with the highest scores for each query.

    Queries stay float32 whatever the stored precision: every row is scored as sentence-transformers rescores its
    candidates, with the float32 query against the stored values.

    Args:
        output: The output to search.
        queries: Query vectors, of the kind and the dimensions of the output.
        k: Rows per query.
        metric: Cosine, dot product or MaxSim; None for the usual one of the kind of vectors.
        only: Mask of the rows to consider, bool [rows]; None for all.

    Raises:
        UsageError: The metric does not fit the kind of vectors.
        InputError: A row has no vectors.

    Returns:
        The hits of each query: fewer than `k` where not as many rows have a score.
    """
    best = TopK(len(queries), k)
    metric = choose_metric(output, metric)
    queries = normalize(queries) if metric == "cosine" else queries
    has_unit_vectors = is_recorded_normalized(output)
    for block in output.read_blocks():
        scores = score_rows(queries, block_as_float32(output, block), metric, are_unit_rows=has_unit_vectors)
        if only is not None:
            scores = np.where(only[block.first_row : block.first_row + len(block)], scores, np.nan)
        best.add(scores, block.first_row)
    return best.to_hits()


def is_recorded_normalized(output: VectorDataset) -> bool:
    """Return whether the metadata says that the stored vectors have length 1, so that dot product equals cosine."""
    return output.precision == "float32" and output.vector_space.get("normalize") is True


def block_as_float32(output: VectorDataset, block: VectorBlock) -> RowVectors:
    """Return the vectors of a block as float32. Raises InputError if a row has none, which no score is defined for."""
    vectors = output.block_vectors(block)
    if isinstance(vectors, MultiVectors) and not vectors.lengths.all():
        row = block.first_row + int(np.argmin(vectors.lengths))
        place = storage.format_location(output.path)
        raise InputError(
            f"{place}: {output.describe_row(row)} has no vectors",
            "encode the rows again; `embedcli inspect` counts all rows without vectors",
        )
    return vectors


def spread_hits(hits: list[Hits], positions: NDArray[np.int64], count: int) -> list[Hits]:
    """Return the hits of `count` queries of which only those at `positions` were searched; the others have none."""
    spread = [Hits(np.empty(0, np.int64), np.empty(0, np.float32))] * count
    for position, hit in zip(positions.tolist(), hits, strict=True):
        spread[position] = hit
    return spread


def hit_positions(hits: list[Hits]) -> list[int]:
    """Return the positions of all rows in `hits`, ascending and without repetition."""
    positions: set[Any] = set()
    for hit in hits:
        positions.update(hit.rows.tolist())
    return sorted(positions)
