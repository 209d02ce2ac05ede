"""Progress on stderr while a job runs: a bar, plain lines, and a warning when nothing moves."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Literal, TextIO

from embedcli.core.terminal import escape_for_terminal, unescaped
from embedcli.core.types import InputPlan, RunObserver

if TYPE_CHECKING:
    from rich.progress import Progress

    from embedcli.pipeline.metrics import MetricsCollector


Style = Literal["auto", "rich", "plain", "none"]

# Shortest time between two plain progress lines.
PLAIN_SECONDS = 30.0
# Time without progress after which the watchdog writes a line.
WATCHDOG_SECONDS = 60.0


class ProgressReporter(RunObserver):
    """Reports a run on stderr: notes, a progress bar or plain lines, and a warning when a stage hangs.

    Args:
        style: "rich" for a bar, "plain" for lines; "auto" chooses by whether stderr is a terminal.
        quiet: Print errors only.
        out: Stream to write to instead of stderr.
    """

    def __init__(self, style: Style = "auto", quiet: bool = False, out: TextIO | None = None) -> None:
        self.out = unescaped(out or sys.stderr)
        is_terminal = self.out.isatty()
        self.style: Style = ("rich" if is_terminal else "plain") if style == "auto" else style
        self.quiet = quiet
        self.adds_timestamps = not is_terminal
        self.notes: list[str] = []
        self._metrics: MetricsCollector | None = None
        self._bar: Progress | None = None
        self._task: Any = None
        self._by_bytes = False
        self._last_line_at = time.monotonic()
        self._stopped = Event()
        self._total_rows: int | None = None

    def notify(self, text: str) -> None:
        """Write a note on stderr, with the UTC time when stderr is not a terminal. Notes also go into the report."""
        self.notes.append(text)
        if not self.quiet:
            self._write(text)

    def error(self, text: str) -> None:
        """Write an error on stderr, even when quiet."""
        self._write(text)

    def _write(self, text: str) -> None:
        timestamp = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} " if self.adds_timestamps else ""
        line = timestamp + escape_for_terminal(text)
        if self._bar is not None:
            self._bar.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            with suppress(OSError):  # nobody could be told
                print(line, file=self.out, flush=True)

    def on_start(self, plan: InputPlan, metrics: MetricsCollector) -> None:
        """Start the bar or the plain lines, and the watchdog."""
        self._metrics = metrics
        self._last_line_at = time.monotonic()
        self._total_rows = plan.total_rows
        self._by_bytes = plan.total_rows is None and plan.total_bytes is not None
        if self.style == "rich" and not self.quiet:
            self._bar = build_progress_bar(self.out)
            total = plan.total_rows if plan.total_rows is not None else plan.total_bytes
            self._task = self._bar.add_task("embedding", total=total, speed="", rows=0)
            self._bar.start()
        elif self.style == "plain":
            self.notify("embedding started")
        Thread(target=self._watch, name="watchdog", daemon=True).start()

    def on_progress(self, rows: int, bytes_read: int) -> None:
        """Update the bar, or write a line if the last one is older than PLAIN_SECONDS."""
        metrics = self._metrics
        if metrics is None:
            return
        speed = metrics.fed_tokens / metrics.forward_seconds if metrics.forward_seconds else 0.0
        if self._bar is not None:
            completed = bytes_read if self._by_bytes else rows
            self._bar.update(self._task, completed=completed, rows=rows, speed=f"{speed:,.0f} tokens/s")
        elif self.style == "plain" and time.monotonic() - self._last_line_at >= PLAIN_SECONDS:
            self._last_line_at = time.monotonic()
            total = f" of {self._total_rows:,}" if self._total_rows else ""
            self.notify(f"{rows:,}{total} rows, {speed:,.0f} tokens/s")

    def stop(self) -> None:
        """Remove the bar and stop the watchdog. Can be called more than once."""
        self._stopped.set()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _watch(self) -> None:
        while not self._stopped.wait(WATCHDOG_SECONDS / 4):
            metrics = self._metrics
            if metrics is None or time.monotonic() - metrics.last_heartbeat < WATCHDOG_SECONDS:
                continue
            metrics.last_heartbeat = time.monotonic()
            now = time.monotonic()
            busy = ", ".join(f"{name} for {now - since:.0f} s" for name, since in list(metrics.busy_since.items()))
            self.notify(f"no progress for {WATCHDOG_SECONDS:.0f} s; busy stages: {busy or 'none'}")


def build_progress_bar(out: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(file=out),
        transient=True,
        redirect_stdout=False,  # the bar is drawn on stderr, and stdout is for data
        redirect_stderr=False,
    )
