"""The commands and recipes of docs/guides/sparse-models.md run, with small models under the names of the page."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jobs
import sparse_models
from searchable import model_folder

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guides" / "sparse-models.md"
WORDS = ("money", "back", "order", "refund", "ship", "late")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with models in folders that are called as on the page, and rows."""
    monkeypatch.chdir(tmp_path)
    sparse_models.build_splade(tmp_path / "naver" / "splade-v3", tmp_path / "work")
    (tmp_path / "BAAI").mkdir()
    model_folder(tmp_path / "BAAI" / "bge-small-en-v1.5")
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(WORDS, 1 + i % 5)) for i in range(40)]
    jobs.write_jsonl(tmp_path / "questions.jsonl", [{"id": "q", "text": "money back"}])
    jobs.write_jsonl(tmp_path / "texts.jsonl", [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)])
    return tmp_path


def test_the_page_runs(home: Path) -> None:
    for line in "".join(blocks("sh")).splitlines():
        program, *words = shlex.split(line)
        ended = jobs.run(*words)
        assert (program, ended.code) == ("embedcli", 0), ended.err
    names: dict[str, Any] = {}
    for code in blocks("python"):
        exec(compile(code, str(PAGE), "exec"), names)
    first = json.loads((home / "texts.jsonl").read_text("utf-8").splitlines()[0])["text"]
    found = json.loads(jobs.run("search", "sparse.parquet", first, "--json").out)
    assert names["matrix"].shape[0] == 40
    assert np.sort(names["scores"])[::-1][:10] == pytest.approx([hit["score"] for hit in found], abs=1e-3)
    assert [score for _, score in names["ranking"]] == pytest.approx([hit["score"] for hit in found], abs=1e-3)
    by_id = dict(names["ranking"])
    assert len(names["nearest"]) == 10
    assert by_id[names["nearest"][0]] == pytest.approx(found[0]["score"], abs=1e-3)
    check_search_engines(names)


def check_search_engines(names: dict[str, Any]) -> None:
    """What Qdrant finds, and what Elasticsearch would find by its formula, is what `search` finds."""
    found = json.loads(jobs.run("search", "sparse.parquet", "money back", "--json").out)
    expected = [hit["score"] for hit in found]
    assert [score for _, score in names["best"]] == pytest.approx(expected, abs=1e-3)
    assert {id for id, _ in names["best"]} <= {f"r{i}" for i in range(40)}
    lines = [json.loads(line) for line in Path("bulk.jsonl").read_text("utf-8").splitlines()]
    assert [line["index"]["_id"] for line in lines[::2]] == [f"r{i}" for i in range(40)]
    clauses = [clause["rank_feature"] for clause in names["request"]["query"]["bool"]["should"]]
    assert {tuple(clause["linear"].items()) for clause in clauses} == {()}
    scores = [
        sum(clause["boost"] * row["terms"].get(clause["field"].removeprefix("terms."), 0.0) for clause in clauses)
        for row in lines[1::2]
    ]
    assert sorted(scores, reverse=True)[:10] == pytest.approx(expected, abs=1e-3)
    weights = [(term, weight) for row in lines[1::2] for term, weight in row["terms"].items()]
    assert all(weight > 0 and term.isdigit() for term, weight in weights)
