"""How a run is stopped."""

from __future__ import annotations

import time
from threading import Event


class RunControl:
    """When to stop early: `now` drops the chunk in hand, `soon` lets it finish and starts no other.

    `begun` is set once rows flow: from then on a stop is orderly, before it there is nothing to keep.
    """

    def __init__(self, limit: int | None = None, max_seconds: float | None = None) -> None:
        self.stop_event = Event()
        self.has_started = False
        self.reason: str | None = None
        self._limit = limit
        self._rows = 0
        self._until = None if max_seconds is None else time.monotonic() + max_seconds

    def remaining_seconds(self) -> float | None:
        """Seconds left of --max-seconds; None without it."""
        return None if self._until is None else max(0.001, self._until - time.monotonic())

    def stop(self, reason: str) -> None:
        """Ask for a stop at the next batch."""
        self.reason = reason
        self.stop_event.set()

    def should_stop_before_chunk(self, rows: int) -> bool:
        """Whether no further chunk may begin; `rows` are those of the chunk that would. One chunk always may."""
        if self._rows == 0 or rows == 0:
            self._rows += rows
            return self.stop_event.is_set()
        if self._limit is not None and self._rows >= self._limit:
            self.reason = f"--limit {self._limit}"
        elif self._until is not None and time.monotonic() >= self._until:
            self.reason = "--max-seconds"
        else:
            self._rows += rows
            return self.stop_event.is_set()
        return True
