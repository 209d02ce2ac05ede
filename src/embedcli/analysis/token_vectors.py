"""Describe rows with a vector for each token: vectors per row, rows without any, rows with more than tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.analysis.quantiles import StreamingQuantiles
from embedcli.core.multi_vectors import MultiVectors

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TokenVectorCounter:
    """Counts the vectors of rows, block by block."""

    def __init__(self) -> None:
        self._lengths = StreamingQuantiles()
        self._total = self._empty_rows = self._excess_rows = 0

    def add(self, vectors: MultiVectors, token_counts: NDArray[Any] | None) -> None:
        """Add the next rows.

        Args:
            vectors: The vectors of n rows.
            token_counts: Tokens of each row's text, [n]; None where a row may have more vectors than tokens.
        """
        lengths = vectors.lengths
        self._lengths.add(lengths)
        self._total += int(lengths.sum())
        self._empty_rows += int(np.sum(lengths == 0))
        if token_counts is not None:
            self._excess_rows += int(np.sum(lengths > token_counts))

    def describe(self) -> dict[str, Any]:
        """Return how many vectors there are, in total and per row, and the rows with wrong numbers, as JSON values."""
        return {
            "total": self._total,
            "per_row": self._lengths.summary(median=0.5, p95=0.95),
            "empty_rows": self._empty_rows,
            "excess_rows": self._excess_rows,
        }
