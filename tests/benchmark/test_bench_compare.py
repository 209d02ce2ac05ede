"""Whole comparisons on a static model small enough for a test: real processes, real files, each figure in its place."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import multi_vector_models
import small_bench
from embedcli.benchmark import peers
from embedcli.benchmark.compare import BenchRequest, run_comparison
from embedcli.benchmark.contenders import Contender, EmbedcliRun, PeerLibrary, RunFailed
from embedcli.benchmark.dataset import write_jsonl
from embedcli.benchmark.lineup import configure_library, resolve_model
from embedcli.benchmark.statistics import lowest_cosine
from embedcli.benchmark.text_tables import WIDTH, format_batch_tokens, format_comparison
from embedcli.benchmark.tune_batch import measure_batch_tokens
from embedcli.cli import app
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.row_vectors import as_dense
from small_bench import TEXTS, make_job, make_small_request


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `model`, a static model, and `in.jsonl`."""
    return small_bench.write_inputs(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def figures(place: Path) -> dict[str, Any]:
    """One comparison of a single round: embedcli and model2vec on the same rows."""
    lines: list[str] = []
    result = run_comparison(make_small_request(place, rounds=1, rows=30), lines.append)
    assert any("round 1 of 1" in line for line in lines)
    return result


def test_a_comparison_has_every_contender_with_every_figure(figures: dict[str, Any]) -> None:
    assert figures["baseline"].startswith("model2vec ")
    ours, theirs = figures["contenders"].items()
    assert (ours[0], theirs[0]) == ("embedcli numpy f32", figures["baseline"])
    common = {
        "rows_per_second", "tokens_per_second", "process_seconds", "encode_seconds", "cpu_seconds", "peak_memory_mb",
        "others_share",
        "padding_share", "process_ratio", "encode_ratio", "cpu_ratio", "lowest_cosine", "rounds",
    }  # fmt: skip
    assert set(theirs[1]) == common
    assert set(ours[1]) == common | {"batch_tokens", "device_idle_share", "tokenize_share", "stage_seconds"}
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_both_made_the_same_vectors(figures: dict[str, Any]) -> None:
    assert all(its["lowest_cosine"] > 0.99999 for its in figures["contenders"].values())


def test_a_comparison_counts_rows_and_tokens(figures: dict[str, Any]) -> None:
    assert figures["input"]["rows"] == 30
    assert figures["input"]["tokens"] == sum(len(text.split()) for text in TEXTS[:30])
    assert figures["input"]["duplicates"] == 30 - len(set(TEXTS[:30]))


def test_the_ratio_of_the_baseline_to_itself_is_one(figures: dict[str, Any]) -> None:
    base = figures["contenders"][figures["baseline"]]
    assert base["process_ratio"] == base["encode_ratio"] == {"median": 1.0, "each": [1.0]}
    ours = figures["contenders"]["embedcli numpy f32"]
    assert ours["process_ratio"]["each"][0] == pytest.approx(
        base["rounds"][0]["process_seconds"] / ours["rounds"][0]["process_seconds"], rel=1e-3
    )


def test_a_comparison_is_shown_in_a_table(figures: dict[str, Any]) -> None:
    text = format_comparison(figures)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "30 of in.jsonl" in text


def test_budgets_are_run_in_turn_and_the_default_is_marked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.benchmark.tune_batch.BATCH_TOKENS", (16, 1 << 16))
    lines: list[str] = []
    figures = measure_batch_tokens(make_small_request(place, rounds=1), lines.append)
    assert [its["batch_tokens"] for its in figures["budgets"]] == [16, 1 << 16]
    assert figures["default"] == 1 << 16
    last = format_batch_tokens(figures).splitlines()[-1]
    assert last.split()[0] == "65,536"
    assert last.endswith("default")


def test_the_command_prints_a_table_and_writes_json(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder of its input, too: nothing there is its output."""
    monkeypatch.setattr("embedcli.benchmark.tune_batch.BATCH_TOKENS", (64,))
    monkeypatch.chdir(place)
    target = place / "made.json"
    words = ["bench", "in.jsonl", "-m", str(place / "model"), "--tune", "--rounds", "1"]
    done = CliRunner().invoke(app, [*words, "--json", str(target)])
    assert done.exit_code == 0, done.output
    assert "batch tokens" in done.stdout
    assert "round 1 of 1" in done.stderr
    assert json.loads(target.read_text())["rows"] == len(TEXTS)


@pytest.mark.parametrize("words", [[], ["--tune"]])
def test_rows_are_needed(words: list[str]) -> None:
    done = CliRunner().invoke(app, ["bench", *words])
    assert done.exit_code == 2
    assert "bench needs rows to encode" in done.stderr


@pytest.mark.parametrize(
    "words",
    [["--memory"], ["--shapes", "small"], ["in.jsonl", "--static"], ["in.jsonl", "--tune", "--workers", "2"]],
)
def test_flags_of_our_own_benchmarks_are_unknown(words: list[str]) -> None:
    """They are programs of benchmarks/ now."""
    done = CliRunner().invoke(app, ["bench", *words])
    assert done.exit_code == 2
    assert "has no option --" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "needs rows"),
        (["in.jsonl", "--model", "openai:any"], "is hosted"),
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
        run_comparison(BenchRequest(make_job(place, model=str(vectors))), lambda line: None)


def test_an_embedcli_that_fails_ends_the_comparison_with_its_words(place: Path) -> None:
    broken = BenchRequest(make_job(place), ("--model", str(place / "model"), "--truncate-dim", "1000"), rounds=1)
    with pytest.raises(ModelError, match="truncate-dim 1000"):
        run_comparison(broken, lambda line: None)


@pytest.fixture(scope="module")
def transformer() -> Path:
    import models

    return models.folder("all-MiniLM-L6-v2-shape")


def test_sentence_transformers_gets_the_settings_of_embedcli(transformer: Path, place: Path, tmp_path: Path) -> None:
    """One process of each: prompt, limit and dimensions reach both, and the vectors agree."""
    write_jsonl(tmp_path / "rows.jsonl", TEXTS[:6])
    settings = {"prompt": "query: ", "max_seq_length": 12, "truncate_dim": 16, "normalize": True}
    words = ["--prompt", "query: ", "--max-seq-length", "12", "--truncate-dim", "16", "--normalize"]
    arguments = ("--model", str(transformer), "--engine", "openvino", *words)
    model = resolve_model(make_job(place, model=str(transformer), **settings), arguments)
    contenders: list[Contender] = [
        EmbedcliRun("ours", arguments),
        configure_library(model, "sentence-transformers", "theirs"),
    ]
    results = []
    for contender in contenders:
        home = tmp_path / contender.name
        home.mkdir()
        timing = contender.run(tmp_path / "rows.jsonl", home)
        assert timing.encode_seconds < timing.seconds
        results.append(contender.load_vectors(home))
    ours, theirs = results
    assert ours.vectors.shape == theirs.vectors.shape == (6, 16)
    assert lowest_cosine(ours.vectors, theirs.vectors) > 0.99999
    assert np.allclose(np.linalg.norm(as_dense(theirs.vectors), axis=1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def multi_vector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a multi-vector model whose documents have at most 40 tokens, and its queries 12."""
    folder = tmp_path_factory.mktemp("multi-vector")
    multi_vector_models.build_multi_vector(folder / "model", folder)
    return folder / "model"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_seq_length": 9}, ["--max-seq-length", "9"]),
        ({"as_": "query", "prompt": "w1 "}, ["--as", "query", "--prompt", "w1 "]),
    ],
)
def test_multi_vector_encoder_gets_the_settings_of_embedcli(
    multi_vector: Path, place: Path, tmp_path: Path, settings: dict[str, Any], words: list[str]
) -> None:
    texts = [*TEXTS[:6], "Is it? Yes, it is!", " ".join(TEXTS)]
    write_jsonl(tmp_path / "rows.jsonl", texts)
    arguments = ("--model", str(multi_vector), "--engine", "torch", *words)
    model = resolve_model(make_job(place, model=str(multi_vector), **settings), arguments)
    results = []
    for contender in (EmbedcliRun("ours", arguments), configure_library(model, "sentence-transformers", "theirs")):
        home = tmp_path / contender.name
        home.mkdir()
        assert contender.run(tmp_path / "rows.jsonl", home).encode_seconds > 0
        results.append(contender.load_vectors(home))
    ours, theirs = (result.vectors for result in results)
    assert isinstance(ours, MultiVectors)
    assert isinstance(theirs, MultiVectors)
    assert len(ours) == len(texts)
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    assert lowest_cosine(ours, theirs) > 0.99999
    if "as_" in settings:
        assert set(ours.lengths.tolist()) == {12}


def test_a_multi_vector_model_is_compared_by_the_vectors_of_its_tokens(multi_vector: Path, place: Path) -> None:
    job = make_job(place, model=str(multi_vector), engine="torch")
    request = BenchRequest(
        job, ("--model", str(multi_vector), "--engine", "torch"), rounds=1, rows=20, peers=False, few=False
    )
    figures = run_comparison(request, lambda line: None)
    assert list(figures["contenders"]) == ["embedcli torch f32", "sentence-transformers 32"]
    assert figures["model"]["dim"] == multi_vector_models.DIM
    assert all(0.99999 < its["lowest_cosine"] <= 1 for its in figures["contenders"].values())
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert max(map(len, format_comparison(figures).splitlines())) <= WIDTH


def test_only_dense_models_are_measured_with_onnx(
    multi_vector: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where its packages are installed: it would be measured as the library without it."""
    monkeypatch.setattr(peers, "find_missing_packages", lambda packages, python: [])
    monkeypatch.setattr(peers, "OnnxFiles", None)
    model = resolve_model(make_job(place, model=str(multi_vector)), ())
    found, missing = peers.find_peers(model, sys.executable, tmp_path, lambda line: None)
    assert {(peer.settings["library"], peer.settings.get("backend")) for peer in found} == {
        ("sentence-transformers", None)
    }
    assert missing == {}


def test_a_peer_that_fails_says_its_last_line(tmp_path: Path, place: Path) -> None:
    peer = PeerLibrary(
        "peer", {"library": "model2vec", "model": str(place / "nothing"), "normalize": True, "batch_sizes": [1]}
    )
    write_jsonl(tmp_path / "rows.jsonl", TEXTS[:2])
    with pytest.raises(RunFailed):
        peer.run(tmp_path / "rows.jsonl", tmp_path)
