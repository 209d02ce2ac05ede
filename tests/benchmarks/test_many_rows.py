"""The measurement of jobs with few and with many rows: its figures, its rows, and its verdict."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import many_rows
from small_bench import MACHINE


def test_memory_and_cost_are_measured_for_each_number_of_rows() -> None:
    figures = many_rows.measure([10, 30], lambda line: None)
    assert [run["rows"] for run in figures["runs"]] == [10, 30]
    assert figures["growth_mb"] < figures["allowed_mb"]
    assert all(0 <= run["write_share"] < 1 and 0 <= run["publish_share"] < 1 for run in figures["runs"])
    assert all(0 < run["sync_share"] < 1 for run in figures["runs"])
    table = many_rows.format_table(figures)
    assert all(column in table for column in many_rows.COLUMNS)
    assert "memory grows by" in table


def test_generated_rows_are_the_same_on_every_call() -> None:
    words = [f"w{i}" for i in range(50)]
    first = list(many_rows.generate_texts(words, 25, block=10))
    assert first == list(many_rows.generate_texts(words, 25, block=10))
    assert len(first) == 25


def test_numbers_of_rows_are_sorted() -> None:
    assert many_rows.parse_counts("30, 10") == [10, 30]


@pytest.mark.parametrize("counts", ["", "10,", "ten", "0", "-5"])
def test_what_is_no_number_of_rows_is_said(counts: str) -> None:
    done = CliRunner().invoke(many_rows.app, ["--rows", counts])
    assert done.exit_code == 2
    assert "these are not numbers of rows" in done.stderr


def test_growing_memory_is_an_error_after_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"write_share": 0.1, "sync_share": 0.1, "publish_share": 0.1, "cpu_microseconds_per_row": 1.0}
    runs = [
        {"rows": n, "peak_memory_mb": n, "process_seconds": 1.0, "rows_per_second": 1.0, **shares} for n in (10, 1000)
    ]
    figures = {"machine": MACHINE, "runs": runs, "growth_mb": 990.0, "allowed_mb": 150.0}
    monkeypatch.setattr(many_rows, "measure", lambda counts, notify: figures)
    done = CliRunner().invoke(many_rows.app, [])
    assert done.exit_code == 1
    assert "990 MB" in done.stdout
    assert "memory grows" in done.stderr
