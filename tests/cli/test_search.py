"""`embedcli search`: words find their rows, with the model and the query prompt that the output names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from embedcli.analysis import queries as queries_module
from embedcli.analysis import search
from embedcli.analysis.text_encoder import TextEncoder, choose_query_prompt
from embedcli.cli import app
from embedcli.core.job import Job
from embedcli.models.config import PromptNote
from sample_outputs import FORMATS, PRECISIONS, make_output, sparse_vectors, unit_vectors
from searchable import DIM, PROMPTS, TEXTS, embedded, model_folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "prompted", PROMPTS)


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["search", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def expected(model: Path, query: str, k: int, **flags: str) -> list[str]:
    """Ids by plain cosine over everything."""
    with TextEncoder(Job((), "", model=str(model), **flags)) as encoder:  # type: ignore[arg-type]
        scores = encoder.encode(TEXTS) @ encoder.encode([query])[0]
    return [f"t{i}" for i in np.argsort(-scores, kind="stable")[:k]]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_words_find_their_rows(tmp_path: Path, model: Path, name: str, precision: str) -> None:
    path = embedded(tmp_path / name, model, precision=precision)
    code, out, err = run(path, "mouse", "-k", 3, "--json")
    hits = json.loads(out)
    assert (code, err) == (0, "")
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert (hits[0]["id"], hits[0]["text"]) == ("t6", "mouse")
    if precision == "float32":
        assert [hit["id"] for hit in hits] == expected(model, "mouse", 3)
        assert hits[0]["score"] == pytest.approx(1, abs=1e-5)


def test_a_search_imports_nothing_heavy(tmp_path: Path, model: Path) -> None:
    path = embedded(tmp_path / "out.parquet", model)
    code = f"""
import sys
sys.argv = ["embedcli", "search", {str(path)!r}, "mouse"]
from embedcli.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(*sorted({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stderr.split()
    assert "t6" in done.stdout
    assert not {"torch", "transformers", "sentence_transformers", "pandas", "scipy"} & set(loaded)


def test_people_see_score_id_and_text(tmp_path: Path, model: Path) -> None:
    path = embedded(tmp_path / "out.parquet", model)
    code, out, err = run(path, "storm", "storm", "rain", "-k", "2")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["score", "id", "text"]
    assert lines[1].split(maxsplit=2) == ["1.0000", "t11", "storm storm rain"]
    assert len(lines) == 3


def test_the_query_prompt_is_the_models_not_the_rows(tmp_path: Path, prompted: Path) -> None:
    path = embedded(tmp_path / "out.parquet", prompted, as_="document")
    assert json.loads((prompted / "config_sentence_transformers.json").read_text())["prompts"] == PROMPTS
    hit = json.loads(run(path, "mouse", "--json")[1])[0]
    with TextEncoder(Job((), "", model=str(prompted))) as encoder:
        rows = encoder.encode([f"passage: {text}" for text in TEXTS])
        query = encoder.encode(["query: mouse"])[0]
    best = int(np.argmax(rows @ query))
    assert (hit["id"], hit["score"]) == (f"t{best}", pytest.approx(float((rows @ query).max()), abs=1e-5))
    own = json.loads(run(path, "mouse", "--prompt", "passage: ", "--json")[1])
    assert (own[0]["id"], own[0]["score"]) == ("t6", pytest.approx(1, abs=1e-5))


def test_only_the_note_of_an_empty_prompt_is_silenced() -> None:
    notes: list[str] = []
    notify = search.without_empty_prompt(notes.append)
    for note in (PromptNote("", "none for --as query"), PromptNote("query: ", "named query"), "prompt: '' is odd"):
        notify(note)
    assert notes == ["prompt: 'query: ' (named query)", "prompt: '' is odd"]


def test_a_forgotten_query_prompt_is_said(tmp_path: Path, model: Path) -> None:
    path = embedded(tmp_path / "out.parquet", model, prompt="passage: ")
    code, _, err = run(path, "mouse")
    assert code == 0
    assert "embedded with the prompt 'passage: ', the query without one; see --prompt" in err


def test_truncated_and_unnormalised_spaces_are_met(tmp_path: Path, model: Path) -> None:
    path = embedded(tmp_path / "out.parquet", model, truncate_dim=8, normalize=False)
    hits = json.loads(run(path, "mouse", "--json")[1])
    assert (hits[0]["id"], hits[0]["score"]) == ("t6", pytest.approx(1, abs=1e-5))
    dot = json.loads(run(path, "mouse", "--json", "--metric", "dot")[1])
    assert max(hit["score"] for hit in dot) > 1.5


def test_another_version_of_the_model_is_refused(tmp_path: Path, model: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    path = embedded(tmp_path / "out.parquet", copy)
    with (copy / "tokenizer.json").open("a") as file:
        file.write(" ")
    code, out, err = run(path, "mouse")
    assert (code, out) == (2, "")
    assert "was encoded with another version of" in err
    assert run(path, "mouse", "--model", model)[0] == 0


def test_a_model_that_has_gone_is_named(tmp_path: Path, model: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    path = embedded(tmp_path / "out.parquet", copy)
    shutil.rmtree(copy)
    code, _, err = run(path, "mouse")
    assert code == 1
    assert str(copy) in err
    assert run(path, "mouse", "--model", model)[0] == 0


def test_an_output_without_a_space_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", unit_vectors(5, 24))
    code, _, err = run(tmp_path / "v.npy", "mouse")
    assert code == 2
    assert "does not name the model that made its vectors, which search needs" in err


def test_usage_errors_say_what_to_type(tmp_path: Path, model: Path) -> None:
    path = embedded(tmp_path / "out.parquet", model)
    code, _, err = run(path)
    assert (code, "search needs either words or --queries" in err) == (2, True)
    code, _, err = run(path, "mouse", "--show", "title")
    assert (code, "no column 'title'; it has id, n_tokens" in err) == (2, True)
    code, _, err = run(path, "qqq" * 0 + "\ud800")
    assert (code, "lone surrogate" in err) == (1, True)


def test_without_kept_text_ids_are_shown_and_a_hint(tmp_path: Path, model: Path) -> None:
    path = embedded(tmp_path / "out.parquet", model, kept=False)
    code, out, err = run(path, "mouse", "-k", 1)
    assert (code, out.split()) == (0, ["score", "id", "1.0000", "t6"])
    assert "--keep" in err


def test_fewer_rows_than_asked_and_none(tmp_path: Path, model: Path) -> None:
    assert len(json.loads(run(embedded(tmp_path / "a.parquet", model), "sun", "-k", 99, "--json")[1])) == len(TEXTS)
    space = {"model": str(model), "fingerprint": None, "normalize": True}
    none = make_output(tmp_path / "none.parquet", np.zeros((0, 24), np.float32), ids=[], space=space)
    assert run(none, "sun", "--json")[:2] == (0, "[]\n")
    code, out, err = run(none, "sun")
    assert (code, out) == (0, "")
    assert "no row was found" in err


def queries_file(path: Path, queries: list[str]) -> Path:
    path.write_text("".join(json.dumps({"qid": i, "query": text}) + "\n" for i, text in enumerate(queries)))
    return path


def test_many_queries_give_one_line_per_hit(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries_module, "QUERY_BATCH_ROWS", 2)
    path = embedded(tmp_path / "out.parquet", model)
    queries = queries_file(tmp_path / "q.jsonl", ["mouse", "sun", "pan spoon", "kettle", "storm"])
    code, out, _ = run(path, "--queries", queries, "-k", 2)
    hits = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(hit["query_id"], hit["rank"]) for hit in hits] == [(q, rank) for q in range(5) for rank in (1, 2)]
    for q, text in enumerate(["mouse", "sun", "pan spoon", "kettle", "storm"]):
        assert [hit["id"] for hit in hits if hit["query_id"] == q] == expected(model, text, 2)


def test_hits_go_to_files(tmp_path: Path, model: Path) -> None:
    path = embedded(tmp_path / "out.parquet", model)
    queries = queries_file(tmp_path / "q.jsonl", ["mouse", "sun"])
    for name in ("hits.parquet", "hits.jsonl"):
        code, out, _ = run(path, "--queries", queries, "-k", 3, "-o", tmp_path / name)
        assert (code, out) == (0, "")
    rows = pq.read_table(tmp_path / "hits.parquet").to_pylist()
    assert rows == [json.loads(line) for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["query_id", "query", "rank", "score", "id", "text"]
    assert len(rows) == 6


def test_queries_that_cannot_be_searched_are_named_and_the_others_answered(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries_module, "QUERY_BATCH_ROWS", 2)
    path = embedded(tmp_path / "out.parquet", model)
    queries = tmp_path / "q.jsonl"
    rows = [{"qid": i, "query": text} for i, text in enumerate(["sun", "", "mouse", "\u0001", "storm"])]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    code, out, err = run(path, "--queries", queries, "-k", 2, "-o", tmp_path / "hits.jsonl")
    assert (code, out) == (3, "")
    hits = [json.loads(line) for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    assert [(hit["query_id"], hit["id"]) for hit in hits if hit["rank"] == 1] == [(0, "t7"), (2, "t6"), (4, "t11")]
    assert len(hits) == 6
    named = [line for line in err.splitlines() if line.startswith("not searched: ")]
    assert [line.split(str(tmp_path))[1][:21] for line in sorted(named)] == [
        "/q.jsonl:2 (id 1): te",
        "/q.jsonl:4 (id 3): no",
        "/q.jsonl:6: bad JSON:",
    ]
    assert err.splitlines()[-1] == "3 queries were not searched, 3 were"


def test_a_file_without_a_usable_query_is_an_error(tmp_path: Path, model: Path) -> None:
    path = embedded(tmp_path / "out.parquet", model)
    (tmp_path / "q.jsonl").write_text('{"query": ""}\n{"query": "\\u0001"}\n')
    code, out, err = run(path, "--queries", tmp_path / "q.jsonl", "-o", tmp_path / "hits.jsonl")
    assert (code, out) == (1, "")
    assert "q.jsonl: no query can be searched; first: " in err
    assert err.endswith("q.jsonl:1 (id 0): text is empty\nhint: fix the queries\n")
    assert not (tmp_path / "hits.jsonl").exists()


@pytest.mark.parametrize(
    ("model", "prompt", "expected"),
    [
        ("intfloat/multilingual-e5-base", "passage: ", "query: "),
        ("intfloat/multilingual-e5-base", "", None),
        ("intfloat/multilingual-e5-base", "text: ", None),
        ("sentence-transformers/all-MiniLM-L6-v2", "passage: ", None),
    ],
)
def test_a_makers_prompt_for_documents_calls_for_theirs_for_queries(
    model: str, prompt: str, expected: str | None
) -> None:
    assert choose_query_prompt({"model": model, "prompt": prompt}) == expected


def test_a_model_of_another_kind_than_the_output_is_refused(tmp_path: Path, model: Path) -> None:
    space = {"model": str(model), "fingerprint": None}
    path = make_output(tmp_path / "out.parquet", sparse_vectors(4, DIM), space=space)
    code, _, err = run(path, "mouse")
    assert code == 1
    assert "has sparse vectors, its model now gives dense ones" in err
