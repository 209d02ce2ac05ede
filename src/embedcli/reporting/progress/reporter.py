"""Reports a run on stderr while it goes on: notes, progress, and a warning when nothing moves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from threading import RLock, Thread
from typing import TYPE_CHECKING, Literal, TextIO

from embedcli.core.progress import ExpectedRows, ProgressCounts
from embedcli.core.terminal import escape_for_terminal, unescaped
from embedcli.core.types import RunObserver
from embedcli.reporting.progress.estimator import ProgressEstimator
from embedcli.reporting.progress.renderer import NoRenderer, Renderer
from embedcli.reporting.progress.wording import Phase

if TYPE_CHECKING:
    from embedcli.pipeline.metrics import MetricsCollector

ProgressStyle = Literal["auto", "rich", "tqdm", "plain", "none"]

# Time between two pictures. One takes about 0.3 ms of one core, so that drawing costs less than 1 % of a run.
TICK_SECONDS = 0.2
# Runs that are over by then draw nothing, and save the import of the library that draws.
SHOW_AFTER_SECONDS = 0.3
# Time without progress after which the watchdog writes a line.
WATCHDOG_SECONDS = 60.0
STOPPING = "stopping after the current batch"


class ProgressReporter(RunObserver):
    """Reports a run on stderr: notes, progress in one of several styles, and a warning when a stage hangs.

    One thread draws the latest state of the run several times per second; reporting a state is cheap. Use it as a
    context manager, or call `stop`.

    Args:
        style: "rich" or "tqdm" for a bar, "plain" for lines; "auto" is "rich" on a terminal. Without
            one, both are "plain".
        quiet: Print errors only.
        out: Stream to write to instead of stderr.
        price_per_mtok: Price per million tokens, to show the cost of a hosted model.
        show_after: Seconds before the first picture.
        receive_note: Gets the notes in place of the stream.
    """

    def __init__(
        self,
        style: ProgressStyle = "auto",
        quiet: bool = False,
        out: TextIO | None = None,
        price_per_mtok: float | None = None,
        show_after: float = SHOW_AFTER_SECONDS,
        receive_note: Callable[[str], None] | None = None,
    ) -> None:
        self.out = unescaped(out or sys.stderr)
        is_terminal = self.out.isatty()
        if style in ("auto", "rich"):
            style = "rich" if is_terminal else "plain"  # nothing else can show the bar of rich
        self.style: ProgressStyle = style
        self.quiet = quiet
        self.adds_timestamps = not is_terminal
        self.notes: list[str] = []
        self._price = price_per_mtok
        self._receive_note = receive_note
        self._lock = RLock()
        self._renderer: Renderer | None = None
        self._phase = Phase("starting", time.monotonic())
        self._estimator: ProgressEstimator | None = None
        self._metrics: MetricsCollector | None = None
        self._show_at = time.monotonic() + show_after
        self._is_over = False
        # Written to by a signal handler: unlike a lock, `put` may interrupt itself.
        self._requests: SimpleQueue[str | None] = SimpleQueue()
        self._thread = Thread(target=self._run_display, name="progress", daemon=True)
        self._thread.start()

    # Messages

    def notify(self, text: str) -> None:
        """Write a note on stderr, with the UTC time when stderr is not a terminal. Notes also go into the report."""
        self.notes.append(text)
        if self._receive_note is not None:
            self._receive_note(text)
        elif not self.quiet:
            self._write(text)

    def error(self, text: str) -> None:
        """Write an error on stderr, even when quiet."""
        self._write(text)

    def _write(self, text: str) -> None:
        line = self._timestamp() + escape_for_terminal(text)
        with self._lock, suppress(OSError):
            if self._renderer is not None:
                self._renderer.print_line(line)
            else:
                print(line, file=self.out, flush=True)

    def _timestamp(self) -> str:
        return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} " if self.adds_timestamps else ""

    # Events of the run

    def on_phase(self, text: str) -> None:
        """Show what happens now, in place of the rows."""
        with self._lock:
            self._draw(is_final=True)
            self._estimator = None
            self._phase = Phase(escape_for_terminal(text), time.monotonic())

    def on_download(self, done_bytes: int, total_bytes: int | None) -> None:
        """Show how much of a download has arrived."""
        self._phase = replace(self._phase, done_bytes=done_bytes, total_bytes=total_bytes)

    def on_start(self, expected: ExpectedRows, metrics: MetricsCollector) -> None:
        """Show rows from now on."""
        with self._lock:
            self._metrics = metrics
            metrics.last_heartbeat = time.monotonic()  # a long start-up is not a hang
            self._estimator = ProgressEstimator(expected, time.monotonic)

    def on_progress(self, counts: ProgressCounts) -> None:
        """Take over the counts of the run."""
        estimator = self._estimator
        if estimator is not None:
            estimator.update(counts)

    def request_stop(self, signal_name: str) -> None:
        """Say that the run stops after the current batch. For signal handlers: it waits for no lock."""
        self._requests.put(signal_name)

    def stop(self) -> None:
        """Remove what is drawn and end the thread. Can be called more than once."""
        with self._lock:
            if self._is_over:
                return
            while not self._requests.empty():
                self._say_stopping(self._requests.get())
            self._draw(is_final=True)
            self._is_over = True
            self._close_renderer()
        self._requests.put(None)
        self._thread.join()

    def __enter__(self) -> ProgressReporter:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    # The thread that draws

    def _run_display(self) -> None:
        while True:
            request = None
            with suppress(Empty):
                request = self._requests.get(timeout=min(TICK_SECONDS, WATCHDOG_SECONDS / 4))
            with self._lock:
                if self._is_over:
                    return
                self._say_stopping(request)
                self._warn_if_stuck()
                self._draw()

    def _say_stopping(self, signal_name: str | None) -> None:
        if signal_name is None:
            return
        again = "; press Ctrl-C again to stop now" if signal_name == "SIGINT" else ""
        self._close_renderer()
        self._write(f"{STOPPING}{again}")
        self._estimator = None
        self._phase = Phase("stopping", time.monotonic())

    def _warn_if_stuck(self) -> None:
        metrics, now = self._metrics, time.monotonic()
        if metrics is None or now - metrics.last_heartbeat < WATCHDOG_SECONDS:
            return
        metrics.last_heartbeat = now
        busy = ", ".join(f"{name} for {now - since:.0f} s" for name, since in list(metrics.busy_since.items()))
        self.notify(f"no progress for {WATCHDOG_SECONDS:.0f} s; busy stages: {busy or 'none'}")

    def _draw(self, *, is_final: bool = False) -> None:
        now = time.monotonic()
        if self._is_over or now < self._show_at:
            return
        if self._renderer is None:
            self._renderer = build_renderer(
                "none" if self.quiet else self.style, self.out, self._price, self._timestamp
            )
        with suppress(OSError):
            if self._estimator is not None:
                self._renderer.draw_progress(self._estimator.estimate(), now, is_final=is_final)
            elif not is_final:
                self._renderer.draw_phase(self._phase, now)

    def _close_renderer(self) -> None:
        if self._renderer is not None:
            with suppress(OSError):
                self._renderer.close()


def build_renderer(
    style: ProgressStyle, out: TextIO, price_per_mtok: float | None, prefix: Callable[[], str] = str
) -> Renderer:
    """Return the renderer of a style; `prefix` returns what plain lines begin with."""
    if style == "rich":
        from embedcli.reporting.progress.rich_renderer import RichRenderer

        return RichRenderer(out, price_per_mtok)
    if style == "tqdm":
        from embedcli.reporting.progress.tqdm_renderer import TqdmRenderer

        return TqdmRenderer(out, price_per_mtok)
    if style == "plain":
        from embedcli.reporting.progress.plain_renderer import PlainRenderer

        return PlainRenderer(out, price_per_mtok, prefix)
    return NoRenderer(out)
