"""Progress on stderr."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Literal, TextIO

from embedcli.core.types import InputPlan, RunObserver

if TYPE_CHECKING:
    from rich.progress import Progress

    from embedcli.pipeline.metrics import MetricsCollector


Style = Literal["auto", "rich", "plain", "none"]


# A plain progress line at most this often, and a watchdog line after this long without any batch.
PLAIN_SECONDS = 30.0


WATCHDOG_SECONDS = 60.0


class ProgressReporter(RunObserver):
    """Follows a run on stderr: sentences, a bar or plain lines, and a word when a stage hangs."""

    def __init__(self, style: Style = "auto", quiet: bool = False, out: TextIO | None = None) -> None:
        self.out = out or sys.stderr
        terminal = self.out.isatty()
        self.style: Style = ("rich" if terminal else "plain") if style == "auto" else style
        self.quiet = quiet
        self.adds_timestamps = not terminal
        self.notes: list[str] = []
        self._meter: MetricsCollector | None = None
        self._bar: Progress | None = None
        self._task: Any = None
        self._by_bytes = False
        self._said = time.monotonic()
        self._over = Event()
        self._total_rows: int | None = None

    def notify(self, text: str) -> None:
        """One sentence on stderr, with the UTC time when stderr is not a terminal."""
        self.notes.append(text)
        if not self.quiet:
            self._write(text)

    def error(self, text: str) -> None:
        """Like `line`, also when quiet."""
        self._write(text)

    def _write(self, text: str) -> None:
        stamp = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} " if self.adds_timestamps else ""
        line = stamp + text.encode("utf-8", "backslashreplace").decode()
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            with suppress(BrokenPipeError):
                print(line, file=self.out, flush=True)

    def on_start(self, plan: InputPlan, meter: MetricsCollector) -> None:
        """Start the bar or the plain lines, and the watchdog."""
        self._meter = meter
        self._said = time.monotonic()
        self._total_rows = plan.total_rows
        self._by_bytes = plan.total_rows is None and plan.total_bytes is not None
        if self.style == "rich" and not self.quiet:
            self._bar = _bar(self.out)
            total = plan.total_rows if plan.total_rows is not None else plan.total_bytes
            self._task = self._bar.add_task("embedding", total=total, speed="", rows=0)
            self._bar.start()
        elif self.style == "plain":
            self.notify("embedding begins")
        Thread(target=self._watch, name="watchdog", daemon=True).start()

    def on_progress(self, rows: int, bytes_read: int) -> None:
        """Move the bar, or say a line when the last one is old."""
        meter = self._meter
        if meter is None:
            return
        speed = meter.fed_tokens / meter.forward_seconds if meter.forward_seconds else 0.0
        if self._bar is not None:
            done = bytes_read if self._by_bytes else rows
            self._bar.update(self._task, completed=done, rows=rows, speed=f"{speed:,.0f} tokens/s")
        elif self.style == "plain" and time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            of = f" of {self._total_rows:,}" if self._total_rows else ""
            self.notify(f"{rows:,}{of} rows, {speed:,.0f} tokens/s")

    def stop(self) -> None:
        """Take the bar away. Safe to call twice."""
        self._over.set()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _watch(self) -> None:
        while not self._over.wait(WATCHDOG_SECONDS / 4):
            meter = self._meter
            if meter is None or time.monotonic() - meter.last_heartbeat < WATCHDOG_SECONDS:
                continue
            meter.last_heartbeat = time.monotonic()
            now = time.monotonic()
            busy = ", ".join(f"{name} for {now - since:.0f} s" for name, since in list(meter.busy_since.items()))
            self.notify(f"no progress for {WATCHDOG_SECONDS:.0f} s; busy stages: {busy or 'none'}")


def _bar(out: TextIO) -> Progress:
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
    )
