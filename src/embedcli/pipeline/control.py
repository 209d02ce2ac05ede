"""When a run stops early."""

from __future__ import annotations

import time
from threading import Event


class RunControl:
    """Stops a run: at the next batch, or before the next chunk by --stop-after and --max-seconds.

    Attributes:
        stop_event: Set it to drop the chunk that is being encoded.
        has_started: Whether rows flow: from then on a stop keeps what is finished.
        reason: Why the run stops; None if it does not.
        deadline: When --max-seconds are over, in seconds of `time.monotonic`; None without it.
    """

    def __init__(self, stop_after: int | None = None, max_seconds: float | None = None) -> None:
        self.stop_event = Event()
        self.has_started = False
        self.reason: str | None = None
        self._stop_after = stop_after
        self._rows = 0
        self.deadline = None if max_seconds is None else time.monotonic() + max_seconds

    def remaining_seconds(self) -> float | None:
        """Seconds left of --max-seconds; None without it."""
        return None if self.deadline is None else max(0.001, self.deadline - time.monotonic())

    def stop(self, reason: str) -> None:
        """Stop at the next batch."""
        self.reason = reason
        self.stop_event.set()

    def stop_if_time_is_over(self) -> bool:
        """Stop at the next batch if --max-seconds are over. Returns whether the run stops, for any reason."""
        if not self.stop_event.is_set() and self._is_past_deadline():
            self.stop("--max-seconds")
        return self.stop_event.is_set()

    def _is_past_deadline(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def should_stop_before_chunk(self, rows: int) -> bool:
        """Whether the next chunk, of so many rows, may not start. The first chunk with rows always may."""
        if self._rows == 0 or rows == 0:
            self._rows += rows
            return self.stop_event.is_set()
        if self._stop_after is not None and self._rows >= self._stop_after:
            self.reason = f"--stop-after {self._stop_after}"
        elif self._is_past_deadline():
            self.reason = "--max-seconds"
        else:
            self._rows += rows
            return self.stop_event.is_set()
        return True
