"""Long texts as windows: split texts into sequences, and turn the sequences' vectors into rows again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.ragged import RaggedRows
from embedcli.core.vectors import normalize_rows

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray, Float32Array, Int32Array, Int64Array

CharacterSpans = Callable[[str], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class TextWindows:
    """The sequences of some texts, in the order of the texts.

    Attributes:
        sequences: What the encoder reads: a whole text, or a part of one.
        text_starts: int64 [texts + 1]; text t has the sequences text_starts[t] to text_starts[t + 1].
        character_spans: int64 [sequences, 2]; start and stop of each sequence in its text.
    """

    sequences: list[str]
    text_starts: Int64Array
    character_spans: Int64Array

    @property
    def text_indices(self) -> Int64Array:
        """int64 [sequences]: the number of the text that each sequence belongs to."""
        return RaggedRows(self.text_starts).entry_rows


def as_single_windows(texts: Sequence[str]) -> TextWindows:
    """Each text as one sequence."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    spans = np.stack([np.zeros_like(lengths), lengths], axis=1)
    return TextWindows(list(texts), np.arange(len(texts) + 1), spans)


def split_into_windows(texts: Sequence[str], is_long: BoolArray, find_spans: CharacterSpans) -> TextWindows:
    """Split the texts marked in `is_long` into the windows that `find_spans` returns; the others stay whole."""
    spans_by_text = [
        find_spans(text) if split else [(0, len(text))] for text, split in zip(texts, is_long, strict=True)
    ]
    return _build_windows(texts, spans_by_text)


def merge_empty_windows(texts: Sequence[str], windows: TextWindows, lengths: Int64Array) -> TextWindows:
    """Merge every window without a token into the one before it, or after it.

    Otherwise unknown words at the end of a text would reject all of it. A text without any token becomes one window.

    Args:
        texts: The texts.
        windows: Their windows.
        lengths: int64 [sequences]; the number of tokens of each window.
    """
    spans_by_text: list[list[tuple[int, int]]] = []
    for first, last in pairwise(windows.text_starts.tolist()):
        spans: list[tuple[int, int]] = []
        for i in range(first, last):
            start, stop = windows.character_spans[i].tolist()
            if spans and (lengths[i] == 0 or not lengths[first:i].any()):
                start, _ = spans.pop()
            spans.append((start, stop))
        spans_by_text.append(spans)
    return _build_windows(texts, spans_by_text)


def _build_windows(texts: Sequence[str], spans_by_text: Sequence[Sequence[tuple[int, int]]]) -> TextWindows:
    """The windows of texts, given by (start, stop) in characters."""
    sequences = [text[start:stop] for text, spans in zip(texts, spans_by_text, strict=True) for start, stop in spans]
    starts = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(list(map(len, spans_by_text)), out=starts[1:])
    all_spans = [span for spans in spans_by_text for span in spans]
    return TextWindows(sequences, starts, np.array(all_spans, np.int64).reshape(-1, 2))


def mean_pool_windows(
    vectors: Float32Array, weights: Int32Array, starts: Int64Array, normalize: bool | None
) -> Float32Array:
    """Pool each text's windows into one vector, their token-weighted mean.

    Args:
        vectors: float32 [sequences, dim].
        weights: int32 [sequences]; the number of tokens of each window.
        starts: int64 [texts + 1]; text t has the windows starts[t] to starts[t + 1].
        normalize: False to leave the means as they are; else they get length 1.

    Returns:
        float32 [texts, dim]. A text of a single window keeps its vector.
    """
    counts = np.diff(starts)
    if not len(counts) or (counts == 1).all():
        return vectors
    weight = weights.astype(np.float64)[:, None]
    sums = np.add.reduceat(vectors * weight, starts[:-1], axis=0)
    # A text without a token gets zeros, not a division by zero; its row is rejected.
    means = sums / np.maximum(np.add.reduceat(weight, starts[:-1], axis=0), 1)
    pooled: Float32Array = means.astype(np.float32) if normalize is False else normalize_rows(means)
    pooled[counts == 1] = vectors[starts[:-1][counts == 1]]
    return pooled


def map_rows_to_sequences(texts: Int64Array, starts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Map rows to the sequences of their texts.

    Args:
        texts: int64 [rows]; the number of each row's text.
        starts: int64 [texts + 1]; text t has the sequences starts[t] to starts[t + 1].

    Returns:
        The row and the sequence of each output row, int64 [output rows] both.
    """
    offsets, sequences = RaggedRows(starts).list_entries(texts)
    return RaggedRows(offsets).entry_rows, sequences
