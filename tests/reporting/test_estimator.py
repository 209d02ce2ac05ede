"""The estimate of progress: rows, rates and remaining time of simulated runs, with a clock that only they move."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from embedcli.core.progress import ExpectedRows, ProgressCounts
from embedcli.reporting.progress.estimator import WINDOW_SECONDS, ProgressEstimate, ProgressEstimator

TOKENS_PER_SECOND = 1000.0
BYTES_PER_TOKEN = 5


@dataclass
class SimulatedRun:
    """Reads and tokenizes chunks ahead, and computes them in batches of similar length, the longest first.

    Attributes:
        lengths: Tokens of each row; rows with 0 tokens are reused from another output.
        resumed: How many chunks at the beginning were finished by an earlier run.
    """

    lengths: Sequence[int]
    chunk_rows: int = 200
    batch_tokens: int = 640
    resumed: int = 0
    counts: ProgressCounts = field(default_factory=ProgressCounts)
    now: float = 100.0

    def read(self, start: int) -> list[int]:
        chunk = list(self.lengths[start : start + self.chunk_rows])
        self.counts.rows_read += len(chunk)
        self.counts.bytes_read += sum(BYTES_PER_TOKEN * length + 20 for length in chunk)
        self.counts.splits_read += start + self.chunk_rows >= len(self.lengths)
        if start < self.resumed * self.chunk_rows:
            self.counts.resumed_rows += len(chunk)
            return []
        self.counts.tokenized_rows += len(chunk)
        self.counts.tokenized_tokens += sum(chunk)
        return chunk

    def compute(self) -> Iterator[int]:
        """Yield the rows of each batch once it is computed; one chunk is always read ahead."""
        starts = range(0, len(self.lengths), self.chunk_rows)
        following = self.read(0)
        for start in starts:
            chunk, following = following, self.read(start + self.chunk_rows) if start + 1 <= starts[-1] else []
            self.counts.skipped_rows += chunk.count(0)
            rows = sorted((length for length in chunk if length), reverse=True)
            while rows:
                size = max(1, self.batch_tokens // rows[0])
                batch, rows = rows[:size], rows[size:]
                self.now += sum(batch) / TOKENS_PER_SECOND
                self.counts.embedded_rows += len(batch)
                self.counts.embedded_tokens += sum(batch)
                self.counts.batches += 1
                yield len(batch)

    def estimates(self, expected: ExpectedRows) -> Iterator[tuple[float, int, ProgressEstimate]]:
        """Yield the time, the rows of the batch and the estimate after each batch."""
        estimator = ProgressEstimator(expected, lambda: self.now)
        for rows in self.compute():
            estimator.update(self.counts)
            yield self.now, rows, estimator.estimate()


def rows_of(count: int, seed: int = 3) -> list[int]:
    chance = random.Random(seed)
    return [chance.choice((4, 8, 30, 120)) for _ in range(count)]


EXPECTED = {
    "footer": ExpectedRows(rows_to_read=1990),
    "bytes": ExpectedRows(bytes_to_read=sum(5 * n + 20 for n in rows_of(1990))),
    "stream": ExpectedRows(),
}


@pytest.mark.parametrize("known", EXPECTED)
def test_rows_rise_with_every_batch_to_the_end(known: str) -> None:
    run = SimulatedRun(rows_of(1990))
    seen, done = 0.0, 0
    for _, rows, estimate in run.estimates(EXPECTED[known]):
        done += rows
        assert estimate.done == done
        if estimate.fraction is not None:
            assert estimate.fraction >= seen
            seen = estimate.fraction
    assert (estimate.done, estimate.total, estimate.fraction, estimate.is_estimated) == (1990, 1990, 1.0, False)
    assert estimate.eta_seconds == 0


@pytest.mark.parametrize("known", ["footer", "bytes"])
@pytest.mark.parametrize("resumed", [0, 4])
def test_remaining_time_at_half_time_is_close(known: str, resumed: int) -> None:
    run = SimulatedRun(rows_of(1990), resumed=resumed)
    history = list(run.estimates(EXPECTED[known]))
    begin, end = 100.0, history[-1][0]
    now, _, estimate = min(history, key=lambda entry: abs(entry[0] - (begin + end) / 2))
    assert estimate.eta_seconds is not None
    assert (end - now) / 1.5 < estimate.eta_seconds < (end - now) * 1.5
    assert estimate.tokens_per_second == pytest.approx(TOKENS_PER_SECOND)


def test_remaining_time_counts_tokens() -> None:
    """Short rows remain of a chunk whose long ones are done: by rows, the rest would seem to take much longer."""
    run = SimulatedRun([1000] * 10 + [1] * 90, chunk_rows=100, batch_tokens=1000)
    history = list(run.estimates(ExpectedRows(rows_to_read=100)))
    _, _, estimate = history[9]
    assert estimate.done == 10
    assert estimate.eta_seconds == pytest.approx(0.09)


def test_rows_of_earlier_runs_are_done_and_not_in_the_rate() -> None:
    run = SimulatedRun([10] * 1000, resumed=4)
    _, rows, first = next(run.estimates(ExpectedRows(finished_rows=500, rows_to_read=1000)))
    assert (first.done, first.total) == (500 + 800 + rows, 1500)
    assert first.rows_per_second == pytest.approx(TOKENS_PER_SECOND / 10)


def test_reused_rows_are_done_and_not_in_the_rate() -> None:
    run = SimulatedRun([0, 10] * 500)
    history = list(run.estimates(ExpectedRows(rows_to_read=1000)))
    now, _, estimate = history[len(history) // 2]
    assert estimate.rows_per_second == pytest.approx(TOKENS_PER_SECOND / 10)
    assert estimate.eta_seconds == pytest.approx(history[-1][0] - now, rel=0.5)
    assert history[-1][2].done == 1000


def test_remaining_time_counts_down_between_batches() -> None:
    run = SimulatedRun([10] * 1000)
    estimator = ProgressEstimator(ExpectedRows(rows_to_read=1000), lambda: run.now)
    next(run.compute())
    estimator.update(run.counts)
    first = estimator.estimate().eta_seconds
    assert first == pytest.approx(9.36)
    run.now += 2
    assert estimator.estimate().eta_seconds == pytest.approx(7.36)
    run.now += 60
    assert estimator.estimate().eta_seconds == pytest.approx(62)


def test_speed_is_that_of_the_last_minute() -> None:
    counts, now = ProgressCounts(), 0.0
    estimator = ProgressEstimator(ExpectedRows(), lambda: now)
    for second in range(200):
        now = float(second + 1)
        counts.embedded_rows += 100 if second < 100 else 1
        counts.embedded_tokens += 1000 if second < 100 else 10
        estimator.update(counts)
    assert now > WINDOW_SECONDS
    estimate = estimator.estimate()
    assert (estimate.rows_per_second, estimate.tokens_per_second) == (1, 10)


def test_nothing_is_known_before_the_first_batch() -> None:
    estimator = ProgressEstimator(ExpectedRows(), lambda: 0.0)
    estimator.update(ProgressCounts(rows_read=50, tokenized_rows=50, tokenized_tokens=500))
    assert estimator.estimate() == ProgressEstimate(done=0, total=None, is_estimated=True)


def test_the_total_is_estimated_from_the_bytes_that_rows_took() -> None:
    estimator = ProgressEstimator(ExpectedRows(finished_rows=5, bytes_to_read=1000), lambda: 0.0)
    assert estimator.estimate().total is None
    estimator.update(ProgressCounts(rows_read=10, bytes_read=100))
    assert (estimator.estimate().total, estimator.estimate().is_estimated) == (105, True)
    estimator.update(ProgressCounts(rows_read=94, bytes_read=1000, splits_read=1))
    assert (estimator.estimate().total, estimator.estimate().is_estimated) == (99, False)


def test_a_limit_bounds_the_total() -> None:
    estimator = ProgressEstimator(ExpectedRows(rows_to_read=1000, limit=50), lambda: 0.0)
    estimator.update(ProgressCounts(rows_read=300, resumed_rows=200, tokenized_rows=100, embedded_rows=25))
    estimate = estimator.estimate()
    assert (estimate.done, estimate.total) == (225, 250)


def test_an_empty_input_is_done() -> None:
    estimator = ProgressEstimator(ExpectedRows(rows_to_read=0), lambda: 0.0)
    assert estimator.estimate().fraction == 1


def test_counts_of_workers_add_up() -> None:
    counts = ProgressCounts(rows_read=1, embedded_rows=2)
    counts.add(ProgressCounts(rows_read=10, embedded_rows=20, requests=3))
    assert counts == ProgressCounts(rows_read=11, embedded_rows=22, requests=3)
