"""Evaluations of models with several heads, and of rows that get no vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import head_models
import jobs
import reference

HEADS = ("dense", "sparse", "multi_vector")
COLUMNS = ("embedding", "embedding_sparse", "embedding_multi_vector")
ROWS = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.manual_seed(4)
    return head_models.build_bge_m3(tmp_path_factory.mktemp("heads") / "bge-m3")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the documents."""
    monkeypatch.chdir(tmp_path)
    jobs.write_jsonl(tmp_path / "in.jsonl", [{"id": f"r{i}", "text": text} for i, text in enumerate(documents())])
    return tmp_path


def documents() -> list[str]:
    """Texts of which r5 has no known word."""
    texts = reference.samples()
    return [*texts[:5], "🙂", *texts[5 : ROWS - 1]]


def write_task(queries: dict[str, str], judged: list[tuple[str, str]]) -> tuple[str, ...]:
    """Write queries and the relevant documents of each. Returns the options of `eval`."""
    jobs.write_jsonl(Path("queries.jsonl"), [{"id": id, "text": text} for id, text in queries.items()])
    lines = "".join(f"{query}\t{document}\t1\n" for query, document in judged)
    Path("relevance.tsv").write_text("query_id\tdocument_id\trelevance\n" + lines, "utf-8")
    return ("--queries", "queries.jsonl", "--relevance", "relevance.tsv")


def evaluate(model: Path, *args: object) -> tuple[list[dict[str, Any]], str]:
    """The results of an evaluation and what it printed for people."""
    ended = jobs.run("eval", "in.jsonl", "-m", model, "--offline", "--device", "cpu", *args, "--json")
    assert ended.code == 0, ended.err
    results: list[dict[str, Any]] = json.loads(ended.out)
    return results, ended.err


def search(*args: object) -> list[str]:
    ended = jobs.run("search", *args, "--offline", "-k", ROWS, "--json")
    assert ended.code == 0, ended.err
    return [hit["id"] for hit in json.loads(ended.out)]


def average_precision(ranking: list[str], relevant: list[str]) -> float:
    ranks = sorted(ranking.index(document) + 1 for document in relevant if document in ranking)
    return sum(i / rank for i, rank in enumerate(ranks, 1)) / len(relevant)


def test_each_head_and_their_fusion_rank_as_a_search_of_its_column_does(home: Path, model: Path) -> None:
    flags = ("--model", model, "--offline", "--device", "cpu", "--quiet", "--heads", ",".join(HEADS))
    assert jobs.run("encode", "in.jsonl", "out.parquet", *flags).code == 0
    query, relevant = max(reference.samples()[ROWS:], key=len), ["r2", "r7", "r11"]
    options = write_task({"q": query}, [("q", document) for document in relevant])
    results, notes = evaluate(model, *options, "--heads", ",".join(HEADS), "--fuse", "rrf")
    assert [(result["model"], result["head"]) for result in results] == [
        *((str(model), head) for head in HEADS),
        ("rrf", None),
    ]
    assert results[3]["fused"] == [f"{model} {head}" for head in HEADS]
    rankings = [search("out.parquet", query, "--vector-column", column) for column in COLUMNS]
    columns = [part for column in COLUMNS for part in ("--vector-column", column)]
    rankings.append(search("out.parquet", query, *columns, "--fuse", "rrf"))
    assert len({tuple(ranking) for ranking in rankings}) == 4
    for result, ranking in zip(results, rankings, strict=True):
        assert result["tasks"][0]["measures"]["map"] == pytest.approx(average_precision(ranking, relevant))
    (lacking,) = [line for line in notes.splitlines() if line.startswith(f"in, {model} sparse: ")]
    assert "without a vector" in lacking
    assert lacking.endswith(": the model weighs no term of the text")
    assert "never found" not in notes.replace(lacking, "")
    shown = jobs.run("eval", "in.jsonl", "-m", model, *options, "--heads", "dense,sparse", "--fuse", "rrf").out
    assert [line.split()[-3] for line in shown.splitlines()[1:3]] == ["dense", "sparse"]


def test_a_query_without_a_term_scores_0_by_the_sparse_head_alone(home: Path, model: Path) -> None:
    longest, text = max(enumerate(documents()), key=lambda row: len(row[1]))
    texts, judged = {"q0": text, "q1": "🙂", "q2": ""}, ("q0", f"r{longest}")
    options = write_task(texts, [judged, ("q1", "r5"), ("q2", "r1")])
    (dense, sparse, fused), notes = evaluate(model, *options, "--heads", "dense,sparse", "--fuse", "rrf")
    (alone,), _ = evaluate(model, *options, "--heads", "sparse")
    (answered,), _ = evaluate(model, *write_task({"q0": text}, [judged]), "--heads", "sparse")
    tasks = [result["tasks"][0] for result in (dense, sparse, fused, alone)]
    assert [task["without_vectors"]["queries"]["count"] for task in tasks] == [1, 2, 1, 2]
    assert tasks[0]["without_vectors"]["queries"]["first"] == {
        "place": "queries.jsonl:3", "id": "q2", "reason": "text is empty",
    }  # fmt: skip
    assert dense["tasks"][0]["measures"]["map"] == pytest.approx(2 / 3)
    for name, value in answered["tasks"][0]["measures"].items():
        assert tasks[1]["measures"][name] == tasks[3]["measures"][name] == pytest.approx(value / 3)
    assert f"in, {model} sparse: 2 queries without a vector score 0; first: queries.jsonl:2 (id q1): " in notes


def test_a_pair_with_a_text_without_terms_has_the_similarity_0(home: Path, model: Path) -> None:
    words = sorted(reference.samples(), key=len)[-3:]
    pairs = [(words[0], words[0], 1), (words[1], "🙂", 0), (words[2], words[2], 1), ("🙂", words[1], 0)]
    rows = [{"text_a": first, "text_b": second, "score": score} for first, second, score in pairs]
    jobs.write_jsonl(home / "in.jsonl", rows)
    for heads in ("sparse", "dense,sparse"):
        results, notes = evaluate(model, "--heads", heads)
        task = results[-1]["tasks"][0]
        assert task["measures"]["pearson"] == pytest.approx(1)
        assert task["without_vectors"]["pairs"]["count"] == 2
        assert "2 pairs without both vectors have the similarity 0; first: in.jsonl:2: " in notes


def test_a_row_whose_id_is_not_known_is_an_error(home: Path, model: Path) -> None:
    options = write_task({"q0": reference.samples()[3]}, [("q0", "r3")])
    with (home / "queries.jsonl").open("a") as file:
        file.write("no JSON\n")
    ended = jobs.run("eval", "in.jsonl", "-m", model, *options)
    assert ended.code == 1
    assert "queries.jsonl:2: bad JSON" in ended.err
