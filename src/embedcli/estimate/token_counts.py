"""Count tokens, truncated rows and output rows over all rows, or estimate them from a random sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.pipeline import preparation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedcli.core.encoder import TextTokenizer
    from embedcli.core.types import Int64Array
    from embedcli.pipeline.preparation import EncodingSettings

# Numbers of one row: tokens of the text, tokens after truncation, tokens sent to the model (0 for a duplicate within
# its chunk), whether it is truncated, its output rows, and whether it is rejected as empty or too long.
COUNT_NAMES = ("tokens", "read", "sent", "cut", "outputs", "empty", "too_long")
SENT_INDEX = COUNT_NAMES.index("sent")


def count_tokens(texts: Sequence[str], encoder: TextTokenizer, settings: EncodingSettings) -> Any:
    """Count the numbers in COUNT_NAMES for each text, as the engine would treat it: float64 [texts, names]."""
    if not texts:
        return np.zeros((0, len(COUNT_NAMES)))
    windows, tokens = preparation.tokenize_with_overflow(list(texts), encoder, settings)
    starts = windows.text_starts[:-1]
    untruncated, read = (
        np.add.reduceat(counts.astype(np.int64), starts) for counts in (tokens.untruncated_lengths, tokens.lengths)
    )
    empty = np.minimum.reduceat(tokens.lengths, starts) == 0
    cut = ~empty & (untruncated > read)
    too_long = cut & (settings.overflow in ("error", "reject"))
    good = ~(empty | too_long)
    outputs = np.diff(windows.text_starts) if settings.overflow == "split" else np.ones(len(texts), np.int64)
    return np.stack(
        [untruncated * good, read * good, read * good, cut & good, outputs * good, empty, too_long], axis=1
    ).astype(np.float64)


class ReservoirSampler:
    """Chooses a random sample of at most `size` rows from a stream; the same seed gives the same sample.

    Algorithm R: Vitter, Random sampling with a reservoir, ACM TOMS 11 (1985).
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.rows_seen = 0
        self._random = np.random.default_rng(seed)

    def choose_slots(self, count: int) -> list[tuple[int, int]]:
        """Return (row, slot) for each of `count` new rows that enters the sample; later rows replace earlier ones."""
        numbers = np.arange(self.rows_seen, self.rows_seen + count)
        slots = np.where(numbers < self.size, numbers, self._random.integers(0, numbers + 1))
        self.rows_seen += count
        return [(int(row), int(slots[row])) for row in np.flatnonzero(slots < self.size)]


@dataclass
class TokenCounts:
    """Sums of the counts of all rows, or estimates from a random sample of `sample_rows` rows."""

    sample_rows: int | None = None
    rows: int = 0
    _sums: Any = field(default_factory=lambda: np.zeros(len(COUNT_NAMES)))
    _sampled: dict[int, Any] = field(default_factory=dict)
    _reservoir: ReservoirSampler | None = None

    def __post_init__(self) -> None:
        if self.sample_rows is not None:
            self._reservoir = ReservoirSampler(self.sample_rows)

    def add(self, texts: Sequence[str], encoder: Any, settings: EncodingSettings) -> None:
        """Count the rows of one chunk, or those of them that enter the sample. Each distinct text is tokenized once."""
        self.rows += len(texts)
        entering = self._reservoir.choose_slots(len(texts)) if self._reservoir is not None else None
        chosen = range(len(texts)) if entering is None else [row for row, _ in entering]
        distinct: dict[str, int] = {}
        inverse = [distinct.setdefault(texts[row], len(distinct)) for row in chosen]
        numbers = count_tokens(list(distinct), encoder, settings)[inverse]
        first = first_occurrences(texts)
        numbers[:, SENT_INDEX] *= [first[texts[row]] == row for row in chosen]
        if entering is None:
            self._sums += numbers.sum(axis=0)
        else:
            self._sampled |= {slot: numbers[i] for i, (_, slot) in enumerate(entering)}

    @property
    def counted_rows(self) -> int:
        """Number of rows that were tokenized."""
        return self.rows if self.sample_rows is None else len(self._sampled)

    def totals(self) -> dict[str, float]:
        """Return the total of each count: the sum over all rows, or the mean of the sample times the number of rows."""
        if self.sample_rows is None or not self._sampled:
            return dict(zip(COUNT_NAMES, self._sums.tolist(), strict=True))
        means = np.stack(list(self._sampled.values())).mean(axis=0)
        return dict(zip(COUNT_NAMES, (means * self.rows).tolist(), strict=True))

    def standard_errors(self) -> dict[str, float]:
        """Return the standard error of each total, N s / sqrt(n) sqrt(1 - n / N); 0 if all rows were counted.

        Simple random sampling without replacement: Cochran, Sampling Techniques, 3rd ed., section 2.6.
        """
        n = self.counted_rows
        if n >= self.rows or n < 2:
            return dict.fromkeys(COUNT_NAMES, 0.0 if n >= self.rows else float("nan"))
        spread = np.stack(list(self._sampled.values())).std(axis=0, ddof=1)
        errors = self.rows * spread / np.sqrt(n) * np.sqrt(1 - n / self.rows)
        return dict(zip(COUNT_NAMES, errors.tolist(), strict=True))


def first_occurrences(texts: Sequence[str]) -> dict[str, int]:
    """Return the index of the first occurrence of each distinct text."""
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        first.setdefault(text, row)
    return first


class DistinctTextCounter:
    """Counts distinct texts by 64-bit hashes, with 8 bytes of memory per row.

    Two different texts have the same hash with probability 2**-64: for 10**8 texts the expected error is 0.0003.
    """

    def __init__(self) -> None:
        self._hashes: list[Int64Array] = []

    def add(self, texts: Sequence[str]) -> None:
        hashes = preparation.hash_texts(texts, "")
        self._hashes.append(np.ascontiguousarray(hashes[:, :8]).view(np.int64).ravel())

    def count(self) -> int:
        return len(np.unique(np.concatenate(self._hashes))) if self._hashes else 0
