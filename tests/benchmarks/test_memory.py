"""The memory measurement: its figures, its rows, and its verdict."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import memory


def test_memory_is_measured_for_each_number_of_rows() -> None:
    figures = memory.measure(lambda line: None, row_counts=(10, 30))
    assert [run["rows"] for run in figures["runs"]] == [10, 30]
    assert figures["growth_mb"] < figures["allowed_mb"]
    assert "growth" in memory.format_table(figures)


def test_generated_rows_are_the_same_on_every_call() -> None:
    words = [f"w{i}" for i in range(50)]
    first = list(memory.generate_texts(words, 25, block=10))
    assert first == list(memory.generate_texts(words, 25, block=10))
    assert len(first) == 25


def test_growing_memory_is_an_error_after_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [{"rows": n, "peak_memory_mb": n, "process_seconds": 1.0, "rows_per_second": 1.0} for n in (10, 1000)]
    machine = {
        "processor": "p",
        "cores": 1,
        "memory_gb": 1,
        "system": "s",
        "python": "3",
        "versions": {},
        "load_before": 0,
    }
    figures = {"machine": machine, "runs": runs, "growth_mb": 990.0, "allowed_mb": 150.0}
    monkeypatch.setattr(memory, "measure", lambda notify: figures)
    done = CliRunner().invoke(memory.app, [])
    assert done.exit_code == 1
    assert "990 MB" in done.stdout
    assert "memory grows" in done.stderr
