"""What is told to people: watchdog, bar, plain lines, summary arithmetic."""

from __future__ import annotations

import io
import re
import threading

import pytest

from embedcli.core.job import Job
from embedcli.core.types import InputPlan, RunResult
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.reporting import progress, run_report
from embedcli.reporting.progress import ProgressReporter
from fakes import COLUMNS

PLAN = InputPlan((), COLUMNS, {}, total_bytes=1000, total_rows=200)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Signalling(io.StringIO):
    """Says when something was written."""

    def __init__(self) -> None:
        super().__init__()
        self.wrote = threading.Event()

    def write(self, text: str) -> int:
        done = super().write(text)
        if "no progress" in text:
            self.wrote.set()
        return done


def test_a_stage_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WATCHDOG_SECONDS", 0.05)
    out, meter = Signalling(), MetricsCollector()
    follower = ProgressReporter("none", out=out)
    follower.on_start(PLAN, meter)
    with meter.time_stage("forward"):
        assert out.wrote.wait(20)
    follower.stop()
    assert re.search(r"no progress for .* busy stages: forward for", out.getvalue())


def test_a_terminal_gets_a_bar_and_no_times() -> None:
    out = Terminal()
    follower = ProgressReporter("auto", out=out)
    follower.on_start(PLAN, MetricsCollector())
    follower.on_progress(100, 500)
    follower.notify("a note with [brackets]")
    follower.stop()
    text = out.getvalue()
    assert "50%" in text
    assert "a note with [brackets]" in text
    assert not re.search(r"\d{4}-\d\d-\d\dT", text)


def test_plain_lines_begin_with_the_utc_time() -> None:
    out = io.StringIO()
    follower = ProgressReporter("auto", out=out)
    follower.on_start(PLAN, MetricsCollector())
    follower.notify("word")
    follower.stop()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in out.getvalue().splitlines())


def test_lone_surrogates_can_be_printed() -> None:
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    ProgressReporter("none", out=out).notify("a \ud800 b")
    out.flush()
    assert b"a \\ud800 b" in out.buffer.getvalue()


def test_the_summary_adds_up() -> None:
    meter = MetricsCollector(fed_tokens=900, padded_tokens=1000, batches=3, rows=10)
    meter.seconds.update(read=1.0, tokenize=2.0, forward=7.0, write=0.5)
    meter.out_of_memory, meter.batch_tokens = 2, 512
    totals = {"read": 12, "rows": 10, "rejects": 2, "tokens": 1000, "truncated": 4, "lost_tokens": 100}
    outcome = RunResult(3, "2 rows were rejected", totals, {"model": "m", "dim": 8}, ("out.parquet",), resumed_rows=5)
    made = run_report.RunReport(Job(("in",), "out"), 3, "", 2.0, "", meter, outcome)
    text = "\n".join(made.format_summary())
    for words in (
        "12 in, 10 embedded, 2 rejected",
        "5 rows were there already",
        "1,000; 4 rows (40.0%) truncated, 10.0% of all tokens never read",
        "10.0% of the tokens computed",
        "5 rows/s, 450 tokens/s",
        "forward is the bottleneck",
        "out of memory 2 times: batches were cut to 512 tokens",
    ):
        assert words in text
