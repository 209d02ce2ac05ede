"""How far a run is, how fast it goes and how long it still takes: counts and a clock in, an estimate out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from embedcli.core.progress import ExpectedRows, ProgressCounts

# Speeds are measured over this many seconds: long enough for slow batches, short enough to follow a change.
WINDOW_SECONDS = 60.0
# Samples that are closer than this are merged, so that a window has a bounded number of them.
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class ProgressEstimate:
    """The progress of a run at one moment.

    Attributes:
        done: Rows that have a vector or were rejected, those of earlier runs and reused ones included.
        total: All rows; None while nobody knows.
        is_estimated: Whether `total` is an estimate.
        fraction: The share of the rows that is done, from 0 to 1, which never falls; None without a total.
        rows_per_second: Rows that this run has computed per second; None before the first batch.
        tokens_per_second: Tokens of these rows per second; None before the first batch.
        eta_seconds: Seconds until all rows are done; None before the first batch and without a total.
        requests: Requests to a hosted model.
        billed_tokens: Tokens that its server reported.
        activity: What is done with the rows, in a word.
    """

    done: int
    total: int | None
    is_estimated: bool = False
    fraction: float | None = None
    rows_per_second: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    requests: int = 0
    billed_tokens: int = 0
    activity: str = "embedding"


class Sample(NamedTuple):
    """Rows and tokens that were computed up to a time, in seconds."""

    time: float
    rows: int
    tokens: int


class ProgressEstimator:
    """Turns the counts of a run into a `ProgressEstimate`. Times are those of the clock, nothing else.

    The remaining time counts tokens, not rows: batches have rows of different lengths, the longest first. The rate
    counts only what this run computed, neither resumed nor reused rows.

    Args:
        expected: What is known of the rows before they are read.
        clock: Returns the time in seconds; it starts to count now.
    """

    def __init__(self, expected: ExpectedRows, clock: Callable[[], float]) -> None:
        self._expected = expected
        self._clock = clock
        self._counts = ProgressCounts()
        self._samples = deque([Sample(clock(), 0, 0)])
        self._fraction = 0.0

    def update(self, counts: ProgressCounts) -> None:
        """Take over the counts of the run; called after every batch."""
        self._counts = counts = ProgressCounts(**vars(counts))
        sample = Sample(self._clock(), counts.embedded_rows, counts.embedded_tokens)
        samples = self._samples
        if sample.tokens == samples[-1].tokens and sample.rows == samples[-1].rows:
            return
        if len(samples) > 2 and samples[-1].time - samples[-2].time < SAMPLE_SECONDS:
            samples.pop()
        samples.append(sample)
        while len(samples) > 2 and samples[1].time <= sample.time - WINDOW_SECONDS:
            samples.popleft()

    def estimate(self) -> ProgressEstimate:
        """Return the progress at this moment."""
        counts, expected = self._counts, self._expected
        done = expected.finished_rows + counts.done_rows
        total, is_estimated = estimate_total(expected, counts)
        rows_per_second, tokens_per_second = self._measure_speed()
        fraction = None
        if total is not None:
            # An estimated total may grow; what people see never goes back.
            self._fraction = max(self._fraction, done / total if total else 1.0)
            fraction = self._fraction
        return ProgressEstimate(
            done=done,
            total=total,
            is_estimated=is_estimated,
            fraction=fraction,
            rows_per_second=rows_per_second,
            tokens_per_second=tokens_per_second,
            eta_seconds=self._estimate_eta(done, total, tokens_per_second, rows_per_second),
            requests=counts.requests,
            billed_tokens=counts.billed_tokens,
            activity=expected.activity,
        )

    def _measure_speed(self) -> tuple[float | None, float | None]:
        """Rows and tokens per second over the window, up to the last batch: between batches, speeds do not change."""
        first, last = self._samples[0], self._samples[-1]
        seconds = last.time - first.time
        if seconds <= 0:
            return None, None
        return (last.rows - first.rows) / seconds, (last.tokens - first.tokens) / seconds

    def _estimate_eta(
        self, done: int, total: int | None, tokens_per_second: float | None, rows_per_second: float | None
    ) -> float | None:
        if total is None or rows_per_second is None:
            return None
        if done >= total:
            return 0.0
        if tokens_per_second:
            seconds = self._count_remaining_tokens(total - done) / tokens_per_second
        elif rows_per_second:
            seconds = (total - done) / rows_per_second
        else:
            return None
        waited = self._clock() - self._samples[-1].time
        # A batch that takes longer than all that remains should have taken: the run has slowed down.
        return seconds - waited if waited < seconds else waited

    def _count_remaining_tokens(self, remaining_rows: int) -> float:
        """Tokens of the rows that are not done: counted where they are tokenized, else the mean of those that are."""
        counts = self._counts
        pending_tokens = counts.tokenized_tokens - counts.embedded_tokens
        pending_rows = counts.tokenized_rows - counts.skipped_rows - counts.embedded_rows
        tokens_per_row = counts.tokenized_tokens / max(1, counts.tokenized_rows)
        return pending_tokens + max(0, remaining_rows - pending_rows) * tokens_per_row


def estimate_total(expected: ExpectedRows, counts: ProgressCounts) -> tuple[int | None, bool]:
    """Estimate the number of all rows, those of earlier runs included.

    Args:
        expected: What is known of the rows before they are read.
        counts: What was read.

    Returns:
        The number, or None if nobody knows, and whether it is an estimate.
    """
    rows, is_estimated = _estimate_rows_to_read(expected, counts)
    if rows is not None and expected.limit is not None:
        # The run ends with the chunk that reaches the limit.
        embedded_at_most = max(expected.limit, counts.embedded_rows)
        limited = counts.resumed_rows + counts.skipped_rows + embedded_at_most
        rows, is_estimated = min((rows, is_estimated), (limited, True))
    return (None if rows is None else expected.finished_rows + rows), is_estimated


def _estimate_rows_to_read(expected: ExpectedRows, counts: ProgressCounts) -> tuple[int | None, bool]:
    if counts.splits_read >= expected.splits_to_read:
        return counts.rows_read, False
    if expected.rows_to_read is not None:
        return expected.rows_to_read, False
    if expected.bytes_to_read is None or not counts.bytes_read:
        return None, True
    unread = max(0, expected.bytes_to_read - counts.bytes_read) * counts.rows_read / counts.bytes_read
    return counts.rows_read + round(unread), True
