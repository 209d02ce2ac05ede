"""The memory of a SPLADE job beside a dense one: both run, and too much memory is an error."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import models
import sparse_memory
from small_bench import MACHINE


def test_both_jobs_run_and_the_table_shows_them() -> None:
    source = models.folder("all-MiniLM-L6-v2-shape")
    figures = sparse_memory.measure(source, 5, lambda line: None, layers=1, width=24)
    assert figures["sparse"]["peak_memory_mb"] > 0
    assert figures["ratio"] < sparse_memory.ALLOWED_RATIO
    table = sparse_memory.format_table(figures)
    assert [line.split()[0] for line in table.splitlines()[-3:]] == ["dense", "sparse", "ratio"]


def test_too_much_memory_is_an_error_after_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"peak_memory_mb": 1.0, "compiling_mb": 1.0, "rows_per_second": 1.0}
    figures = {"machine": MACHINE, "dense": run, "sparse": run, "ratio": 1.6}
    monkeypatch.setattr(sparse_memory, "measure", lambda source, rows, notify: figures)
    done = CliRunner().invoke(sparse_memory.app, ["-m", str(models.folder("all-MiniLM-L6-v2-shape"))])
    assert done.exit_code == 1
    assert "ratio 1.60" in done.stdout
    assert "too much memory" in done.stderr
