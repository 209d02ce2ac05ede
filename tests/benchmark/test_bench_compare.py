"""Whole comparisons on a static model small enough for a test: real processes, real files, each figure in its place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embedcli.benchmark import memory, statistics, text_tables
from embedcli.benchmark.compare import Request, compare
from embedcli.benchmark.contenders import Contender, Failed, Lap, Ours, Peer
from embedcli.benchmark.dataset import write
from embedcli.benchmark.lineup import subject
from embedcli.benchmark.static_models import word_model
from embedcli.benchmark.tune_batch import tune
from embedcli.benchmark.workers import figures, together
from embedcli.cli import app
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job

WORDS = [f"w{i}" for i in range(50)]
TEXTS = [" ".join(WORDS[(i * j) % 50] for j in range(1, 3 + i % 7)) for i in range(40)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, a static model, and `in.jsonl`."""
    folder = tmp_path_factory.mktemp("bench")
    word_model(folder / "model", WORDS, 16)
    write(folder / "in.jsonl", TEXTS)
    return folder


def job(place: Path, **changed: Any) -> Job:
    return Job(inputs=(str(place / "in.jsonl"),), output="", **({"model": str(place / "model")} | changed))


def request_of(place: Path, **changed: Any) -> Request:
    return Request(job(place), ("--model", str(place / "model")), **changed)


@pytest.fixture(scope="module")
def made(place: Path) -> dict[str, Any]:
    """One comparison of a single round: embedcli and model2vec on the same rows."""
    said: list[str] = []
    found = compare(request_of(place, rounds=1, rows=30), said.append)
    assert any("round 1 of 1" in line for line in said)
    return found


def test_a_comparison_has_every_contender_with_every_figure(made: dict[str, Any]) -> None:
    assert made["baseline"].startswith("model2vec ")
    ours, theirs = made["contenders"].items()
    assert (ours[0], theirs[0]) == ("embedcli numpy f32", made["baseline"])
    common = {
        "rows_per_second", "tokens_per_second", "process_seconds", "encode_seconds", "cpu_seconds", "peak_memory_mb",
        "others_share",
        "padding_share", "process_ratio", "encode_ratio", "cpu_ratio", "lowest_cosine", "rounds",
    }  # fmt: skip
    assert set(theirs[1]) == common
    assert set(ours[1]) == common | {"batch_tokens", "device_idle_share", "tokenize_share", "stage_seconds"}
    assert json.loads(json.dumps(made, allow_nan=False)) == made


def test_both_made_the_same_vectors(made: dict[str, Any]) -> None:
    assert all(its["lowest_cosine"] > 0.99999 for its in made["contenders"].values())


def test_a_comparison_counts_rows_and_tokens(made: dict[str, Any]) -> None:
    assert made["input"]["rows"] == 30
    assert made["input"]["tokens"] == sum(len(text.split()) for text in TEXTS[:30])
    assert made["input"]["duplicates"] == 30 - len(set(TEXTS[:30]))


def test_the_ratio_of_the_baseline_to_itself_is_one(made: dict[str, Any]) -> None:
    base = made["contenders"][made["baseline"]]
    assert base["process_ratio"] == base["encode_ratio"] == {"median": 1.0, "each": [1.0]}
    ours = made["contenders"]["embedcli numpy f32"]
    assert ours["process_ratio"]["each"][0] == pytest.approx(
        base["rounds"][0]["process_seconds"] / ours["rounds"][0]["process_seconds"], rel=1e-3
    )


def test_a_comparison_is_told_in_a_table(made: dict[str, Any]) -> None:
    text = text_tables.comparison(made)
    assert max(map(len, text.splitlines())) <= text_tables.WIDTH
    assert "30 of in.jsonl" in text


def test_budgets_are_run_in_turn_and_the_default_is_marked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.benchmark.tune_batch.BUDGETS", (16, 1 << 16))
    said: list[str] = []
    made = tune(request_of(place, rounds=1), said.append)
    assert [its["batch_tokens"] for its in made["budgets"]] == [16, 1 << 16]
    assert made["default"] == 1 << 16
    last = text_tables.tuning(made).splitlines()[-1]
    assert last.split()[0] == "65,536"
    assert last.endswith("default")


def test_several_workers_are_measured_beside_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.benchmark.workers.find_spec", lambda name: None)
    target, words = place / "together.json", ["bench", str(place / "in.jsonl"), "-m", str(place / "model")]
    done = CliRunner().invoke(app, [*words, "--workers", "2", "--rounds", "1", "--json", str(target)])
    assert done.exit_code == 0, done.output
    made = json.loads(target.read_text())
    assert list(made["runners"]) == ["one process", "2 processes"]
    assert list(made["missing"]) == ["Ray, 2 workers"]
    assert made["runners"]["one process"]["ratio"] == {"median": 1.0, "each": [1.0]}
    two = made["runners"]["2 processes"]
    assert two["process_seconds"] > 0 < two["start_seconds"]
    assert max(map(len, done.stdout.splitlines())) <= text_tables.WIDTH
    assert "pip install 'embedcli[ray]'" in done.stdout


def test_the_start_is_not_compared() -> None:
    def pair(start: float, whole: float, runner: str = "ray") -> tuple[Lap, Lap]:
        report = {"job": {"runner": runner}}
        return Lap(start, 0, 0, 0), Lap(whole, 0, 0, 0, 0.5, report)

    made = figures([pair(10, 30), pair(14, 34), pair(12, 32)], [pair(1, 9), pair(1, 10), pair(1, 11)])
    assert made["start_seconds"] == 12
    assert made["working_seconds"] == 20
    assert made["ratio"]["each"] == pytest.approx([8 / 18, 9 / 22, 10 / 20], rel=1e-5)
    assert made["ratio"]["median"] == made["ratio"]["each"][0]
    assert made["others_share"] is None
    assert figures([pair(1, 2, "processes")], [pair(1, 2)])["others_share"] == 0.5


def test_a_runner_that_fails_is_named_and_one_process_must_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.benchmark.workers.find_spec", lambda name: None)
    made = together(
        replace(request_of(place, rounds=1), arguments=("--model", str(place / "model"), "--limit", "1000")), 2, print
    )
    assert list(made["runners"]) == ["one process"]
    assert "--limit does not go together" in made["missing"]["2 processes"]
    with pytest.raises(ModelError, match="embedcli failed"):
        together(replace(request_of(place), arguments=("--model", str(place / "none"))), 2, print)
    with pytest.raises(UsageError, match="20 files"):
        together(request_of(place, rows=39), 2, print)


def test_memory_is_measured_for_each_number_of_rows() -> None:
    made = memory.measure(lambda line: None, counts=(10, 30))
    assert [run["rows"] for run in made["runs"]] == [10, 30]
    assert made["growth_mb"] < made["allowed_mb"]
    assert "growth" in text_tables.memory(made)


def test_generated_rows_are_all_different() -> None:
    first = list(memory.texts(WORDS, 25, block=10))
    assert first == list(memory.texts(WORDS, 25, block=10))
    assert len(first) == 25


def test_the_command_prints_a_table_and_writes_json(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder of its input, too: nothing there is its output."""
    monkeypatch.setattr("embedcli.benchmark.tune_batch.BUDGETS", (64,))
    monkeypatch.chdir(place)
    target = place / "made.json"
    words = ["bench", "in.jsonl", "-m", str(place / "model"), "--tune", "--rounds", "1"]
    done = CliRunner().invoke(app, [*words, "--json", str(target)])
    assert done.exit_code == 0, done.output
    assert "batch tokens" in done.stdout
    assert "round 1 of 1" in done.stderr
    assert json.loads(target.read_text())["rows"] == len(TEXTS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "bench needs rows to encode"),
        (["--tune"], "bench needs rows to encode"),
        (["in.jsonl", "--memory"], "bench --memory makes its own rows"),
        (["in.jsonl", "--shapes", "small"], "leave in.jsonl out"),
        (["in.jsonl", "--tune", "--workers", "2"], "--tune and --workers do not go together"),
    ],
)
def test_one_thing_is_measured_at_a_time(words: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["bench", *words])
    assert done.exit_code == 2
    assert says in done.stderr


def test_a_growing_memory_is_an_error_after_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [{"rows": n, "peak_memory_mb": n, "process_seconds": 1.0, "rows_per_second": 1.0} for n in (10, 1000)]
    where = {
        "processor": "p",
        "cores": 1,
        "memory_gb": 1,
        "system": "s",
        "python": "3",
        "versions": {},
        "load_before": 0,
    }
    grown = {"machine": where, "runs": runs, "growth_mb": 990.0, "allowed_mb": 150.0}
    monkeypatch.setattr("embedcli.benchmark.memory.measure", lambda notify: grown)
    done = CliRunner().invoke(app, ["bench", "--memory"])
    assert done.exit_code == 1
    assert "990 MB" in done.stdout
    assert "memory grows" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "needs rows"),
        (["in.jsonl", "--model", "openai:any"], "is elsewhere"),
        (["in.jsonl", "--peer-python", "/no/such/python", "--rounds", "0"], "rounds"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], says: str, place: Path) -> None:
    at = [str(place / word) if word == "in.jsonl" else word for word in words]
    done = CliRunner().invoke(app, ["bench", *at])
    assert done.exit_code == 2
    assert says in done.stderr


def test_files_that_no_other_library_reads_are_refused(place: Path) -> None:
    vectors = place / "words.txt"
    vectors.write_text("2 3\na 1 2 3\nb 4 5 6\n")
    with pytest.raises(UsageError, match="nothing to compare"):
        compare(Request(job(place, model=str(vectors))), lambda line: None)


def test_an_embedcli_that_fails_ends_the_comparison_with_its_words(place: Path) -> None:
    broken = Request(job(place), ("--model", str(place / "model"), "--truncate-dim", "1000"), rounds=1)
    with pytest.raises(ModelError, match="truncate-dim 1000"):
        compare(broken, lambda line: None)


@pytest.fixture(scope="module")
def transformer() -> Path:
    import models

    return models.folder("all-MiniLM-L6-v2-shape")


def test_sentence_transformers_is_told_the_same_as_embedcli(transformer: Path, place: Path, tmp_path: Path) -> None:
    """One process of each: prompt, limit and dimensions reach both, and the vectors agree."""
    from embedcli.benchmark.lineup import peer

    write(tmp_path / "rows.jsonl", TEXTS[:6])
    told = {"prompt": "query: ", "max_seq_length": 12, "truncate_dim": 16, "normalize": True}
    words = ["--prompt", "query: ", "--max-seq-length", "12", "--truncate-dim", "16", "--normalize"]
    arguments = ("--model", str(transformer), "--engine", "openvino", *words)
    about = subject(job(place, model=str(transformer), **told), arguments)
    contenders: list[Contender] = [Ours("ours", arguments), peer(about, "sentence-transformers", "theirs")]
    results = []
    for contender in contenders:
        home = tmp_path / contender.name
        home.mkdir()
        lap = contender.lap(tmp_path / "rows.jsonl", home)
        assert lap.encode_seconds < lap.seconds
        results.append(contender.result(home))
    ours, theirs = results
    assert ours.vectors.shape == theirs.vectors.shape == (6, 16)
    assert statistics.lowest_cosine(ours.vectors, theirs.vectors) > 0.99999
    assert np.allclose(np.linalg.norm(theirs.vectors, axis=1), 1, atol=1e-5)


def test_a_peer_that_fails_says_its_last_line(tmp_path: Path, place: Path) -> None:
    peer = Peer(
        "peer", {"library": "model2vec", "model": str(place / "nothing"), "normalize": True, "batch_sizes": [1]}
    )
    write(tmp_path / "rows.jsonl", TEXTS[:2])
    with pytest.raises(Failed):
        peer.lap(tmp_path / "rows.jsonl", tmp_path)
