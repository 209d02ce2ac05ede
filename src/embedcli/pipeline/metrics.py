"""Counters and timers of a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from embedcli.core.progress import ProgressCounts
from embedcli.pipeline.prefetch import close_iterator

A = TypeVar("A")
_END = object()
STAGES = ("read", "tokenize", "forward", "write")
# A timeline has at most this many bins; their width starts at INITIAL_BIN_SECONDS and doubles as the run goes on.
MAX_TIMELINE_BINS = 512
INITIAL_BIN_SECONDS = 0.01


@dataclass
class StageTimeline:
    """When a stage was busy, in constant memory: the busy seconds in each bin of `bin_seconds`."""

    bin_seconds: float = INITIAL_BIN_SECONDS
    bins: list[float] = field(default_factory=list)

    def add(self, start: float, stop: float, weight: float = 1.0) -> None:
        """Count a busy time, in seconds since the run started; for one of several workers, by its `weight`."""
        while stop >= self.bin_seconds * MAX_TIMELINE_BINS:
            self.double_bin_width()
        last = int(stop / self.bin_seconds)
        self.bins += [0.0] * (last + 1 - len(self.bins))
        for i in range(int(start / self.bin_seconds), last + 1):
            self.bins[i] += weight * (min(stop, (i + 1) * self.bin_seconds) - max(start, i * self.bin_seconds))

    def add_timeline(self, other: StageTimeline, offset: float, weight: float) -> None:
        """Add another timeline, which started `offset` seconds after this one, with a weight."""
        for i, busy in enumerate(other.bins):
            if busy > 0:
                start = offset + i * other.bin_seconds
                self.add(start, start + other.bin_seconds, weight * busy / other.bin_seconds)

    def double_bin_width(self) -> None:
        """Double the width of the bins."""
        bins = [*self.bins, 0.0]
        self.bins = [bins[i] + bins[i + 1] for i in range(0, len(self.bins), 2)]
        self.bin_seconds *= 2

    def busy_shares(self, width: float) -> list[float]:
        """The busy share of each bin of `width` seconds, a power of two times `bin_seconds`."""
        timeline = StageTimeline(self.bin_seconds, list(self.bins))
        while timeline.bin_seconds < width:
            timeline.double_bin_width()
        return [min(1.0, round(busy / timeline.bin_seconds, 3)) for busy in timeline.bins]


@dataclass
class MetricsCollector:
    """Counters and timers of a run. Each field is written by one stage only; `seconds` are busy seconds per stage.

    `progress` counts per batch what the other fields count per chunk; of a run with workers, it holds all of them.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    rows: int = 0
    reused: int = 0
    duplicates: int = 0
    tokens: int = 0
    fed_tokens: int = 0
    padded_tokens: int = 0
    batches: int = 0
    sequences: int = 0
    idle_seconds: float = 0.0
    forward_seconds: float = 0.0
    retried_rows: int = 0
    out_of_memory: int = 0
    batch_tokens: int = 0
    bytes_read: int = 0
    busy_since: dict[str, float] = field(default_factory=dict)
    progress: ProgressCounts = field(default_factory=ProgressCounts)
    last_heartbeat: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.perf_counter)
    embedding_started: float | None = None
    embedding_ended: float | None = None
    timelines: dict[str, StageTimeline] = field(default_factory=lambda: {name: StageTimeline() for name in STAGES})

    def mark_embedding_start(self) -> None:
        """Note that the encoder is loaded and rows start to flow; only the first call counts."""
        if self.embedding_started is None:
            self.embedding_started = time.perf_counter()

    def mark_embedding_end(self) -> None:
        """Note that the last row is done."""
        self.embedding_ended = time.perf_counter()

    @property
    def startup_seconds(self) -> float | None:
        """Seconds until rows started to flow; None if they never did."""
        return None if self.embedding_started is None else self.embedding_started - self.started

    @property
    def embedding_seconds(self) -> float | None:
        """Seconds in which rows flowed; None if they never did."""
        if self.embedding_started is None:
            return None
        return (self.embedding_ended or time.perf_counter()) - self.embedding_started

    @contextmanager
    def time_stage(self, name: str) -> Iterator[None]:
        """Count the time spent in the body as busy seconds of stage `name`."""
        started = time.perf_counter()
        self.busy_since[name] = time.monotonic()
        try:
            yield
        finally:
            ended = time.perf_counter()
            self.seconds[name] += ended - started
            self.timelines[name].add(started - self.started, ended - self.started)
            self.busy_since.pop(name, None)
            self.last_heartbeat = time.monotonic()

    def timeline(self) -> dict[str, Any] | None:
        """Busy shares over time: `seconds` per bin, and for each stage `busy` [bins]. None if nothing was timed."""
        width = max(timeline.bin_seconds for timeline in self.timelines.values())
        busy = {name: timeline.busy_shares(width) for name, timeline in self.timelines.items()}
        length = max(map(len, busy.values()))
        if not length:
            return None
        return {
            "seconds": width,
            "busy": {name: shares + [0.0] * (length - len(shares)) for name, shares in busy.items()},
        }

    def add_worker(self, worker: MetricsCollector, workers: int, *, one_clock: bool) -> None:
        """Add the counts of a worker to those of the run; `rows` and `bytes_read` are counted by the run.

        Args:
            worker: What the worker has counted since it was last added.
            workers: How many workers compute at once; its idle and forward seconds are divided by this number.
            one_clock: Whether the worker runs on this machine, so that its timeline fits into the run's.
        """
        offset = worker.started - self.started
        for name in self.seconds:
            self.seconds[name] += worker.seconds[name]
            if one_clock:
                self.timelines[name].add_timeline(worker.timelines[name], offset, 1 / workers)
        self.reused += worker.reused
        self.duplicates += worker.duplicates
        self.tokens += worker.tokens
        self.fed_tokens += worker.fed_tokens
        self.padded_tokens += worker.padded_tokens
        self.batches += worker.batches
        self.sequences += worker.sequences
        self.retried_rows += worker.retried_rows
        self.out_of_memory += worker.out_of_memory
        self.batch_tokens = max(self.batch_tokens, worker.batch_tokens)
        self.idle_seconds += worker.idle_seconds / workers
        self.forward_seconds += worker.forward_seconds / workers

    def time_items(self, name: str, items: Iterable[A]) -> Iterator[A]:
        """Yield `items`, and count the time that each takes to compute as busy seconds of stage `name`."""
        source = iter(items)
        try:
            while True:
                with self.time_stage(name):
                    item = next(source, _END)
                if item is _END:
                    return
                yield item  # type: ignore[misc]
        finally:
            close_iterator(source)
