"""What the stages count, and when to stop early."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from embedcli.pipeline.prefetch import close_iterator

A = TypeVar("A")
_END = object()
STAGES = ("read", "tokenize", "forward", "write")
# A lane of a run's picture has at most so many bins; they begin at this width and double as the run goes on.
MAX_TIMELINE_BINS = 512
INITIAL_BIN_SECONDS = 0.01


@dataclass
class StageTimeline:
    """When a stage was busy, in constant memory: `bins` of `width` seconds each, every one with its busy seconds."""

    bin_seconds: float = INITIAL_BIN_SECONDS
    bins: list[float] = field(default_factory=list)

    def add(self, begun: float, ended: float, weight: float = 1.0) -> None:
        """Count a busy time, in seconds since the run began; of one of several workers only its `weight`."""
        while ended >= self.bin_seconds * MAX_TIMELINE_BINS:
            self.double_bin_width()
        last = int(ended / self.bin_seconds)
        self.bins += [0.0] * (last + 1 - len(self.bins))
        for i in range(int(begun / self.bin_seconds), last + 1):
            self.bins[i] += weight * (min(ended, (i + 1) * self.bin_seconds) - max(begun, i * self.bin_seconds))

    def add_timeline(self, other: StageTimeline, later: float, weight: float) -> None:
        """Add another lane, which began `later` seconds after this one, with a weight."""
        for i, busy in enumerate(other.bins):
            if busy > 0:
                begun = later + i * other.bin_seconds
                self.add(begun, begun + other.bin_seconds, weight * busy / other.bin_seconds)

    def double_bin_width(self) -> None:
        """Double the width of the bins."""
        bins = [*self.bins, 0.0]
        self.bins = [bins[i] + bins[i + 1] for i in range(0, len(self.bins), 2)]
        self.bin_seconds *= 2

    def busy_shares(self, width: float) -> list[float]:
        """The busy share of each bin of `width` seconds, a power of two times this lane's own."""
        lane = StageTimeline(self.bin_seconds, list(self.bins))
        while lane.bin_seconds < width:
            lane.double_bin_width()
        return [min(1.0, round(busy / lane.bin_seconds, 3)) for busy in lane.bins]


@dataclass
class MetricsCollector:
    """What the stages counted. Each field is written by one stage only; seconds are busy seconds per stage."""

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
    last_heartbeat: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.perf_counter)
    timelines: dict[str, StageTimeline] = field(default_factory=lambda: {name: StageTimeline() for name in STAGES})

    @contextmanager
    def time_stage(self, name: str) -> Iterator[None]:
        """Count the time spent inside as busy seconds of stage `name`."""
        begun = time.perf_counter()
        self.busy_since[name] = time.monotonic()
        try:
            yield
        finally:
            ended = time.perf_counter()
            self.seconds[name] += ended - begun
            self.timelines[name].add(begun - self.started, ended - self.started)
            self.busy_since.pop(name, None)
            self.last_heartbeat = time.monotonic()

    def timeline(self) -> dict[str, Any] | None:
        """Busy shares over time: `seconds` per bin, and for each stage `busy` [bins]. None if nothing was timed."""
        width = max(lane.bin_seconds for lane in self.timelines.values())
        busy = {name: lane.busy_shares(width) for name, lane in self.timelines.items()}
        length = max(map(len, busy.values()))
        return (
            {
                "seconds": width,
                "busy": {name: shares + [0.0] * (length - len(shares)) for name, shares in busy.items()},
            }
            if length
            else None
        )

    def add_worker(self, part: MetricsCollector, workers: int, *, one_clock: bool) -> None:
        """Add the counts of a worker to those of the run; `rows` and `done_bytes` are the run's own.

        Args:
            part: What the worker has counted since it was last added.
            workers: How many workers compute at once: so much of its device's seconds are seconds of the run.
            one_clock: Whether the worker runs on this machine, so that its timeline fits into the run's.
        """
        later = part.started - self.started
        for name in self.seconds:
            self.seconds[name] += part.seconds[name]
            if one_clock:
                self.timelines[name].add_timeline(part.timelines[name], later, 1 / workers)
        self.reused += part.reused
        self.duplicates += part.duplicates
        self.tokens += part.tokens
        self.fed_tokens += part.fed_tokens
        self.padded_tokens += part.padded_tokens
        self.batches += part.batches
        self.sequences += part.sequences
        self.retried_rows += part.retried_rows
        self.out_of_memory += part.out_of_memory
        self.batch_tokens = max(self.batch_tokens, part.batch_tokens)
        self.idle_seconds += part.idle_seconds / workers
        self.forward_seconds += part.forward_seconds / workers

    def time_items(self, name: str, items: Iterable[A]) -> Iterator[A]:
        """Yield `items`, counting the time each takes to make as busy seconds of stage `name`."""
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
