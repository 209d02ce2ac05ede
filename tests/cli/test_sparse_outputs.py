"""Outputs of sparse encoders from encoding to every command that reads them."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
import sparse_models
from embedcli.core.row_vectors import as_dense
from embedcli.core.sparse_vectors import SparseVectors, concat_sparse
from embedcli.models.vocabulary import read_words
from embedcli.outputs.dataset import open_dataset
from embedcli.readers import preview
from searchable import model_folder

WORDS = ("cat", "dog", "fox", "horse", "mouse", "rain", "sun", "wind", "snow", "storm", "pan", "spoon", "kettle")
ROWS = 60
QUERY = "snow storm and rain"


def texts(count: int = ROWS) -> list[dict[str, Any]]:
    chance = random.Random(2)
    return [{"id": f"r{i}", "text": " ".join(chance.choices(WORDS, k=1 + i % 9))} for i in range(count)]


class Models:
    """The folders of the models, and what sentence-transformers loads from them."""

    def __init__(self, folder: Path) -> None:
        self.splade, self.free = folder / "splade", folder / "free"
        self.splade_encoder = sparse_models.build_splade(self.splade, folder / "work-1")
        self.free_encoder = sparse_models.build_inference_free(self.free, folder / "work-2")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("sparse"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    jobs.word_model(tmp_path)
    jobs.write_jsonl(tmp_path / "in.jsonl", texts())
    return tmp_path


def encode(output: str, model: Path, *more: object, source: str = "in.jsonl") -> jobs.Ended:
    return jobs.run("encode", source, output, "--model", model, "--keep", "text", "--quiet", *more)


def made(output: str, model: Path, *more: object) -> None:
    ended = encode(output, model, *more)
    assert (ended.code, ended.err) == (0, "")


def read(output: str) -> SparseVectors:
    blocks = [block.vectors for block in open_dataset(output).read_blocks()]
    return concat_sparse([vectors for vectors in blocks if isinstance(vectors, SparseVectors)])


def ids(scores: np.ndarray, k: int) -> list[str]:
    return [f"r{i}" for i in np.argsort(-scores, kind="stable")[:k]]


def hits(*args: object) -> list[dict[str, Any]]:
    ended = jobs.run("search", *args, "--json")
    assert ended.code == 0, ended.err
    found: list[dict[str, Any]] = json.loads(ended.out)
    return found


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.arrow", "out.lance", "out/"])
def test_a_search_ranks_by_the_dot_product_of_sentence_transformers(home: Path, models: Models, name: str) -> None:
    made(name, models.splade)
    encoder = models.splade_encoder
    documents = encoder.encode_document([row["text"] for row in texts()]).to_dense().numpy()
    scores = documents @ encoder.encode_query([QUERY]).to_dense().numpy()[0]
    found = hits(name, QUERY, "-k", 12)
    assert [hit["rank"] for hit in found] == list(range(1, 13))
    assert [hit["score"] for hit in found] == pytest.approx(np.sort(scores)[::-1][:12].tolist(), abs=1e-3)
    assert found[0]["text"] == texts()[int(found[0]["id"][1:])]["text"]
    assert [hit["text"] for hit in found][:1] == [texts()[int(ids(scores, 1)[0][1:])]["text"]]


def test_a_query_takes_the_query_side_of_an_inference_free_model(home: Path, models: Models) -> None:
    made("out.parquet", models.free, "--as", "document")
    encoder = models.free_encoder
    asked = " ".join(chr(letter) for letter in range(ord("a"), ord("z") + 1))
    query = encoder.encode_query([asked]).to_dense().numpy()[0]
    assert 0 < np.count_nonzero(query) <= 28
    found = hits("out.parquet", asked, "-k", 3)
    scores = encoder.encode_document([row["text"] for row in texts()]).to_dense().numpy() @ query
    assert np.sort(scores)[-3] > 0
    assert [hit["score"] for hit in found] == pytest.approx(np.sort(scores)[::-1][:3].tolist(), abs=1e-4)


def test_a_description_shows_terms_as_words(home: Path, models: Models) -> None:
    made("out.parquet", models.splade)
    vectors = read("out.parquet")
    described = json.loads(jobs.run("inspect", "out.parquet", "--json").out)
    assert (described["vector_kind"], described["dim"]) == ("sparse", vectors.dim)
    terms = described["terms"]
    lengths = vectors.lengths
    assert terms["per_row"] == {
        "min": lengths.min(), "median": np.median(lengths), "p95": np.quantile(lengths, 0.95), "max": lengths.max(),
    }  # fmt: skip
    assert terms["weights"] == {"min": float(vectors.values.min()), "max": float(vectors.values.max())}
    words = models.splade_encoder.decode(models.splade_encoder.encode([texts()[0]["text"]])[0], top_k=10)
    assert [entry["term"] for entry in terms["samples"][0]] == [word for word, _ in words]
    assert len(terms["samples"]) == 3
    shown = jobs.run("inspect", "out.parquet").out
    assert f"sparse, of a vocabulary of {vectors.dim:,} terms" in shown
    assert f"{words[0][0]} {words[0][1]:.3g}" in shown


def test_terms_without_the_model_are_numbers(home: Path, models: Models) -> None:
    made("out.parquet", models.splade)
    metadata = {**open_dataset("out.parquet").vector_space, "model": "./not-there"}
    table = pq.read_table("out.parquet").replace_schema_metadata({"embedcli": json.dumps(metadata)})
    pq.write_table(table, "moved.parquet")
    terms = json.loads(jobs.run("inspect", "moved.parquet", "--json").out)["terms"]
    assert all(isinstance(entry["term"], int) for entry in terms["samples"][0])


def test_words_of_another_number_are_not_those_of_the_dimensions(models: Models) -> None:
    path = next(models.splade.rglob("tokenizer.json"))
    size = len(models.splade_encoder.tokenizer)
    assert len(read_words(path, size)) == size
    assert read_words(path, size + 1) == {}


def fingerprint(words: list[str]) -> str:
    text = json.dumps(words, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_the_metadata_have_a_fingerprint_of_the_vocabulary(home: Path, models: Models) -> None:
    made("openvino.parquet", models.splade, "--engine", "openvino")
    made("torch.jsonl", models.splade, "--engine", "torch")
    made("free.parquet", models.free, "--as", "document")
    encoders = {"openvino.parquet": models.splade_encoder, "torch.jsonl": models.splade_encoder}
    for name, encoder in (encoders | {"free.parquet": models.free_encoder}).items():
        tokenizer = encoder.tokenizer
        words = [tokenizer.convert_ids_to_tokens(number) for number in range(len(tokenizer))]
        assert open_dataset(name).vocabulary == fingerprint(words)
    shown = jobs.run("inspect", "openvino.parquet").out
    assert re.search(rf"^  vocabulary +{str(open_dataset('torch.jsonl').vocabulary)[:12]}$", shown, re.MULTILINE)
    found = json.loads(jobs.run("compare", "openvino.parquet", "torch.jsonl", "--json").out)[0]
    assert found["same_vocabulary"] is True
    assert found["cosine"]["min"] > 0.9999


def test_dimensions_that_are_no_words_have_no_vocabulary(home: Path) -> None:
    sparse_models.build_top_k(home / "top-k")
    made("out.parquet", home / "top-k")
    assert open_dataset("out.parquet").vocabulary is None


def with_vocabulary(source: str, target: Path, vocabulary: str) -> None:
    table = pq.read_table(source)
    metadata = json.loads(table.schema.metadata[b"embedcli"]) | {"vocabulary": vocabulary}
    pq.write_table(table.replace_schema_metadata({"embedcli": json.dumps(metadata)}), target)


def test_weights_of_different_vocabularies_are_not_compared(home: Path, models: Models) -> None:
    made("out.parquet", models.splade)
    with_vocabulary("out.parquet", home / "other.parquet", fingerprint(["a", "b"]))
    found = json.loads(jobs.run("compare", "out.parquet", "other.parquet", "--json").out)[0]
    assert (found["same_vocabulary"], found["cosine"], found["overlap"]["mean"]) == (False, None, 1.0)
    assert (
        "out.parquet and other.parquet have different vocabularies"
        in jobs.run("compare", "out.parquet", "other.parquet").err
    )
    (home / "mixed").mkdir()
    pq.write_table(pq.read_table("out.parquet"), "mixed/a.parquet")
    with_vocabulary("out.parquet", home / "mixed" / "b.parquet", fingerprint(["a", "b"]))
    ended = jobs.run("compare", "mixed", "out.parquet")
    assert "mixed: its files have sparse vectors of different vocabularies" in ended.err


def verify(*args: object) -> tuple[int, dict[str, dict[str, Any]]]:
    ended = jobs.run("verify", *args, "--json")
    return ended.code, {check["name"]: check for check in json.loads(ended.out)["checks"]}


@pytest.mark.parametrize(
    "options", [(), ("--precision", "float16"), ("--precision", "int8"), ("--top-k-terms", 7), ("--min-weight", 0.3)]
)
def test_an_output_is_verified(home: Path, models: Models, options: tuple[object, ...]) -> None:
    made("out.parquet", models.splade, *options)
    code, checks = verify("out.parquet")
    assert code == 0
    assert {check["ok"] for check in checks.values()} == {True}
    assert f"{ROWS} rows encoded again" in checks["vectors"]["detail"]


def rewrite(change: Any) -> None:
    """Write bad.parquet: out.parquet with other vectors, without its digests."""
    table = pq.read_table("out.parquet")
    rows = table.column("embedding").to_pylist()
    change(rows)
    at, field = table.schema.get_field_index("embedding"), table.schema.field("embedding")
    changed = table.set_column(at, field, pa.array(rows, field.type))
    kept = {key: value for key, value in table.schema.metadata.items() if b"digest" not in key}
    pq.write_table(changed.replace_schema_metadata(kept), "bad.parquet")


def test_a_changed_weight_is_found(home: Path, models: Models) -> None:
    made("out.parquet", models.splade)

    def change(rows: list[dict[str, list[Any]]]) -> None:
        rows[5]["values"][0] += 3

    rewrite(change)
    code, checks = verify("bad.parquet", "in.jsonl", "--rows", ROWS)
    assert code == 1
    assert (checks["vectors"]["ok"], checks["vectors"]["ids"]) == (False, ["r5"])
    assert checks["values"]["ok"]


def test_weights_that_were_all_doubled_are_found(home: Path, models: Models) -> None:
    made("out.parquet", models.splade)

    def change(rows: list[dict[str, list[Any]]]) -> None:
        rows[5]["values"] = [2 * value for value in rows[5]["values"]]

    rewrite(change)
    code, checks = verify("bad.parquet", "in.jsonl", "--all")
    assert (code, checks["vectors"]["ids"]) == (1, ["r5"])
    assert checks["vectors"]["detail"].endswith("1 longer or shorter than the vector of the text")


@pytest.mark.parametrize("fault", ["order", "repeated", "not finite", "empty"])
def test_vectors_that_were_not_stored_so_are_found(home: Path, models: Models, fault: str) -> None:
    made("out.parquet", models.splade)

    def change(rows: list[dict[str, list[Any]]]) -> None:
        row = rows[7]
        if fault == "order":
            row["indices"][:2] = row["indices"][1::-1]
        elif fault == "repeated":
            row["indices"][1] = row["indices"][0]
        elif fault == "not finite":
            row["values"][0] = float("nan")
        else:
            row["indices"], row["values"] = [], []

    rewrite(change)
    code, checks = verify("bad.parquet", "--only-output")
    assert code == 1
    expected = {"order": "1 whose indices do not ascend", "repeated": "1 with an index twice"}
    others = {"not finite": "1 row with non-finite values", "empty": "1 with zeros only"}
    assert not checks["values"]["ok"]
    assert (expected | others)[fault] in checks["values"]["detail"]


def test_damaged_vectors_are_counted_and_shown_with_row_and_id(home: Path, models: Models) -> None:
    made("out.parquet", models.splade)

    def change(rows: list[dict[str, list[Any]]]) -> None:
        rows[7]["values"].pop()
        rows[20]["indices"][0] = 10**6

    rewrite(change)
    code, checks = verify("bad.parquet", "--only-output")
    assert (code, checks["values"]["ids"]) == (1, ["r7", "r20"])
    assert "2 that cannot be read; row 8 has more indices than values" in checks["values"]["detail"]
    shown = jobs.run("inspect", "bad.parquet").out
    assert "2 rows that cannot be read: row 8 (id r7) has more indices" in shown
    assert "row 21 (id r20) has an index outside of 0 to " in shown
    described = json.loads(jobs.run("inspect", "bad.parquet", "--json").out)
    assert (described["damaged_rows"], described["zero_rows"], described["rows"]) == (2, 0, ROWS)


def test_a_search_reports_damage_before_it_loads_the_model(
    home: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedcli import encoders

    made("out.parquet", models.splade)
    rewrite(lambda rows: rows[7]["values"].pop())
    monkeypatch.setattr(encoders, "load_encoder", None)
    ended = jobs.run("search", "bad.parquet", QUERY)
    assert ended.code == 1
    assert "bad.parquet: the vector of row 8 (id r7) has more indices than values" in ended.err


# Words without a common piece in the vocabulary, of which "dog" has no weight.
WORD_ROWS = ("sun", "rat", "keck sun", "jilly", "rat jilly")


@pytest.fixture(scope="module")
def word_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sparse model whose queries have the terms of their words alone, and a dense one."""
    folder = tmp_path_factory.mktemp("words")
    sparse_models.build_inference_free(folder / "free", folder / "work", weightless=("dog",))
    model_folder(folder / "dense")
    return folder


def make_words(home: Path, model: Path, output: str) -> None:
    """Encode rows as queries, so that each has the terms of its words alone."""
    jobs.write_jsonl(home / "words.jsonl", [{"id": f"w{i}", "text": text} for i, text in enumerate(WORD_ROWS)])
    ended = encode(output, model, "--as", "query", source="words.jsonl")
    assert ended.code == 0, ended.err


def test_a_query_without_terms_is_an_error_that_says_so(home: Path, word_models: Path) -> None:
    make_words(home, word_models / "free", "out.parquet")
    ended = jobs.run("search", "out.parquet", "dog")
    assert ended.code == 1
    message = "error: the query 'dog' has no vector: the model weighs no term of the text\nhint: use other words\n"
    assert ended.err.endswith(message)


def test_only_rows_that_share_a_term_are_hits_and_a_note_says_how_many(home: Path, word_models: Path) -> None:
    make_words(home, word_models / "free", "out.parquet")
    ended = jobs.run("search", "out.parquet", "sun", "--json")
    assert (ended.code, sorted(hit["id"] for hit in json.loads(ended.out))) == (0, ["w0", "w2"])
    assert ended.err.endswith("only 2 rows share a term with the query\n")
    ended = jobs.run("search", "out.parquet", "vow", "--json")
    assert (ended.code, json.loads(ended.out)) == (0, [])
    assert ended.err.endswith("no row shares a term with the query\n")
    assert "share" not in jobs.run("search", "out.parquet", "sun", "-k", 2).err
    assert "share" not in jobs.run("search", "out.parquet", " ".join(WORD_ROWS)).err


def test_queries_without_terms_or_matches_are_counted(home: Path, word_models: Path) -> None:
    make_words(home, word_models / "free", "out.parquet")
    asked = ["sun", "dog", "vow", "jilly"]
    jobs.write_jsonl(home / "queries.jsonl", [{"id": f"q{i}", "text": text} for i, text in enumerate(asked)])
    ended = jobs.run("search", "out.parquet", "--queries", "queries.jsonl", "-k", 2)
    assert ended.code == 3
    found = [json.loads(line) for line in ended.out.splitlines()]
    assert sorted((hit["query_id"], hit["id"]) for hit in found) == [
        ("q0", "w0"), ("q0", "w2"), ("q3", "w3"), ("q3", "w4"),
    ]  # fmt: skip
    assert ended.err.splitlines()[-3:] == [
        "not searched: queries.jsonl:2 (id q1): the model weighs no term of the text",
        "1 query shares a term with fewer rows than asked for, 1 of them with none; first: queries.jsonl:3 (id q2)",
        "1 query was not searched, 3 were",
    ]


def test_a_fusion_answers_a_query_without_terms_by_the_other_output(home: Path, word_models: Path) -> None:
    make_words(home, word_models / "free", "sparse.parquet")
    make_words(home, word_models / "dense", "dense.parquet")
    alone = hits("dense.parquet", "dog")
    ended = jobs.run("search", "sparse.parquet", "dense.parquet", "dog", "--fuse", "rrf", "--json")
    assert ended.code == 0, ended.err
    assert [hit["id"] for hit in json.loads(ended.out)] == [hit["id"] for hit in alone]
    assert "'dog' has no sparse ranking in sparse.parquet: the model weighs no term of the text\n" in ended.err


def test_a_dense_output_is_not_compared_with_a_sparse_one(home: Path, models: Models) -> None:
    made("sparse.parquet", models.splade)
    made("same.arrow", models.splade)
    jobs.write_jsonl(home / "words.jsonl", jobs.rows(5))
    assert encode("dense.parquet", home / "words.txt", source="words.jsonl").code == 0
    ended = jobs.run("compare", "sparse.parquet", "dense.parquet")
    assert ended.code == 2
    assert "sparse.parquet has sparse vectors, dense.parquet dense ones" in ended.err
    found = json.loads(jobs.run("compare", "sparse.parquet", "same.arrow", "--json").out)[0]
    assert found["overlap"] == {"mean": 1.0, "min": 1.0}
    assert (found["first"]["kind"], found["first"]["bytes"]) == ("sparse", len(read("sparse.parquet").indices) * 8)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("plot", "out.parquet", "map.html"), "has sparse vectors, and a map needs dense ones"),
        (
            ("compare", "out.parquet", "--truncate-dim", "8"),
            "has sparse vectors, which cannot be cut",
        ),
        (
            ("compare", "out.parquet", "--precision", "int8"),
            "encode the rows again with --precision int8",
        ),
    ],
)
def test_what_needs_dense_vectors_refuses_sparse_ones(
    home: Path, models: Models, command: tuple[str, ...], message: str
) -> None:
    made("out.parquet", models.splade)
    ended = jobs.run(*command)
    assert ended.code == 2
    assert message in ended.err


@pytest.mark.parametrize("target", [("out.npy",), ("out/", "--to", "npy")])
def test_an_array_of_sparse_vectors_is_refused_before_the_model_is_loaded(
    home: Path, models: Models, target: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedcli import encoders

    monkeypatch.setattr(encoders, "load_encoder", None)
    ended = encode(target[0], models.splade, *target[1:])
    assert ended.code == 2
    assert "a .npy output makes no sense for the sparse vectors" in ended.err


# Jobs


def assert_same(first: str, second: str) -> None:
    left, right = open_dataset(first), open_dataset(second)
    names = [name for name in left.schema.names if name != "row"]
    columns = [pa.concat_tables([block.columns for block in side.read_blocks(names)]) for side in (left, right)]
    assert columns[0].to_pylist() == columns[1].to_pylist()
    assert np.abs(as_dense(read(first)) - as_dense(read(second))).max() < 1e-5


@pytest.mark.parametrize("name", ["out.parquet", "out.arrow", "out.lance", "out/"])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_an_update_takes_over_the_vectors_of_equal_texts(home: Path, models: Models, name: str, precision: str) -> None:
    flags = ("--precision", precision)
    made(name, models.splade, *flags)
    before = read(name)
    rows = texts()
    rows[10]["text"] = "another text"
    jobs.write_jsonl(home / "in.jsonl", [*rows[5:], {"id": "new", "text": "cat and dog"}])
    ended = jobs.run("encode", "in.jsonl", name, "--model", models.splade, "--keep", "text", "--update", *flags)
    assert ended.code == 0, ended.err
    assert "1 added, 1 changed, 54 reused, 5 removed" in ended.err
    after = read(name)
    kept = [i for i in range(5, ROWS) if i != 10]
    old, new = before[np.array(kept)], after[np.array(kept) - 5]
    assert np.array_equal(old.indices, new.indices)
    assert np.array_equal(old.values, new.values)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.arrow", "out.lance", "out/"])
def test_weights_of_one_byte_are_those_of_float32_but_for_half_a_step(
    home: Path, models: Models, name: str, precision: str
) -> None:
    made("full.parquet", models.splade)
    made(name, models.splade, "--precision", precision, "--chunk-rows", 7)
    full, output = read("full.parquet"), open_dataset(name)
    (low,), (high,) = output.vector_space["ranges"]
    assert (low, high) == pytest.approx((full.values.min(), full.values.max()), abs=1e-5)
    stored = read(name)
    assert np.array_equal(stored.indices, full.indices)
    assert 1e-4 < np.abs(stored.values - full.values).max() <= (high - low) / 255 * 0.51
    assert [hit["id"] for hit in hits(name, QUERY, "-k", 1)] == [
        hit["id"] for hit in hits("full.parquet", QUERY, "-k", 1)
    ]
    compared = json.loads(jobs.run("compare", "full.parquet", name, "--json").out)[0]
    assert compared["overlap"]["mean"] > 0.9
    assert compared["second"]["bytes"] == pytest.approx(len(full.indices) * 5, rel=0.05)


def test_the_range_of_another_output_is_used_and_weights_outside_of_it_are_clipped(home: Path, models: Models) -> None:
    made("full.parquet", models.splade)
    rows = read("full.parquet")
    lightest = np.argsort(np.maximum.reduceat(rows.values, rows.offsets[:-1]))[:2]
    jobs.write_jsonl(home / "few.jsonl", [texts()[row] for row in lightest])
    assert encode("few.parquet", models.splade, "--precision", "int8", source="few.jsonl").code == 0
    made("out.parquet", models.splade, "--precision", "int8", "--ranges-from", "few.parquet")
    (low,), (high,) = open_dataset("out.parquet").vector_space["ranges"]
    assert open_dataset("few.parquet").vector_space["ranges"] == [[low], [high]]
    full, stored = read("full.parquet").values, read("out.parquet").values
    step = (high - low) / 255
    assert full.max() > high + step
    assert stored.max() == pytest.approx(high, abs=step * 0.51 + 1e-6)
    assert np.abs(stored - full.clip(low, high)).max() <= step * 0.51 + 1e-6


def test_vectors_with_fewer_terms_are_not_reused(home: Path, models: Models) -> None:
    made("out.parquet", models.splade)
    ended = encode("other.parquet", models.splade, "--reuse", "out.parquet", "--top-k-terms", 5)
    assert ended.code == 2
    assert "top_k_terms was None, now 5" in ended.err


def test_shards_folders_and_workers_give_the_same_rows(
    home: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("whole.parquet", models.splade)
    made("folder/", models.splade, "--part-size", "5000", "--chunk-rows", 7)
    assert len(list((home / "folder").glob("*.parquet"))) > 2
    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", 500)
    for number in (1, 2, 3):
        made("shards.parquet", models.splade, "--shard", f"{number}/3", "--part-size", "5000")
    made("workers.parquet", models.splade, "--workers", 2)
    for name in ("folder", "shards.parquet", "workers.parquet"):
        assert_same("whole.parquet", name)


def test_an_evaluation_ranks_by_the_dot_product(home: Path, models: Models) -> None:
    jobs.write_jsonl(home / "queries.jsonl", [{"id": "q", "text": QUERY}])
    encoder = models.splade_encoder
    scores = encoder.encode_document([row["text"] for row in texts()]).to_dense().numpy()
    order = ids(scores @ encoder.encode_query([QUERY]).to_dense().numpy()[0], ROWS)
    (home / "relevance.tsv").write_text(f"query_id\tdocument_id\trelevance\nq\t{order[2]}\t1\n", "utf-8")
    ended = jobs.run(
        "eval", "in.jsonl", "--model", models.splade, "--queries", "queries.jsonl", "--relevance", "relevance.tsv",
        "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    measures = json.loads(ended.out)[0]["tasks"][0]["measures"]
    assert measures["ndcg@10"] == pytest.approx(0.5)  # the third of the ranking: 1 / log2(4)
    assert measures["map"] == pytest.approx(1 / 3)


def evaluate(home: Path, queries: list[str], judged: dict[str, str], *more: object) -> jobs.Ended:
    """Evaluate on WORD_ROWS; `judged` has the relevant row of each query."""
    jobs.write_jsonl(home / "words.jsonl", [{"id": f"w{i}", "text": text} for i, text in enumerate(WORD_ROWS)])
    jobs.write_jsonl(home / "queries.jsonl", [{"id": f"q{i}", "text": text} for i, text in enumerate(queries)])
    lines = "".join(f"{query}\t{document}\t1\n" for query, document in judged.items())
    (home / "relevance.tsv").write_text("query_id\tdocument_id\trelevance\n" + lines, "utf-8")
    options = ("--queries", "queries.jsonl", "--relevance", "relevance.tsv")
    return jobs.run("eval", "words.jsonl", *options, *more)


def test_queries_without_a_vector_score_0_and_are_named(home: Path, word_models: Path) -> None:
    judged = {"q0": "w0", "q1": "w1", "q2": "w3", "q3": "w4"}
    ended = evaluate(home, ["sun", "dog", "jilly", ""], judged, "-m", word_models / "free", "--json")
    assert ended.code == 0, ended.err
    task = json.loads(ended.out)[0]["tasks"][0]
    few = evaluate(home, ["sun", "dog", "jilly"], {"q0": "w0", "q2": "w3"}, "-m", word_models / "free", "--json")
    for name, value in json.loads(few.out)[0]["tasks"][0]["measures"].items():
        assert task["measures"][name] == pytest.approx(value / 2)
    first = {"place": "queries.jsonl:2", "id": "q1", "reason": "the model weighs no term of the text"}
    assert task["without_vectors"] == {"queries": {"count": 2, "first": first}}
    assert ended.err.endswith(
        f"words, {word_models / 'free'}: 2 queries without a vector score 0; first: queries.jsonl:2 (id q1): "
        "the model weighs no term of the text\n"
    )
    assert "without a vector" not in few.err


def test_an_evaluation_without_a_usable_query_is_an_error(home: Path, word_models: Path) -> None:
    ended = evaluate(home, ["dog", ""], {"q0": "w0", "q1": "w1"}, "-m", word_models / "free")
    assert (ended.code, ended.out) == (1, "")
    assert "no other query with a relevant document has a vector" in ended.err


def test_a_plan_gives_the_size_of_sparse_vectors(home: Path, models: Models) -> None:
    flags = ("--model", models.splade, "--device", "cpu", "--keep", "text")
    ended = jobs.run("plan", "in.jsonl", *flags, "--json")
    assert ended.code == 0, ended.err
    sizes = json.loads(ended.out)["output_bytes"]
    assert set(sizes) == {"float32", "float16", "int8", "uint8"}
    assert "npy" not in sizes["float32"]
    for precision in ("float32", "int8"):
        for ending in ("parquet", "lance"):
            path = home / f"planned-{precision}.{ending}"
            assert jobs.run("encode", "in.jsonl", path, *flags, "--precision", precision).code == 0
            files = [path] if path.is_file() else [*path.glob("data/*")]
            # The metadata at the end of a Parquet file do not grow with its rows.
            rest = int.from_bytes(path.read_bytes()[-8:-4], "little") if path.is_file() else 2000
            actual = sum(file.stat().st_size for file in files) - rest
            assert sizes[precision][ending] == pytest.approx(actual, rel=0.1 if ending == "parquet" else 0.25)
