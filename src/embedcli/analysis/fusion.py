"""Fuse the rankings of several searches, and search several outputs of the same rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.analysis.compare import match_rows
from embedcli.analysis.queries import SearchQuery
from embedcli.analysis.search import Rankings, Searcher, SearchResult
from embedcli.analysis.text_encoder import Notify, ignore_message
from embedcli.analysis.topk import Hits
from embedcli.core.errors import UsageError
from embedcli.core.types import KIND_ADJECTIVES
from embedcli.outputs.dataset import VectorDataset

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.analysis.similarities import Metric

# Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
# SIGIR 2009: their constant.
RRF_CONSTANT = 60
# Rows of each output that are ranked, as in the runs that the paper fuses.
FUSION_DEPTH = 1000


class FusedSearcher:
    """Searches several outputs and fuses their rankings by reciprocal rank. Use it as a context manager.

    Each output is searched with its own model and the usual metric of its kind.

    Args:
        outputs: At least two outputs of the same rows, in any order. Columns are read from the first.
        notify: Receives notes about models and prompts.
        flags: Job options that override the recorded ones of every output.

    Raises:
        UsageError: The outputs do not have the same ids, or the model of one is not on this machine.
    """

    def __init__(self, outputs: Sequence[VectorDataset], *, notify: Notify = ignore_message, **flags: Any) -> None:
        self.output = outputs[0]
        self._notify = notify
        self._positions = [match_all_rows(outputs[0], other) for other in outputs]
        with ExitStack() as stack:
            self._searchers = [stack.enter_context(Searcher(output, notify=notify, **flags)) for output in outputs]
            self._stack = stack.pop_all()

    def search(
        self, queries: Sequence[SearchQuery], k: int, columns: Sequence[str], metric: Metric | None = None
    ) -> SearchResult:
        """Find the `k` best rows for each query, as `Searcher.search`; scores are those of the fusion.

        A query that gets no vector for one output has no ranking there, which is noted.
        """
        depth = max(k, FUSION_DEPTH)
        found = [searcher.find(queries, depth, metric) for searcher in self._searchers]
        fused = []
        for hits in zip(*(rankings.hits for rankings in found), strict=True):
            rankings = [positions[hit.rows] for hit, positions in zip(hits, self._positions, strict=True)]
            fused.append(fuse_rankings(rankings, k))
        rejects = {i: why for i, why in found[0].rejects.items() if all(i in each.rejects for each in found)}
        for searcher, each in zip(self._searchers, found, strict=True):
            for i, reason in sorted(each.rejects.items()):
                if i not in rejects:
                    self._notify(
                        f"{queries[i]} has no {KIND_ADJECTIVES[searcher.output.kind]} ranking in "
                        f"{searcher.output.path}: {reason}"
                    )
        wanted = min(k, self.output.rows) if all(each.output.kind == "sparse" for each in self._searchers) else 0
        return Rankings(fused, rejects).describe(self.output, queries, columns, wanted)

    def __enter__(self) -> FusedSearcher:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def fuse_rankings(rankings: Sequence[NDArray[np.int64]], k: int) -> Hits:
    """Fuse rankings of rows: a row scores the sum of 1 / (60 + rank) over them.

    Args:
        rankings: The rows of each ranking, best first.
        k: Rows to return; of equal scores the earlier row wins.
    """
    scores: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, row in enumerate(ranking.tolist(), 1):
            scores[row] += 1 / (RRF_CONSTANT + rank)
    best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]
    return Hits(np.array([row for row, _ in best], np.int64), np.array([score for _, score in best], np.float32))


def match_all_rows(first: VectorDataset, other: VectorDataset) -> NDArray[np.int64]:
    """Return for each row of `other` its position in `first`. Raises UsageError unless both have the same ids."""
    if other is first:
        return np.arange(first.rows)
    shared = match_rows(first, other)
    if not len(shared) == first.rows == other.rows:
        raise UsageError(
            f"{first.path} and {other.path} do not have the same ids: of {first.rows:,} and {other.rows:,} rows "
            f"{len(shared):,} are in both",
            "encode the same rows with both models",
        )
    positions = np.empty(other.rows, np.int64)
    positions[shared.second] = shared.first
    return positions
