"""Progress as lines, for logs: often at first, then every minute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TextIO

from embedcli.reporting.progress.estimator import ProgressEstimate
from embedcli.reporting.progress.renderer import NoRenderer
from embedcli.reporting.progress.wording import Phase, describe_numbers

FIRST_INTERVAL_SECONDS = 10.0
LATER_INTERVAL_SECONDS = 60.0
# For so long after its first moment, a phase or the embedding gets lines at the first interval.
FIRST_SECONDS = 60.0


class PlainRenderer(NoRenderer):
    """Writes a line every 10 s of the first minute, then every minute.

    Args:
        out: The stream.
        price_per_mtok: Price per million tokens, to show the cost.
        prefix: Returns what each line begins with, such as the time.
    """

    def __init__(self, out: TextIO, price_per_mtok: float | None = None, prefix: Callable[[], str] = str) -> None:
        super().__init__(out)
        self._price = price_per_mtok
        self._prefix = prefix
        self._key: object = None
        self._started = 0.0
        self._last_line_at = 0.0

    def draw_phase(self, phase: Phase, now: float) -> None:
        if self._is_due((phase.text, phase.started), now):
            self._write(phase.describe(now))

    def draw_progress(self, estimate: ProgressEstimate, now: float, *, is_final: bool = False) -> None:
        is_due = self._is_due(estimate.activity, now)
        if is_due or (is_final and self._last_line_at > self._started):
            self._write("  ".join([estimate.activity, *describe_numbers(estimate, self._price)]))

    def _write(self, text: str) -> None:
        self.print_line(f"{self._prefix()}{text}")

    def _is_due(self, key: object, now: float) -> bool:
        if key != self._key:
            self._key, self._started, self._last_line_at = key, now, now
        interval = FIRST_INTERVAL_SECONDS if now - self._started <= FIRST_SECONDS else LATER_INTERVAL_SECONDS
        if now - self._last_line_at < interval:
            return False
        self._last_line_at = now
        return True
