"""Describe sparse vectors: terms per row, weights, and the words of the heaviest terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.analysis.quantiles import StreamingQuantiles
from embedcli.core.errors import EmbedcliError
from embedcli.core.job import Job
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.models.vocabulary import load_vocabulary

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray

# Terms that are shown of a row.
TOP_TERMS = 10


class TermCounter:
    """Counts the terms of sparse vectors, block by block."""

    def __init__(self) -> None:
        self._terms = StreamingQuantiles()
        self._lowest, self._highest = np.inf, -np.inf
        self._unsorted_rows = self._repeated_rows = self._empty_rows = 0
        self._samples: list[list[tuple[int, float]]] = []

    def add(self, vectors: SparseVectors, sample_rows: int) -> None:
        """Add the next rows; the heaviest terms of the first `sample_rows` of all are kept."""
        counts = vectors.lengths if not vectors.damage else np.delete(vectors.lengths, list(vectors.damage))
        self._terms.add(counts)
        self._empty_rows += int(np.sum(counts == 0))
        finite = vectors.values[np.isfinite(vectors.values)]
        if len(finite):
            self._lowest = min(self._lowest, float(finite.min()))
            self._highest = max(self._highest, float(finite.max()))
        is_unsorted, is_repeated = find_unsorted_rows(vectors)
        self._unsorted_rows += int(is_unsorted.sum())
        self._repeated_rows += int(is_repeated.sum())
        for row in range(min(len(vectors), sample_rows - len(self._samples))):
            self._samples.append(heaviest_terms(vectors[row : row + 1]))

    def describe(self, words: Mapping[int, str]) -> dict[str, Any]:
        """Return the terms per row, the range of weights, and the heaviest terms of the first rows, as JSON values.

        Args:
            words: The word of each dimension, as far as it is known.
        """
        weights = None if self._lowest > self._highest else {"min": self._lowest, "max": self._highest}
        samples = [
            [{"term": words.get(index, index), "weight": weight} for index, weight in row] for row in self._samples
        ]
        return {
            "per_row": self._terms.summary(median=0.5, p95=0.95),
            "weights": weights,
            "empty_rows": self._empty_rows,
            "unsorted_rows": self._unsorted_rows,
            "repeated_rows": self._repeated_rows,
            "samples": samples,
        }


def find_unsorted_rows(vectors: SparseVectors) -> tuple[BoolArray, BoolArray]:
    """Find rows whose indices descend somewhere, and rows with the same index twice in succession: bool [n] each."""
    rows, steps = vectors.entry_rows, np.diff(vectors.indices)
    is_same_row = rows[1:] == rows[:-1]
    is_unsorted, is_repeated = np.zeros(len(vectors), bool), np.zeros(len(vectors), bool)
    is_unsorted[rows[1:][is_same_row & (steps < 0)]] = True
    is_repeated[rows[1:][is_same_row & (steps == 0)]] = True
    return is_unsorted, is_repeated


def heaviest_terms(vector: SparseVectors, count: int = TOP_TERMS) -> list[tuple[int, float]]:
    """Return the dimensions and weights of the largest entries of one row, the heaviest first."""
    order = np.argsort(-np.abs(vector.values), kind="stable")[:count]
    return list(zip(vector.indices[order].tolist(), vector.values[order].tolist(), strict=True))


def load_words(vector_space: Mapping[str, Any], dim: int) -> dict[int, str]:
    """Load the words of the recorded model's vocabulary, by their number, if the model is on this machine.

    Args:
        vector_space: The metadata of an output.
        dim: Dimensions of its vectors.

    Returns:
        The words; empty if the model is not found, has no tokenizer.json, or other dimensions than words.
    """
    from embedcli.models.resolve import resolve_model

    if not vector_space.get("model"):
        return {}
    job = Job((), "-", model=str(vector_space["model"]), revision=vector_space.get("revision"), offline=True)
    try:
        files = resolve_model(job, download=False)
    except EmbedcliError:
        return {}
    return load_vocabulary(files.path, dim)
