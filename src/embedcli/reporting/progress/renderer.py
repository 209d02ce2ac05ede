"""What every renderer of progress does, and the one that shows none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TextIO

from embedcli.reporting.progress.estimator import ProgressEstimate
from embedcli.reporting.progress.wording import Phase


class Renderer(ABC):
    """Draws progress on one stream. Its methods are called by one thread at a time, several times per second."""

    @abstractmethod
    def draw_phase(self, phase: Phase, now: float) -> None:
        """Show what happens, and for how long it has."""

    @abstractmethod
    def draw_progress(self, estimate: ProgressEstimate, now: float, *, is_final: bool = False) -> None:
        """Show how far the run is; `is_final` if the next call draws something else."""

    @abstractmethod
    def print_line(self, line: str) -> None:
        """Write a line that stays, above what is drawn."""

    @abstractmethod
    def close(self) -> None:
        """Remove what is drawn. A later call of another method draws again."""


class NoRenderer(Renderer):
    """Shows no progress; lines are written."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def draw_phase(self, phase: Phase, now: float) -> None:
        """Draw nothing."""

    def draw_progress(self, estimate: ProgressEstimate, now: float, *, is_final: bool = False) -> None:
        """Draw nothing."""

    def print_line(self, line: str) -> None:
        print(line, file=self._out, flush=True)

    def close(self) -> None:
        """There is nothing to remove."""
