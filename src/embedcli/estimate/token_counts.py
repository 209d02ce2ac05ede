"""Tokens, cut rows and output rows of texts: summed over all rows, or estimated from a random sample of them."""

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

# What is known of one row: tokens of the text and of the part that is read, how many of them are sent (none for a
# text that stands earlier in its chunk), whether it is cut, its output rows, and why it gets none.
COUNT_NAMES = ("tokens", "read", "sent", "cut", "outputs", "empty", "too_long")
SENT_INDEX = COUNT_NAMES.index("sent")


def count_tokens(texts: Sequence[str], encoder: TextTokenizer, settings: EncodingSettings) -> Any:
    """float64 [len(texts), len(NAMES)]: the numbers of each text, as the engine would treat it."""
    if not texts:
        return np.zeros((0, len(COUNT_NAMES)))
    windows, tokens = preparation.tokenize_with_overflow(list(texts), encoder, settings)
    starts = windows.text_starts[:-1]
    full, read = (
        np.add.reduceat(counts.astype(np.int64), starts) for counts in (tokens.untruncated_lengths, tokens.lengths)
    )
    empty = np.minimum.reduceat(tokens.lengths, starts) == 0
    cut = ~empty & (full > read)
    too_long = cut & (settings.overflow in ("error", "reject"))
    good = ~(empty | too_long)
    outputs = np.diff(windows.text_starts) if settings.overflow == "split" else np.ones(len(texts), np.int64)
    return np.stack(
        [full * good, read * good, read * good, cut & good, outputs * good, empty, too_long], axis=1
    ).astype(np.float64)


class ReservoirSampler:
    """Which of the rows seen so far make up a random sample of at most `size` rows.

    Algorithm R: Vitter, Random sampling with a reservoir, ACM TOMS 11 (1985). The same choice on every run.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.rows_seen = 0
        self._chance = np.random.default_rng(seed)

    def choose_slots(self, count: int) -> list[tuple[int, int]]:
        """(row, slot) of those among `count` new rows that enter the sample; of two in one slot the later stays."""
        numbers = np.arange(self.rows_seen, self.rows_seen + count)
        slots = np.where(numbers < self.size, numbers, self._chance.integers(0, numbers + 1))
        self.rows_seen += count
        return [(int(row), int(slots[row])) for row in np.flatnonzero(slots < self.size)]


@dataclass
class TokenCounts:
    """The numbers of many rows; with `sample`, those of a random sample, from which the totals are estimated."""

    sample_rows: int | None = None
    rows: int = 0
    _sums: Any = field(default_factory=lambda: np.zeros(len(COUNT_NAMES)))
    _sampled: dict[int, Any] = field(default_factory=dict)
    _reservoir: ReservoirSampler | None = None

    def __post_init__(self) -> None:
        if self.sample_rows is not None:
            self._reservoir = ReservoirSampler(self.sample_rows)

    def add(self, texts: Sequence[str], encoder: Any, settings: EncodingSettings) -> None:
        """Count the rows of one chunk; each distinct text is tokenized once, in a sample only the chosen ones."""
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
        """How many rows the totals were made from."""
        return self.rows if self.sample_rows is None else len(self._sampled)

    def totals(self) -> dict[str, float]:
        """Of all rows: the sum of each number, or the sample's mean times the rows."""
        if self.sample_rows is None or not self._sampled:
            return dict(zip(COUNT_NAMES, self._sums.tolist(), strict=True))
        means = np.stack(list(self._sampled.values())).mean(axis=0)
        return dict(zip(COUNT_NAMES, (means * self.rows).tolist(), strict=True))

    def standard_errors(self) -> dict[str, float]:
        """The standard error of each total: N s / sqrt(n), less the share of rows that were seen; 0 when exact.

        Simple random sampling without replacement: Cochran, Sampling Techniques, 3rd ed., section 2.6.
        """
        n = self.counted_rows
        if n >= self.rows or n < 2:
            return dict.fromkeys(COUNT_NAMES, 0.0 if n >= self.rows else float("nan"))
        spread = np.stack(list(self._sampled.values())).std(axis=0, ddof=1)
        made = self.rows * spread / np.sqrt(n) * np.sqrt(1 - n / self.rows)
        return dict(zip(COUNT_NAMES, made.tolist(), strict=True))


def first_occurrences(texts: Sequence[str]) -> dict[str, int]:
    """Where each distinct text stands first."""
    made: dict[str, int] = {}
    for row, text in enumerate(texts):
        made.setdefault(text, row)
    return made


class DistinctTextCounter:
    """How many distinct texts there are. Memory: 8 bytes a row.

    Two of 64-bit hashes are equal by chance once in 2**64 pairs: for 10**8 texts the count is right but for 0.0003.
    """

    def __init__(self) -> None:
        self._hashes: list[Int64Array] = []

    def add(self, texts: Sequence[str]) -> None:
        hashes = preparation.hash_texts(texts, "")
        self._hashes.append(np.ascontiguousarray(hashes[:, :8]).view(np.int64).ravel())

    def count(self) -> int:
        return len(np.unique(np.concatenate(self._hashes))) if self._hashes else 0
