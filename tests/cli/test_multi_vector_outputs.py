"""Outputs of multi-vector models from encoding to every command that reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
import multi_vector_models
from embedcli.outputs.dataset import open_dataset
from searchable import model_folder

WORDS = (
    "cat",
    "dog",
    "fox",
    "horse",
    "mouse",
    "rain",
    "sun",
    "wind",
    "snow",
    "storm",
    "pan",
    "spoon",
    ",",
    "kettle",
    "!",
)
ROWS = 60
QUERIES = ("snow storm, and rain", "a cat", "the fox and the horse and the kettle and the spoon and the pan")


def texts(count: int = ROWS) -> list[dict[str, Any]]:
    chance = random.Random(2)
    return [{"id": f"r{i}", "text": " ".join([*chance.choices(WORDS, k=i % 20), "sun"])} for i in range(count)]


class Models:
    """The folders of the models, and what sentence-transformers loads from them."""

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import MultiVectorEncoder

        self.folder = folder
        multi_vector_models.build_multi_vector(folder / "own", folder)
        multi_vector_models.build_pylate(folder / "pylate")
        multi_vector_models.build_original(folder / "original")
        model_folder(folder / "dense")
        self.encoders: dict[str, Any] = {
            name: MultiVectorEncoder(str(folder / name), device="cpu", local_files_only=True).eval()
            for name in ("own", "pylate", "original")
        }

    def scores(self, name: str, queries: tuple[str, ...] = QUERIES, count: int = ROWS) -> np.ndarray[Any, Any]:
        """The similarity of each query with each row, all by sentence-transformers."""
        encoder = self.encoders[name]
        documents = encoder.encode_document([row["text"] for row in texts(count)])
        scores: np.ndarray[Any, Any] = encoder.similarity(encoder.encode_query(list(queries)), documents).numpy()
        return scores


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("multi-vector"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: Models) -> Path:
    """The current folder: rows, and the folders of the models."""
    monkeypatch.chdir(tmp_path)
    for folder in ("own", "pylate", "original", "dense"):
        (tmp_path / folder).symlink_to(models.folder / folder)
    jobs.write_jsonl(tmp_path / "in.jsonl", texts())
    return tmp_path


def made(output: str, model: str = "own", *more: object) -> None:
    flags = ("--model", f"./{model}", "--keep", "text", "--quiet", "--offline", "--device", "cpu")
    ended = jobs.run("encode", "in.jsonl", output, *flags, *more)
    assert (ended.code, ended.err) == (0, "")


def run_json(*args: object) -> Any:
    ended = jobs.run(*args, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def refusal(*args: object) -> str:
    ended = jobs.run(*args)
    assert ended.code == 2, ended.err
    return ended.err


# Search


@pytest.mark.parametrize("model", ["own", "pylate", "original"])
def test_the_best_ten_of_a_thousand_rows_are_those_of_sentence_transformers(
    home: Path, models: Models, model: str
) -> None:
    """With its markers, its mask tokens and its limits: each side of the model has others."""
    jobs.write_jsonl(home / "in.jsonl", texts(1000))
    made("out.parquet", model)
    jobs.write_jsonl(home / "queries.jsonl", [{"id": i, "text": query} for i, query in enumerate(QUERIES)])
    ended = jobs.run("search", "out.parquet", "--queries", "queries.jsonl", "--offline")
    assert ended.code == 0, ended.err
    hits = [json.loads(line) for line in ended.out.splitlines()]
    for query, scores in enumerate(models.scores(model, count=1000)):
        found = [hit for hit in hits if hit["query_id"] == query]
        order = np.argsort(-scores, kind="stable")
        assert [hit["score"] for hit in found] == pytest.approx(scores[order[:10]].tolist(), abs=1e-4)
        # Rows of equal texts, or of equal tokens after the limit, have equal scores: any of them may come first.
        best = {f"r{i}" for i in np.flatnonzero(scores >= scores[order[9]] - 1e-4)}
        assert {hit["id"] for hit in found} <= best
        assert [hit["rank"] for hit in found] == list(range(1, 11))
        assert {hit["id"] for hit in found} >= {f"r{i}" for i in np.flatnonzero(scores > scores[order[9]] + 1e-4)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("out.parquet", ("--precision", "float16")),
        ("out.jsonl", ()),
        ("out.arrow", ("--precision", "int8")),
        ("out.lance", ()),
        ("out.npy", ("--precision", "uint8")),
        ("out/", ()),
    ],
)
def test_every_format_is_searched(home: Path, models: Models, name: str, options: tuple[object, ...]) -> None:
    made(name, "own", *options)
    found = run_json("search", name, QUERIES[0], "-k", 5, "--offline")
    scores = models.scores("own")[0]
    tolerance = 0.15 if "8" in str(options) else 0.01
    assert [hit["score"] for hit in found] == pytest.approx(np.sort(scores)[::-1][:5].tolist(), abs=tolerance)
    assert found[0]["text"] == texts()[int(found[0]["id"][1:])]["text"]


def test_a_metric_of_single_vectors_is_refused_before_the_model_is_loaded(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedcli import encoders

    made("out.parquet")
    monkeypatch.setattr(encoders, "load_encoder", None)
    assert "--metric cosine needs a vector for each row" in refusal(
        "search", "out.parquet", "cat", "--metric", "cosine"
    )


def test_rankings_of_dense_vectors_and_of_tokens_are_fused(home: Path) -> None:
    made("dense.parquet", "dense")
    made("tokens.parquet", "own")
    ranks: dict[str, float] = {}
    for path in ("dense.parquet", "tokens.parquet"):
        for hit in run_json("search", path, "cat rain", "-k", ROWS, "--offline"):
            ranks[hit["id"]] = ranks.get(hit["id"], 0) + 1 / (60 + hit["rank"])
    found = run_json("search", "dense.parquet", "tokens.parquet", "cat rain", "--fuse", "rrf", "-k", 6, "--offline")
    assert [hit["score"] for hit in found] == pytest.approx(sorted(ranks.values(), reverse=True)[:6], abs=1e-6)
    assert [ranks[hit["id"]] for hit in found] == pytest.approx([hit["score"] for hit in found], abs=1e-6)


def test_another_output_is_not_taken_for_words(home: Path) -> None:
    made("out.parquet")
    for words in (["out.parquet", "cat"], ["out.parquet"]):
        message = refusal("search", "out.parquet", *words)
        assert "out.parquet is an output, and several outputs need --fuse rrf" in message
    (home / "cat").write_text("no output")
    assert len(run_json("search", "out.parquet", "cat", "rain", "-k", 2, "--offline")) == 2


# Inspect


def test_a_description_counts_vectors(home: Path) -> None:
    made("out.parquet")
    lengths = np.array([len(row) for row in pq.read_table("out.parquet").column("embedding").to_pylist()])
    described = run_json("inspect", "out.parquet")
    assert (described["vector_kind"], described["dim"]) == ("multi_vector", multi_vector_models.DIM)
    assert described["token_vectors"] == {
        "total": lengths.sum(),
        "per_row": {
            "min": lengths.min(), "median": np.median(lengths), "p95": np.quantile(lengths, 0.95), "max": lengths.max(),
        },
        "empty_rows": 0,
        "excess_rows": 0,
    }  # fmt: skip
    assert described["norms"]["min"] == pytest.approx(1, abs=1e-3)
    assert described["terms"] is None
    shown = jobs.run("inspect", "out.parquet").out
    assert f"{lengths.sum():,} of {multi_vector_models.DIM} dimensions, stored as float32" in shown
    assert f"{lengths.min()} to {lengths.max()}, median {np.median(lengths):g}" in shown


def test_other_programs_bytes_are_described_without_their_ranges(home: Path) -> None:
    kind = pa.list_(pa.list_(pa.int8(), 2))
    pq.write_table(pa.table({"embedding": pa.array([[[3, 4], [0, 0]], [[0, 0]], []], kind)}), "foreign.parquet")
    described = run_json("inspect", "foreign.parquet")
    assert described["norms"] == {"min": 0, "median": 0, "max": 5}
    assert described["zero_rows"] == 1
    assert described["token_vectors"]["empty_rows"] == 1
    assert "1 row all zero; 1 row without vectors" in jobs.run("inspect", "foreign.parquet").out
    assert "does not name the model" in refusal("search", "foreign.parquet", "cat")


# Verify


def verify(*args: object) -> tuple[int, dict[str, dict[str, Any]]]:
    ended = jobs.run("verify", *args, "--offline", "--json")
    return ended.code, {check["name"]: check for check in json.loads(ended.out)["checks"]}


@pytest.mark.parametrize("model", ["own", "pylate", "original"])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--precision", "float16"),
        ("--precision", "int8"),
        ("--pool-factor", 3),
        ("--as", "query"),
        ("--max-seq-length", 12),
        ("--overflow", "split"),
    ],
)
def test_an_output_is_verified(home: Path, model: str, options: tuple[object, ...]) -> None:
    made("out.parquet", model, *options)
    code, checks = verify("out.parquet")
    assert code == 0, checks
    assert {check["ok"] for check in checks.values()} == {True}
    assert "rows encoded again: lowest cosine " in checks["vectors"]["detail"]


@pytest.mark.parametrize("name", ["out.npy", "out.arrow", "out.jsonl", "out.lance", "out/"])
def test_every_format_is_verified(home: Path, name: str) -> None:
    made(name)
    code, checks = verify(name)
    assert code == 0, checks
    assert {check["ok"] for check in checks.values()} == {True}


def rewrite(change: Callable[[list[list[list[float]]]], Any]) -> None:
    """Write bad.parquet: out.parquet with other vectors, without its digests."""
    table = pq.read_table("out.parquet")
    rows = table.column("embedding").to_pylist()
    change(rows)
    at, field = table.schema.get_field_index("embedding"), table.schema.field("embedding")
    changed = table.set_column(at, field, pa.array(rows, field.type))
    kept = {key: value for key, value in table.schema.metadata.items() if b"digest" not in key}
    pq.write_table(changed.replace_schema_metadata(kept), "bad.parquet")


def change_one(rows: Any) -> None:
    """One vector of a row by about 2 degrees, which the mean cosine of its vectors would hide."""
    vector = np.array(rows[15][-1])
    other = np.eye(len(vector))[0] * 0.04 + vector
    rows[15][-1] = (other / np.linalg.norm(other)).tolist()


def drop_one(rows: Any) -> None:
    del rows[15][-1]


def swap_two(rows: Any) -> None:
    rows[15][0], rows[15][1] = rows[15][1], rows[15][0]


def repeat_one(rows: Any) -> None:
    rows[15].insert(0, rows[15][0])


@pytest.mark.parametrize("change", [change_one, drop_one, swap_two, repeat_one])
def test_vectors_that_are_not_those_of_the_text_are_found(home: Path, change: Any) -> None:
    made("out.parquet")
    rewrite(change)
    code, checks = verify("bad.parquet", "in.jsonl", "--all")
    assert code == 1
    assert (checks["vectors"]["ok"], checks["vectors"]["ids"]) == (False, ["r15"])
    assert checks["values"]["ok"]


def not_finite(rows: Any) -> None:
    rows[15][0][3] = float("nan")


@pytest.mark.parametrize(
    ("change", "problem"),
    [(drop_one, "1 with another number of vectors"), (not_finite, "1 with values that are not finite")],
)
def test_a_row_that_has_no_cosine_is_not_counted_as_one_below(home: Path, change: Any, problem: str) -> None:
    made("out.parquet")
    rewrite(change)
    _, checks = verify("bad.parquet", "in.jsonl", "--all")
    assert checks["vectors"]["detail"].endswith(f"; 0 below 0.9999; {problem}")
    assert checks["vectors"]["ids"] == ["r15"]


def empty(rows: Any) -> None:
    rows[7] = []


def clear(rows: Any) -> None:
    rows[7] = [[0.0] * len(vector) for vector in rows[7]]


def spoil(rows: Any) -> None:
    rows[7][1][3] = float("inf")


def multiply(rows: Any) -> None:
    rows[7] = rows[7] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (empty, "1 without vectors"),
        (clear, "1 with zeros only"),
        (spoil, "1 row with non-finite values"),
        (multiply, "1 with more vectors than tokens"),
    ],
)
def test_rows_that_were_not_stored_so_are_found(home: Path, change: Any, message: str) -> None:
    made("out.parquet")
    rewrite(change)
    code, checks = verify("bad.parquet", "--only-output")
    assert code == 1
    assert not checks["values"]["ok"]
    assert message in checks["values"]["detail"]
    if change is empty:
        ended = jobs.run("search", "bad.parquet", "cat", "--offline")
        assert ended.code != 0
        assert "bad.parquet: row 8 (id r7) has no vectors" in ended.err


def test_places_that_do_not_fit_the_matrix_are_an_error_of_every_command(home: Path) -> None:
    made("out.npy")
    table = pq.read_table("out.ids.parquet")
    at = table.schema.get_field_index("start")
    starts = pa.array(table.column("start").to_numpy() + 1)
    pq.write_table(table.set_column(at, table.schema.field(at), starts), "out.ids.parquet")
    for command in (("search", "out.npy", "cat", "--offline"), ("inspect", "out.npy")):
        ended = jobs.run(*command)
        assert ended.code != 0
        assert "do not begin where those of the row before it end" in ended.err


# Compare, plot, evaluate


def test_outputs_are_compared_by_their_neighbours(home: Path) -> None:
    made("out.parquet")
    made("pooled.npy", "own", "--pool-factor", 2)
    found = run_json("compare", "out.parquet", "pooled.npy", "--precision", "int8")
    for comparison in found:
        assert 0.3 < comparison["overlap"]["mean"] <= 1
        assert comparison["cosine_rows"] == ROWS
    assert found[0]["second"]["bytes"] < found[0]["first"]["bytes"] * 0.7
    assert found[1]["second"]["bytes"] == found[0]["first"]["bytes"] / 4
    made("dense.parquet", "dense")
    assert "out.parquet has multi-vector vectors, dense.parquet dense ones" in refusal(
        "compare", "out.parquet", "dense.parquet"
    )


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("plot", "out.parquet", "map.html"), "has multi-vector vectors, and a map needs dense ones"),
        (
            ("compare", "out.parquet", "--truncate-dim", "8"),
            "multi-vector vectors, which cannot be cut",
        ),
        (("compare", "out.parquet", "--precision", "binary"), "multi-vector vectors, which are not stored as binary"),
    ],
)
def test_what_needs_dense_vectors_refuses_those_of_tokens(home: Path, command: tuple[str, ...], message: str) -> None:
    made("out.parquet")
    assert message in refusal(*command)


def write_relevance(home: Path, documents: list[str]) -> tuple[str, ...]:
    """One query whose relevant documents are these. Returns the options of `eval`."""
    jobs.write_jsonl(home / "queries.jsonl", [{"id": "q", "text": QUERIES[0]}])
    lines = "".join(f"q\t{document}\t1\n" for document in documents)
    (home / "relevance.tsv").write_text("query_id\tdocument_id\trelevance\n" + lines, "utf-8")
    return ("--queries", "queries.jsonl", "--relevance", "relevance.tsv")


def test_an_evaluation_ranks_by_maxsim(home: Path, models: Models) -> None:
    order = np.argsort(-models.scores("own")[0], kind="stable")
    options = write_relevance(home, [f"r{order[2]}"])
    measures = run_json("eval", "in.jsonl", "--model", "./own", *options)[0]["tasks"][0]["measures"]
    assert measures["ndcg@10"] == pytest.approx(0.5)  # the third of the ranking: 1 / log2(4)
    assert measures["map"] == pytest.approx(1 / 3)


def test_what_has_no_maxsim_is_not_evaluated(home: Path) -> None:
    pairs = [{"text_a": row["text"], "text_b": "sun", "score": i} for i, row in enumerate(texts(4))]
    jobs.write_jsonl(home / "pairs.jsonl", pairs)
    assert "MaxSim compares a query with a document" in refusal("eval", "pairs.jsonl", "--model", "./own")
    jobs.write_jsonl(home / "labels.jsonl", [{"text": row["text"], "label": i % 2} for i, row in enumerate(texts(4))])
    labelled = refusal("eval", "labels.jsonl", "--model", "./own", "--label", "label")
    assert "multi-vector vectors, and k-means needs dense ones" in labelled


def test_an_evaluation_fuses_the_rankings_of_models(home: Path) -> None:
    made("dense.parquet", "dense")
    made("tokens.parquet", "own")
    fused = run_json("search", "dense.parquet", "tokens.parquet", QUERIES[0], "--fuse", "rrf", "-k", ROWS, "--offline")
    options = write_relevance(home, [fused[4]["id"], fused[1]["id"]])
    results = run_json("eval", "in.jsonl", "-m", "./dense", "-m", "./own", *options, "--fuse", "rrf")
    assert [result["model"] for result in results] == ["./dense", "./own", "rrf"]
    assert results[2]["fused"] == ["./dense", "./own"]
    assert results[2]["tasks"][0]["measures"]["map"] == pytest.approx((1 / 2 + 2 / 5) / 2)
    shown = jobs.run("eval", "in.jsonl", "-m", "./dense", "-m", "./own", *options, "--fuse", "rrf").out
    assert shown.count("rrf") == 2


def test_a_fusion_needs_two_models_and_queries(home: Path) -> None:
    options = write_relevance(home, ["r1"])
    assert "--fuse rrf needs two models or heads, and only ./own was given" in refusal(
        "eval", "in.jsonl", "-m", "./own", *options, "--fuse", "rrf"
    )
    assert "there are none without queries" in refusal("eval", "in.jsonl", "-m", "a", "-m", "b", "--fuse", "rrf")


def test_a_query_may_be_stored_and_read_too(home: Path, models: Models) -> None:
    jobs.write_jsonl(home / "in.jsonl", [{"id": i, "text": query} for i, query in enumerate(QUERIES)])
    made("queries.npy", "own", "--as", "query")
    output = open_dataset("queries.npy")
    (block,) = output.read_blocks()
    expected = models.encoders["own"].encode_query(list(QUERIES), convert_to_numpy=True)
    assert isinstance(block.vectors, type(output.block_vectors(block)))
    np.testing.assert_allclose(block.vectors.values, np.concatenate(expected), atol=1e-4)  # type: ignore[union-attr]
