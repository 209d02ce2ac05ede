"""Sparse encoders: the same terms and weights as SparseEncoder of sentence-transformers, from every engine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import feather

import jobs
import models
import sparse_models
from embedcli.encoders.torch import splade
from reference import load

Build = Callable[[Path, Path], Any]
BUILDERS: dict[str, Build] = {
    "max": sparse_models.build_splade,
    "sum": lambda folder, work: sparse_models.build_splade(folder, work, pooling_strategy="sum"),
    "two logarithms": lambda folder, work: sparse_models.build_splade(folder, work, activation_function="log1p_relu"),
    "inference-free": sparse_models.build_inference_free,
    "top k": lambda folder, work: sparse_models.build_top_k(folder),
    "raw": lambda folder, work: build_raw(folder),
    "published": lambda folder, work: build_published(sparse_models.build_splade, folder, work),
    "published inference-free": lambda folder, work: build_published(sparse_models.build_inference_free, folder, work),
}
TEXTS = [*models.texts()[:40], "a", "x" * 70, "a kettle and a gull " * 40]


def build_raw(folder: Path) -> Any:
    """A network with a tag on its card and without modules.json, as the older SPLADE models are published."""
    from sentence_transformers import SparseEncoder

    sparse_models.build_masked_lm(folder)
    (folder / "README.md").write_text("---\ntags:\n- splade\n---\n# A model\n")
    return SparseEncoder(str(folder), device="cpu").eval()


def build_published(build: Build, folder: Path, work: Path) -> Any:
    build(folder, work)
    return sparse_models.rewrite_as_published(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sparse")


@pytest.fixture(scope="module")
def splade_model(home: Path) -> tuple[Path, Any]:
    return home / "splade", sparse_models.build_splade(home / "splade", home / "splade-work")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return jobs.write_jsonl(tmp_path / "in.jsonl", [{"id": i, "text": text} for i, text in enumerate(TEXTS)])


def read_dense(vectors: list[dict[str, list[Any]]], dim: int) -> Any:
    """float32 [rows, dim] from the column of an output."""
    dense = np.zeros((len(vectors), dim), np.float32)
    for row, vector in enumerate(vectors):
        assert vector["indices"] == sorted(set(vector["indices"]))
        dense[row, vector["indices"]] = vector["values"]
    return dense


def column(path: Path) -> list[Any]:
    return list(pq.read_table(path).column("embedding").to_pylist())


def assert_equal(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(ours != 0, theirs != 0)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize("name", BUILDERS)
def test_terms_and_weights_are_those_of_sentence_transformers(
    tmp_path: Path, source: Path, name: str, engine: str
) -> None:
    original = BUILDERS[name](tmp_path / "model", tmp_path / "work")
    output = tmp_path / "out.parquet"
    done = jobs.run("encode", source, output, "-m", tmp_path / "model", "--engine", engine)
    assert done.code == 0, done.err
    expected = original.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    assert_equal(read_dense(column(output), expected.shape[1]), expected)
    space = json.loads(pq.read_schema(output).metadata[b"embedcli"])
    assert (space["kind"], space["dim"], space["precision"]) == ("sparse", expected.shape[1], "float32")


def test_the_query_side_is_another_network(tmp_path: Path, source: Path) -> None:
    original = sparse_models.build_inference_free(tmp_path / "model", tmp_path / "work")
    output = tmp_path / "out.parquet"
    assert jobs.run("encode", source, output, "-m", tmp_path / "model", "--as", "query").code == 0
    expected = original.encode_query(TEXTS, convert_to_sparse_tensor=False).numpy()
    assert_equal(read_dense(column(output), expected.shape[1]), expected)


@pytest.mark.parametrize("role", ["query", "document"])
def test_a_router_counts_what_it_truncates(tmp_path: Path, role: Any) -> None:
    sparse_models.build_inference_free(tmp_path / "model", tmp_path)
    special = 2 if role == "document" else 0
    for limit in (None, 20):
        encoder = load(tmp_path / "model", as_=role, max_seq_length=limit)
        counted = encoder.tokenize(["a short text", "a b " * 200, ""])
        kept = limit or 64
        assert counted.lengths.tolist()[1] == kept
        assert counted.untruncated_lengths.tolist()[1] == 400 + special
        assert counted.untruncated_lengths[0] == counted.lengths[0] < 20
        # Counting leaves the limits as they were.
        assert encoder.tokenize(["a b " * 200]).lengths.tolist() == [kept]
        encoder.close()


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_row_has_the_same_vector_in_every_batch(splade_model: tuple[Path, Any], engine: str) -> None:
    encoder = load(splade_model[0], engine=engine)
    tokens = encoder.tokenize(TEXTS)
    together = encoder.collect(encoder.forward(tokens, np.arange(len(TEXTS))))
    for row in (0, 7, len(TEXTS) - 1):
        alone = encoder.collect(encoder.forward(tokens, np.array([row])))
        assert_equal(together[row : row + 1], alone)
    assert encoder.kind == "sparse"
    encoder.close()


@pytest.mark.parametrize(
    "flags", [("--top-k-terms", 5), ("--min-weight", 0.4), ("--top-k-terms", 3, "--min-weight", 0.2)]
)
def test_only_the_largest_weights_are_kept(
    tmp_path: Path, source: Path, splade_model: tuple[Path, Any], flags: tuple[object, ...]
) -> None:
    folder, original = splade_model
    output = tmp_path / "out.parquet"
    done = jobs.run("encode", source, output, "-m", folder, *flags)
    assert done.code == 0, done.err
    options = dict(zip(flags[::2], flags[1::2], strict=True))
    expected = original.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    expected[expected < options.get("--min-weight", 0)] = 0
    if (most := options.get("--top-k-terms")) is not None:
        for row in expected:
            row[np.argsort(-row, kind="stable")[most:]] = 0
    assert_equal(read_dense(column(output), expected.shape[1]), expected)
    space = json.loads(pq.read_schema(output).metadata[b"embedcli"])
    assert space.get("top_k_terms") == most
    assert space.get("min_weight") == options.get("--min-weight")


def test_a_row_whose_terms_are_all_too_light_is_rejected(
    tmp_path: Path, source: Path, splade_model: tuple[Path, Any]
) -> None:
    output = tmp_path / "out.parquet"
    original = splade_model[1].encode(TEXTS, convert_to_sparse_tensor=False).numpy().max(axis=1)
    bound = float(np.sort(original)[3] + np.sort(original)[4]) / 2
    done = jobs.run("encode", source, output, "-m", splade_model[0], "--min-weight", bound)
    assert done.code == 3, done.err
    rejects = [json.loads(line) for line in Path(f"{output}.rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in rejects] == np.flatnonzero(original < bound).tolist()
    assert {reject["reason"] for reject in rejects} == {"no term weighs as much as --min-weight"}
    assert len(column(output)) == len(TEXTS) - 4


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt", "parquet"])
def test_a_row_without_terms_is_rejected_with_the_row_of_the_input(tmp_path: Path, ending: str) -> None:
    model, source, output = tmp_path / "free", tmp_path / f"in.{ending}", tmp_path / "out.parquet"
    sparse_models.build_inference_free(model, tmp_path / "work", weightless=("cat",))
    texts = ["dog", "cat", "cat and dog", "cat cat"]
    rows = [{"n": i, "text": text} for i, text in enumerate(texts)]
    lines = texts
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
        lines = [json.dumps({"text": text}) for text in texts]
    elif ending == "csv":
        lines = [f"{i},{text}" for i, text in enumerate(texts)]
        source.write_text("\n".join(["n,text", *lines]))
    else:
        lines = [json.dumps(row) for row in rows] if ending == "jsonl" else texts
        source.write_text("\n".join(lines))
    done = jobs.run("encode", source, output, "-m", model, "--as", "query", "--chunk-rows", 2)
    assert done.code == 3, done.err
    rejects = [json.loads(line) for line in Path(f"{output}.rejects.jsonl").read_text().splitlines()]
    assert [reject["raw"] for reject in rejects] == [lines[1], lines[3]]
    assert {reject["reason"] for reject in rejects} == {"the model weighs no term of the text"}
    assert {reject["source"] for reject in rejects} == {str(source)}


def test_float16_and_other_formats_hold_the_same(tmp_path: Path, source: Path, splade_model: tuple[Path, Any]) -> None:
    folder, original = splade_model
    expected = original.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    width = expected.shape[1]
    for name, flags in (("half.parquet", ("--precision", "float16")), ("out.jsonl", ()), ("out.arrow", ())):
        done = jobs.run("encode", source, tmp_path / name, "-m", folder, *flags)
        assert done.code == 0, done.err
    kind = pq.read_schema(tmp_path / "half.parquet").field("embedding").type
    assert kind.field("values").type.value_type == pa.float16()
    half = read_dense(column(tmp_path / "half.parquet"), width)
    np.testing.assert_allclose(half, expected, rtol=1e-3, atol=1e-6)
    lines = [json.loads(line)["embedding"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert_equal(read_dense(lines, width), expected)
    table = feather.read_table(tmp_path / "out.arrow")
    assert_equal(read_dense(table.column("embedding").to_pylist(), width), expected)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--truncate-dim", 16), "--top-k-terms"),
        (("--normalize",), "dot product"),
        (("--overflow", "pool"), "--overflow split"),
        (("--precision", "binary"), "use --precision float32, float16, int8 or uint8"),
        (("--precision", "ubinary"), "float16"),
    ],
)
def test_what_makes_no_sense_is_said(
    tmp_path: Path, source: Path, splade_model: tuple[Path, Any], flags: tuple[object, ...], named: str
) -> None:
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", splade_model[0], *flags)
    assert done.code == 2
    assert "makes no sense for the sparse vectors" in done.err
    assert named in done.err


def test_options_of_sparse_vectors_on_a_dense_model(tmp_path: Path, source: Path) -> None:
    done = jobs.run(
        "encode", source, tmp_path / "out.parquet", "-m", models.folder("text2vec-base-chinese"), "--top-k-terms", 5
    )
    assert done.code == 2
    assert "--top-k-terms is for sparse vectors" in done.err


def test_windows_of_long_texts_have_vectors_of_their_own(
    tmp_path: Path, source: Path, splade_model: tuple[Path, Any]
) -> None:
    output = tmp_path / "out.parquet"
    assert jobs.run("encode", source, output, "-m", splade_model[0], "--overflow", "split").code == 0
    table = pq.read_table(output)
    assert table.num_rows > len(TEXTS)
    last = [row for row in table.to_pylist() if row["id"] == len(TEXTS) - 1]
    text = TEXTS[-1]
    pieces = [text[row["char_start"] : row["char_end"]] for row in last]
    expected = splade_model[1].encode(pieces, convert_to_sparse_tensor=False).numpy()
    assert_equal(read_dense([row["embedding"] for row in last], expected.shape[1]), expected)


@pytest.mark.parametrize("name", ["out.parquet", "out/"])
def test_a_killed_job_ends_with_the_same_bytes(tmp_path: Path, splade_model: tuple[Path, Any], name: str) -> None:
    rows = [{"id": i, "text": f"{TEXTS[i % len(TEXTS)]} {i}"} for i in range(400)]
    source = jobs.write_jsonl(tmp_path / "in.jsonl", rows)
    options = ("-m", splade_model[0], "--chunk-rows", 50, "--engine", "torch", "--report", tmp_path / "report.json")
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    assert jobs.run("encode", source, f"{tmp_path}/whole/{name}", *options).code == 0
    process = subprocess.Popen(
        jobs.command("encode", source, f"{tmp_path}/cut/{name}", *options), stderr=subprocess.DEVNULL
    )
    jobs.wait_for(lambda: len(list((tmp_path / "cut").rglob("part-*.arrow"))) >= 2, process)
    process.kill()
    process.wait()
    assert jobs.run("encode", source, f"{tmp_path}/cut/{name}", *options).code == 0
    assert json.loads((tmp_path / "report.json").read_text())["rows"]["resumed"] >= 100
    cut, whole = ([path.read_bytes() for path in sorted((tmp_path / f).rglob("*.parquet"))] for f in ("cut", "whole"))
    assert len(cut) == 1
    assert cut == whole


def test_the_vocabulary_is_computed_in_blocks(splade_model: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splade, "BLOCK_WORDS", 100)
    encoder = load(splade_model[0], engine="torch")
    pooling: Any = encoder.model[1]
    assert type(pooling).__name__ == "SpladeMaxPooling"
    assert len(pooling.blocks) == -(-encoder.dim // 100)
    tokens = encoder.tokenize(TEXTS)
    ours = encoder.collect(encoder.forward(tokens, np.arange(len(TEXTS))))
    assert_equal(ours, splade_model[1].encode(TEXTS, convert_to_sparse_tensor=False).numpy())
    encoder.close()


def test_padding_has_no_say_in_the_largest_weight() -> None:
    hidden = torch.tensor([[[-3.0, 1.0], [-2.0, 5.0], [9.0, 9.0]], [[7.0, 7.0], [-1.0, -4.0], [-5.0, -2.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    largest = splade.repeat_token_in_padding(hidden, mask).amax(dim=1)
    assert largest.tolist() == [[-2.0, 5.0], [-1.0, -2.0]]


def test_a_network_that_changes_by_that_is_left_as_it_was(
    splade_model: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = splade._split_layer
    monkeypatch.setattr(splade, "_split_layer", lambda layer: split(layer)[::-1])
    monkeypatch.setattr(splade, "BLOCK_WORDS", 100)
    encoder = load(splade_model[0], engine="torch")
    assert type(encoder.model[1]).__name__ == "SpladePooling"
    tokens = encoder.tokenize(TEXTS)
    ours = encoder.collect(encoder.forward(tokens, np.arange(len(TEXTS))))
    assert_equal(ours, splade_model[1].encode(TEXTS, convert_to_sparse_tensor=False).numpy())
    encoder.close()


def test_row_groups_have_about_the_same_bytes(tmp_path: Path) -> None:
    from embedcli.outputs.schema import regroup_by_bytes

    wide = pa.table({"a": ["x" * 1000] * 100})
    narrow = pa.table({"a": ["x"] * 5000})
    groups = list(regroup_by_bytes([wide, narrow, wide, narrow], 20_000))
    assert pa.concat_tables(groups).equals(pa.concat_tables([wide, narrow, wide, narrow]))
    assert all(group.nbytes < 40_000 for group in groups)
    assert len(groups) > 8


def test_rows_on_stdout(tmp_path: Path, source: Path, splade_model: tuple[Path, Any]) -> None:
    done = jobs.run_apart("encode", source, "-", "-m", splade_model[0], "-q")
    expected = splade_model[1].encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    lines = [json.loads(line)["embedding"] for line in done.out.splitlines()]
    assert_equal(read_dense(lines, expected.shape[1]), expected)
