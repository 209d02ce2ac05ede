"""The measurement of several workers: real processes on a small static model, and the arithmetic without starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import small_bench
import workers
from embedcli.benchmark import text_tables
from embedcli.benchmark.contenders import Timing
from embedcli.core.errors import ModelError, UsageError
from small_bench import make_small_request


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, a static model, and `in.jsonl`."""
    return small_bench.write_inputs(tmp_path_factory.mktemp("bench"))


def test_several_workers_are_measured_beside_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "find_spec", lambda name: None)
    target, words = place / "workers.json", [str(place / "in.jsonl"), "-m", str(place / "model")]
    done = CliRunner().invoke(workers.app, [*words, "--workers", "2", "--rounds", "1", "--json", str(target)])
    assert done.exit_code == 0, done.output
    figures = json.loads(target.read_text())
    assert list(figures["runners"]) == ["one process", "2 processes"]
    assert list(figures["missing"]) == ["Ray, 2 workers"]
    assert figures["runners"]["one process"]["ratio"] == {"median": 1.0, "each": [1.0]}
    two = figures["runners"]["2 processes"]
    assert two["process_seconds"] > 0 < two["start_seconds"]
    assert max(map(len, done.stdout.splitlines())) <= text_tables.WIDTH
    assert "pip install 'embedcli[ray]'" in done.stdout


def test_the_start_is_not_compared() -> None:
    def pair(start: float, whole: float, runner: str = "ray") -> tuple[Timing, Timing]:
        report = {"job": {"runner": runner}}
        return Timing(start, 0, 0, 0), Timing(whole, 0, 0, 0, 0.5, report)

    alone = [pair(1, 9), pair(1, 10), pair(1, 11)]
    figures = workers.summarize_runner([pair(10, 30), pair(14, 34), pair(12, 32)], alone)
    assert figures["start_seconds"] == 12
    assert figures["working_seconds"] == 20
    assert figures["ratio"]["each"] == pytest.approx([8 / 18, 9 / 22, 10 / 20], rel=1e-5)
    assert figures["ratio"]["median"] == figures["ratio"]["each"][0]
    assert figures["others_share"] is None
    assert workers.summarize_runner([pair(1, 2, "processes")], [pair(1, 2)])["others_share"] == 0.5


def test_a_runner_that_fails_is_named_and_one_process_must_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "find_spec", lambda name: None)
    request = make_small_request(place, rounds=1)
    limited = replace(request, arguments=("--model", str(place / "model"), "--stop-after", "1000"))
    figures = workers.measure(limited, 2, print)
    assert list(figures["runners"]) == ["one process"]
    assert "--stop-after cannot be used together" in figures["missing"]["2 processes"]
    with pytest.raises(ModelError, match="embedcli failed"):
        workers.measure(replace(request, arguments=("--model", str(place / "none"))), 2, print)
    with pytest.raises(UsageError, match="20 files"):
        workers.measure(make_small_request(place, rows=39), 2, print)
