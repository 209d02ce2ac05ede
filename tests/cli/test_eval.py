"""`embedcli eval`: the values are those of scipy and scikit-learn on the encoder's own vectors."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics
from typer.testing import CliRunner

from embedcli.analysis.text_encoder import TextEncoder
from embedcli.cli import app
from embedcli.core.job import Job
from searchable import PROMPTS, TEXTS, TOPICS, model_folder

SCORES = [float((i * 7) % 11) / 2 for i in range(len(TEXTS))]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "tiny", PROMPTS)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "small", dim=5)


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["eval", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def evaluated(*args: object) -> list[dict[str, Any]]:
    code, out, err = run(*args, "--json")
    assert code == 0, err
    found: list[dict[str, Any]] = json.loads(out)
    return found


def vectors(model: Path, texts: list[str], **flags: Any) -> Any:
    with TextEncoder(Job((), "-", model=str(model), **flags)) as encoder:
        return encoder.encode(texts)


def write_pairs(path: Path, names: tuple[str, str, str] = ("text_a", "text_b", "score")) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(names)
        rows.writerows(zip(TEXTS, TEXTS[::-1], SCORES, strict=True))
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("names", [("text_a", "text_b", "score"), ("sentence1", "sentence2", "label"), ("x", "y", "z")])
def test_pairs(tmp_path: Path, model: Path, names: tuple[str, str, str]) -> None:
    path = write_pairs(tmp_path / "sts.csv", names)
    flags = ("--columns", "x,y,z") if names[0] == "x" else ()
    (found,) = evaluated(path, "-m", model, *flags)
    cosines = np.sum(vectors(model, TEXTS) * vectors(model, TEXTS[::-1]), axis=1)
    assert found["tasks"][0]["name"] == "sts"
    assert found["tasks"][0]["measures"] == {
        "spearman": pytest.approx(scipy.stats.spearmanr(cosines, SCORES).statistic),
        "pearson": pytest.approx(scipy.stats.pearsonr(cosines, SCORES).statistic),
    }
    assert (found["rows"], found["rows_per_second"] > 0) == (2 * len(TEXTS), True)


def test_several_files_and_models_make_a_table(tmp_path: Path, model: Path, other: Path) -> None:
    one = write_pairs(tmp_path / "one.csv")
    rows = [{"text_a": a, "text_b": b, "score": s} for a, b, s in zip(TEXTS, TEXTS[1:], SCORES, strict=False)]
    two = write_jsonl(tmp_path / "two.jsonl", rows)
    code, out, err = run(one, two, "-m", model, "-m", other)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    found = evaluated(one, two, "-m", model, "-m", other)
    assert lines[0].split() == ["model", "one", "two", "average", "rows/s"]
    for line, each in zip(lines[1:3], found, strict=True):
        main = [task["measures"]["spearman"] for task in each["tasks"]]
        assert line.split()[:4] == [each["model"], *(f"{100 * value:.2f}" for value in (*main, np.mean(main)))]
        assert each["average"] == pytest.approx(np.mean(main))
    assert [line.split()[:2] for line in lines[5:]] == [
        [name, measure] for name in ("one", "two") for measure in ("spearman", "pearson")
    ]


def documents(path: Path) -> Path:
    return write_jsonl(path, [{"id": i, "text": text} for i, text in enumerate(TEXTS)])


def queries(path: Path) -> Path:
    return write_jsonl(
        path, [{"qid": name, "query": words} for name, words in TOPICS.items()] + [{"qid": "none", "query": "sun"}]
    )


def relevance() -> dict[str, dict[int, int]]:
    """A document is as relevant as it has words of the topic."""
    return {
        name: {i: n for i, text in enumerate(TEXTS) if (n := len(set(text.split()) & set(words.split())))}
        for name, words in TOPICS.items()
    }


@pytest.mark.parametrize("trec", [False, True])
def test_retrieval(tmp_path: Path, model: Path, trec: bool) -> None:
    judged = [(name, i, n) for name, row in relevance().items() for i, n in row.items()]
    if trec:
        path = tmp_path / "qrels.txt"
        path.write_text("".join(f"{name} 0 {i} {n}\n" for name, i, n in judged))
    else:
        rows = [{"query_id": name, "document_id": i, "relevance": n} for name, i, n in judged]
        path = write_jsonl(tmp_path / "qrels.jsonl", rows)
    docs, asked = documents(tmp_path / "docs.jsonl"), queries(tmp_path / "q.jsonl")
    (found,) = evaluated(docs, "--queries", asked, "--relevance", path, "-k", 3, "-m", model)
    scores = vectors(model, list(TOPICS.values()), as_="query") @ vectors(model, TEXTS, as_="document").T
    gains = np.array([[relevance()[name].get(i, 0) for i in range(len(TEXTS))] for name in TOPICS])
    best = np.take_along_axis(gains, np.argsort(-scores, axis=1)[:, :3], axis=1)
    precisions = [metrics.average_precision_score(row > 0, s) for row, s in zip(gains, scores, strict=True)]
    assert found["tasks"][0]["measures"] == {
        "ndcg@3": pytest.approx(metrics.ndcg_score(gains, scores, k=3)),
        "recall@3": pytest.approx(np.mean((best > 0).sum(axis=1) / (gains > 0).sum(axis=1))),
        "map": pytest.approx(np.mean(precisions)),
    }
    assert found["rows"] == len(TEXTS) + len(TOPICS)


def test_prompts_of_retrieval_can_be_given(tmp_path: Path, model: Path) -> None:
    judged = [(name, i, n) for name, row in relevance().items() for i, n in row.items()]
    rows = [{"query_id": name, "document_id": i, "relevance": n} for name, i, n in judged]
    files = (
        documents(tmp_path / "docs.jsonl"), "--queries", queries(tmp_path / "q.jsonl"),
        "--relevance", write_jsonl(tmp_path / "qrels.jsonl", rows), "-m", model,
    )  # fmt: skip
    given = ("--query-prompt", PROMPTS["query"], "--document-prompt", PROMPTS["document"])
    assert evaluated(*files)[0]["tasks"] == evaluated(*files, *given)[0]["tasks"]
    assert (
        evaluated(*files)[0]["tasks"] != evaluated(*files, "--query-prompt", "snow bread snow bread snow ")[0]["tasks"]
    )


def test_clustering(tmp_path: Path, model: Path) -> None:
    rows = [{"text": word, "topic": name} for name, words in TOPICS.items() for word in words.split()]
    (found,) = evaluated(write_jsonl(tmp_path / "words.jsonl", rows), "--label", "topic", "-m", model)
    assert found["tasks"][0]["measures"] == {"v_measure": pytest.approx(1)}
    shuffled = [row | {"topic": rows[i * 7 % len(rows)]["topic"]} for i, row in enumerate(rows)]
    (found,) = evaluated(write_jsonl(tmp_path / "words.jsonl", shuffled), "--label", "topic", "-m", model)
    assert found["tasks"][0]["measures"]["v_measure"] < 0.5


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("sts.csv", "--columns", "text_a,text_b"), 2, "names 2 columns"),
        (("sts.csv", "--columns", "text_a,text_b,grade"), 2, "sts.csv: --columns: there is no column 'grade'"),
        (("sts.csv", "--columns", "text_a,text_c,score"), 2, "sts.csv: --columns: there is no column 'text_c'"),
        (("docs.jsonl", "--label", "topics"), 2, "docs.jsonl: --label: there is no column 'topics'"),
        (("docs.jsonl",), 2, "has none of the columns text_a, sentence1"),
        (("docs.jsonl", "--queries", "q.jsonl"), 2, "must be used together"),
        (("sts.csv", "--label", "x", "--columns", "a,b,c"), 2, "choose one"),
        (("bad.csv",), 1, "bad.csv:3: score is 'high', not a number"),
        (("short.csv",), 1, "the file has 1"),
        (("docs.jsonl", "--queries", "q.jsonl", "--relevance", "qrels.txt"), 1, "no query has a relevant document"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, model: Path, args: tuple[str, ...], code: int, message: str
) -> None:
    write_pairs(tmp_path / "sts.csv")
    documents(tmp_path / "docs.jsonl")
    queries(tmp_path / "q.jsonl")
    (tmp_path / "qrels.txt").write_text("nobody 0 1 1\n")
    (tmp_path / "bad.csv").write_text("text_a,text_b,score\nsun,rain,1\nsun,rain,high\n")
    (tmp_path / "short.csv").write_text("text_a,text_b,score\nsun,rain,1\n")
    paths = [tmp_path / arg if (tmp_path / arg).exists() else arg for arg in args]
    got, out, err = run(*paths, "-m", model)
    assert (got, out) == (code, "")
    assert message in err
    assert "--keep" not in err


def test_a_missing_column_is_blamed_on_the_option_that_named_it(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("left,right,score\nx,y,1\n")
    code, _, err = run(tmp_path / "pairs.csv", "--columns", "a,right,score")
    assert code == 2
    assert "pairs.csv: --columns: there is no column 'a'; its columns are 'left', 'right', 'score'" in err


def test_a_count_of_zero_is_too_small(tmp_path: Path) -> None:
    code, _, err = run(tmp_path / "pairs.csv", "--count", "0")
    assert (code, err) == (2, "error: --count 0 is too small\nhint: give 1 or more\n")
