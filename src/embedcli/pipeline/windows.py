"""Long texts as windows: which sequences a text becomes, and how their vectors become rows again. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray, Float32Array, Int32Array, Int64Array

CharacterSpans = Callable[[str], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class TextWindows:
    """Sequences in the order of their texts: text t owns sequences `starts[t]` to `starts[t + 1]`.

    `spans` is int64 [sequences, 2]: the characters of its text that a sequence covers.
    """

    sequences: list[str]
    text_starts: Int64Array
    character_spans: Int64Array

    @property
    def text_indices(self) -> Int64Array:
        """int64 [sequences]: the text each sequence belongs to."""
        return np.repeat(np.arange(len(self.text_starts) - 1), np.diff(self.text_starts))


def as_single_windows(texts: Sequence[str]) -> TextWindows:
    """Each text as one sequence."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    spans = np.stack([np.zeros_like(lengths), lengths], axis=1)
    return TextWindows(list(texts), np.arange(len(texts) + 1), spans)


def split_into_windows(texts: Sequence[str], long: BoolArray, spans_of: CharacterSpans) -> TextWindows:
    """Texts marked `long` as the windows that `spans_of` finds in them, the others whole."""
    return _cut(texts, [spans_of(text) if cut else [(0, len(text))] for text, cut in zip(texts, long, strict=True)])


def merge_empty_windows(texts: Sequence[str], windows: TextWindows, lengths: Int64Array) -> TextWindows:
    """The same with every window that has no token (`lengths` 0) made part of the one before it, or after it.

    Words that the encoder does not know, at the end of a text, are no reason to refuse the whole of it. A text
    without any token is one window.
    """
    every: list[list[tuple[int, int]]] = []
    for first, last in pairwise(windows.text_starts.tolist()):
        found: list[tuple[int, int]] = []
        for i in range(first, last):
            start, stop = windows.character_spans[i].tolist()
            if found and (lengths[i] == 0 or not lengths[first:i].any()):
                start, _ = found.pop()
            found.append((start, stop))
        every.append(found)
    return _cut(texts, every)


def _cut(texts: Sequence[str], every: Sequence[Sequence[tuple[int, int]]]) -> TextWindows:
    """Each text as its windows, given by their first characters and those behind their last."""
    sequences = [text[start:stop] for text, found in zip(texts, every, strict=True) for start, stop in found]
    starts = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(list(map(len, every)), out=starts[1:])
    spans = [span for found in every for span in found]
    return TextWindows(sequences, starts, np.array(spans, np.int64).reshape(-1, 2))


def mean_pool_windows(
    vectors: Float32Array, weights: Int32Array, starts: Int64Array, normalize: bool | None
) -> Float32Array:
    """Token-weighted mean of each text's windows: float32 [texts, dim] from [sequences, dim].

    A text of several windows is renormalised to length 1 unless `normalize` is False; one of a single window
    keeps its vector as it is.
    """
    counts = np.diff(starts)
    if not len(counts) or (counts == 1).all():
        return vectors
    weight = weights.astype(np.float64)[:, None]
    sums = np.add.reduceat(vectors * weight, starts[:-1], axis=0)
    # A text without a token gets zeros, not a division by zero; its row is rejected.
    means = sums / np.maximum(np.add.reduceat(weight, starts[:-1], axis=0), 1)
    if normalize is not False:
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    means[counts == 1] = vectors[starts[:-1][counts == 1]]
    return means.astype(np.float32)


def map_rows_to_sequences(texts: Int64Array, starts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """For rows that hold texts `texts`: which row each output row belongs to, and its sequence."""
    counts = np.diff(starts)[texts]
    rows = np.repeat(np.arange(len(texts)), counts)
    ends = np.cumsum(counts)
    inside = np.arange(len(rows)) - np.repeat(ends - counts, counts)
    return rows, starts[:-1][texts][rows] + inside
