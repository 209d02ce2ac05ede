"""The lines of the run summary and the arithmetic behind them."""

from __future__ import annotations

from embedcli.core.job import Job
from embedcli.core.types import RunResult
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.reporting.run_report import RunReport
from embedcli.reporting.summary import format_rate, format_summary


def test_summary_shows_the_figures_of_the_report() -> None:
    metrics = MetricsCollector(fed_tokens=900, padded_tokens=1000, batches=3, rows=10)
    metrics.seconds.update(read=1.0, tokenize=2.0, forward=7.0, write=0.5)
    metrics.out_of_memory, metrics.batch_tokens = 2, 512
    totals = {"read": 12, "rows": 10, "rejects": 2, "tokens": 1000, "truncated": 4, "lost_tokens": 100}
    result = RunResult(3, "2 rows were rejected", totals, {"model": "m", "dim": 8}, ("out.parquet",), resumed_rows=5)
    report = RunReport(Job(("in",), "out"), 3, "", 2.0, "", metrics, result)
    text = "\n".join(format_summary(report.as_json()))
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


def test_speed_covers_embedding_alone() -> None:
    metrics = MetricsCollector(fed_tokens=900, batches=3, rows=10, started=100.0)
    metrics.embedding_started, metrics.embedding_ended = 107.5, 108.0
    content = RunReport(Job(("in",), "out"), 0, "", 10.0, "", metrics, RunResult(0, "", {"read": 10})).as_json()
    assert content["embedding_speed"] == {"seconds": 0.5, "rows_per_second": 20.0, "tokens_per_second": 1800.0}
    content["rows"] |= {"rows": 10, "rejects": 0}
    lines = format_summary(content)
    assert "speed     20 rows/s, 1,800 tokens/s, 10.0 s in all" in lines
    assert "start-up  7.5 s before the first row" in lines
    del content["embedding_speed"], content["startup_seconds"]
    assert "speed     1 rows/s, 90 tokens/s, 10.0 s in all" in format_summary(content), "a report of an earlier version"


def test_slow_rates_keep_two_digits() -> None:
    assert [format_rate(rate) for rate in (0.0, 0.357, 1.0, 9.94, 9.96, 1799.6)] == [
        "0", "0.36", "1", "9.9", "10", "1,800",
    ]  # fmt: skip


def test_one_of_a_thing_is_in_the_singular() -> None:
    metrics = MetricsCollector(batches=1, rows=1, retried_rows=1, out_of_memory=1)
    totals = {"read": 2, "rows": 1, "rejects": 1, "tokens": 10, "truncated": 1, "lost_tokens": 5}
    result = RunResult(3, "", totals, resumed_rows=1, damaged_parts=1, duplicate_ids=1)
    text = "\n".join(format_summary(RunReport(Job(("in",), "out"), 3, "", 2.0, "", metrics, result).as_json()))
    for words in (
        "1 row was there already",
        "; 1 row (100.0%) truncated",
        "out of memory 1 time:",
        "1 row had a vector with NaN, infinity or only zeros, encoded again in float32",
        "1 damaged part file was written again",
        "1 id appears more than once",
    ):
        assert words in text
