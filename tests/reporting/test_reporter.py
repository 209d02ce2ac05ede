"""Progress on stderr: watchdog, bar and plain lines."""

from __future__ import annotations

import io
import re
import threading

import pytest

from embedcli.core.progress import ExpectedRows, ProgressCounts
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.reporting.progress import ProgressReporter
from embedcli.reporting.progress import reporter as progress_reporter

EXPECTED = ExpectedRows(rows_to_read=200)


class TerminalStream(io.StringIO):
    def isatty(self) -> bool:
        return True


class WatchdogStream(io.StringIO):
    """Sets `warned` when the watchdog writes its line."""

    def __init__(self) -> None:
        super().__init__()
        self.warned = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if "no progress" in text:
            self.warned.set()
        return written


def test_watchdog_names_the_stage_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_reporter, "WATCHDOG_SECONDS", 0.05)
    out, metrics = WatchdogStream(), MetricsCollector()
    reporter = ProgressReporter("none", out=out)
    reporter.on_start(EXPECTED, metrics)
    with metrics.time_stage("forward"):
        assert out.warned.wait(20)
    reporter.stop()
    assert re.search(r"no progress for .* busy stages: forward for", out.getvalue())


def test_a_long_start_up_is_no_hang() -> None:
    out, metrics = io.StringIO(), MetricsCollector()
    metrics.last_heartbeat -= 2 * progress_reporter.WATCHDOG_SECONDS
    with ProgressReporter("none", out=out) as reporter:
        reporter.on_start(EXPECTED, metrics)
        reporter._warn_if_stuck()
    assert out.getvalue() == ""


def test_terminal_gets_a_bar_without_timestamps() -> None:
    out = TerminalStream()
    reporter = ProgressReporter("auto", out=out, show_after=0)
    reporter.on_start(EXPECTED, MetricsCollector())
    reporter.on_progress(ProgressCounts(rows_read=100, embedded_rows=100, embedded_tokens=5))
    reporter.notify("a note with [brackets]")
    reporter.stop()
    text = out.getvalue()
    assert "50%" in text
    assert "a note with [brackets]" in text
    assert not re.search(r"\d{4}-\d\d-\d\dT", text)


def test_plain_lines_start_with_the_utc_time() -> None:
    out = io.StringIO()
    reporter = ProgressReporter("auto", out=out, show_after=0)
    reporter.on_start(EXPECTED, MetricsCollector())
    reporter.notify("note")
    reporter.stop()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in out.getvalue().splitlines())


def test_lone_surrogates_can_be_printed() -> None:
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    ProgressReporter("none", out=out).notify("a \ud800 b")
    out.flush()
    assert b"a \\ud800 b" in out.buffer.getvalue()


def test_without_a_terminal_rich_is_plain() -> None:
    out = io.StringIO()
    with ProgressReporter("rich", out=out, show_after=0) as reporter:
        reporter.on_start(EXPECTED, MetricsCollector())
    assert reporter.style == "plain"
