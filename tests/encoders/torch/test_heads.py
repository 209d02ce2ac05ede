"""The heads of BGE-M3 give the vectors of the published formulas, computed by transformers alone, in every batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import head_models
import reference
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.head_vectors import HeadVectors
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.quantization import find_unusable
from embedcli.core.row_vectors import as_dense
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.models.fingerprint import fingerprint_model

# With a text of unknown words alone, repeated words, and special tokens as text.
TEXTS = [*reference.samples()[::5], "a", "🙂🙂", "word " * 800, "</s> <mask> a a b a", "<unk> <s>"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path_factory.getbasetemp() / "heads-cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return head_models.build_bge_m3(tmp_path_factory.mktemp("heads") / "bge-m3")


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[dict[str, Any]]:
    return head_models.compute_heads(folder, TEXTS)


def encode(encoder: Any, size: int) -> Any:
    """The vectors of TEXTS in batches of `size` rows, one text after another."""
    tokens = encoder.tokenize(TEXTS)
    found = []
    for start in range(0, len(TEXTS), size):
        rows = np.arange(start, min(start + size, len(TEXTS)))
        vectors = encoder.collect(encoder.forward(tokens, rows))
        assert vectors.shape == (len(rows), encoder.dim)
        found += [vectors[[i]] for i in range(len(rows))]
    return found


def assert_equal(head: str, vectors: Any, wanted: Any, atol: float = 1e-4) -> None:
    if head == "sparse":
        assert isinstance(vectors, SparseVectors)
        assert vectors.indices.tolist() == sorted(wanted)
        np.testing.assert_allclose(vectors.values, [wanted[token] for token in sorted(wanted)], atol=atol)
    else:
        assert isinstance(vectors, MultiVectors)
        np.testing.assert_allclose(vectors.values, wanted, atol=atol)


@pytest.mark.parametrize("size", [1, 4, len(TEXTS)])
@pytest.mark.parametrize("head", ["sparse", "multi_vector"])
def test_vectors_are_those_of_the_formulas(folder: Path, expected: list[dict[str, Any]], head: str, size: int) -> None:
    encoder = reference.load(folder, heads=(head,))
    assert encoder.kind == head
    for vectors, wanted in zip(encode(encoder, size), expected, strict=True):
        assert_equal(head, vectors, wanted[head])


ORDERS = [("dense", "sparse", "multi_vector"), ("sparse", "dense"), ("multi_vector", "sparse")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("heads", ORDERS)
def test_several_heads_of_one_pass(folder: Path, heads: tuple[Any, ...], dtype: str) -> None:
    encoder = reference.load(folder, heads=heads, dtype=dtype)
    sizes = {"dense": head_models.DIM, "sparse": 900, "multi_vector": head_models.DIM}
    assert {head: space["dim"] for head, space in encoder.heads.items()} == {head: sizes[head] for head in heads}
    assert (encoder.kind, encoder.dim) == (heads[0], sizes[heads[0]])
    found = encode(encoder, 5)
    for head in heads:
        alone = encode(reference.load(folder, heads=(head,), dtype=dtype), 5)
        for vectors, wanted in zip(found, alone, strict=True):
            assert isinstance(vectors, HeadVectors)
            assert list(vectors.parts) == list(heads)
            # The same numbers from the same batches: nothing of one head reaches another.
            np.testing.assert_array_equal(as_dense(vectors.parts[head]), as_dense(wanted))


def test_several_heads_give_the_vectors_of_the_formulas(folder: Path, expected: list[dict[str, Any]]) -> None:
    encoder = reference.load(folder, heads=("sparse", "dense", "multi_vector"))
    again = encoder.encode_float32(encoder.tokenize(TEXTS), np.arange(len(TEXTS)))
    for found in (encode(encoder, 7), [again[[i]] for i in range(len(TEXTS))]):
        for vectors, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(vectors.parts["dense"][0], wanted["dense"], atol=1e-4)
            for head in ("sparse", "multi_vector"):
                assert_equal(head, vectors.parts[head], wanted[head])
    nothing = encoder.encode_float32(encoder.tokenize(TEXTS), np.arange(0))
    assert (len(nothing), list(nothing.parts)) == (0, ["sparse", "dense", "multi_vector"])


def test_a_row_without_a_term_is_usable_with_several_heads_only(folder: Path, expected: list[dict[str, Any]]) -> None:
    without = [not wanted["sparse"] for wanted in expected]
    assert any(without)
    tokens = reference.load(folder).tokenize(TEXTS)
    for heads, unusable in ((("sparse",), without), (("dense", "sparse"), [False] * len(TEXTS))):
        encoder = reference.load(folder, heads=heads)
        vectors = encoder.collect(encoder.forward(tokens, np.arange(len(TEXTS))))
        assert find_unusable(vectors).tolist() == unusable


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"truncate_dim": 4}, "--truncate-dim"),
        ({"precision": "binary"}, "--precision binary"),
        ({"overflow": "pool"}, "--overflow pool"),
        ({"to": "npy"}, "a .npy output"),
        ({"normalize": False}, "--no-normalize"),
        ({"top_k_terms": 3}, "--top-k-terms"),
        ({"as_": "query", "pool_factor": 3}, "--pool-factor"),
    ],
)
def test_options_that_several_heads_cannot_have(folder: Path, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        reference.load(folder, heads=("dense", "multi_vector"), **options)


def test_a_saved_truncation_is_refused_with_several_heads(tmp_path: Path) -> None:
    folder = head_models.build_bge_m3(tmp_path / "model")
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncate_dim": 8}))
    with pytest.raises(UsageError, match="cuts its dense vectors to 8 dimensions"):
        reference.load(folder, heads=("dense", "sparse"))
    assert reference.load(folder, heads=("sparse", "multi_vector")).dim == 900


def test_the_texts_cover_what_the_formulas_distinguish(folder: Path, expected: list[dict[str, Any]]) -> None:
    tokens = reference.load(folder).tokenize(TEXTS)
    rows = [
        tokens.ids[start:stop].tolist() for start, stop in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    ]
    assert any(3 in row for row in rows)
    assert any(len(set(row)) < len(row) for row in rows)
    assert {len(wanted["sparse"]) for wanted in expected} >= {0, 1, 5}
    assert max(map(len, rows)) == head_models.LIMIT


@pytest.mark.parametrize("head", ["sparse", "multi_vector"])
def test_encode_float32_gives_the_same_vectors(folder: Path, expected: list[dict[str, Any]], head: str) -> None:
    encoder = reference.load(folder, heads=(head,), dtype="bfloat16")
    rows = np.array([3, len(TEXTS) - 2, 0])
    vectors = encoder.encode_float32(encoder.tokenize(TEXTS), rows)
    for i, row in enumerate(rows):
        assert_equal(head, vectors[[i]], expected[row][head])
    assert encoder.encode_float32(encoder.tokenize(TEXTS), rows[:0]).shape == (0, encoder.dim)


@pytest.mark.parametrize("head", ["dense", None])
def test_the_dense_head_is_the_models_own_vector(
    folder: Path, expected: list[dict[str, Any]], head: str | None
) -> None:
    encoder = reference.load(folder, heads=head and (head,))
    assert "heads" not in encoder.vector_space()
    made = reference.encode(encoder, TEXTS)
    np.testing.assert_allclose(made, np.stack([wanted["dense"] for wanted in expected]), atol=1e-4)


def test_token_vectors_of_another_width_than_the_network(tmp_path: Path) -> None:
    folder = head_models.build_bge_m3(tmp_path / "model", token_dim=12)
    encoder = reference.load(folder, heads=("multi_vector",))
    assert encoder.dim == 12
    for vectors, wanted in zip(encode(encoder, 5), head_models.compute_heads(folder, TEXTS), strict=True):
        assert_equal("multi_vector", vectors, wanted["multi_vector"])


def test_vectors_in_half_precision_are_near_and_have_length_one(folder: Path, expected: list[dict[str, Any]]) -> None:
    encoder = reference.load(folder, heads=("multi_vector",), dtype="bfloat16")
    vectors = np.concatenate([row.values for row in encode(encoder, 4)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    wanted = np.concatenate([row["multi_vector"] for row in expected])
    assert np.median((vectors * wanted).sum(axis=1)) > 0.99


def test_similar_token_vectors_are_merged_with_pool_factor(folder: Path) -> None:
    whole = encode(reference.load(folder, heads=("multi_vector",)), 3)
    pooled = encode(reference.load(folder, heads=("multi_vector",), pool_factor=3), 3)
    assert sum(len(row.values) for row in pooled) < sum(len(row.values) for row in whole) / 2


def test_padding_on_the_left_changes_nothing(folder: Path, expected: list[dict[str, Any]]) -> None:
    for head in ("sparse", "multi_vector"):
        encoder = reference.load(folder, heads=(head,))
        encoder.text_tokenizer.pads_left = True
        for vectors, wanted in zip(encode(encoder, 4), expected, strict=True):
            assert_equal(head, vectors, wanted[head])


def test_vectors_without_padding_are_those_of_padded_batches(folder: Path, expected: list[dict[str, Any]]) -> None:
    encoder = reference.load(folder, heads=("dense", "sparse", "multi_vector"))
    encoder._remove_padding([reference.row_by_row_attention])
    assert encoder._varlen is not None
    for vectors, wanted in zip(encode(encoder, 6), expected, strict=True):
        np.testing.assert_allclose(vectors.parts["dense"][0], wanted["dense"], atol=1e-4)
        for head in ("sparse", "multi_vector"):
            assert_equal(head, vectors.parts[head], wanted[head])


@pytest.mark.parametrize("name", ["sparse_linear.pt", "colbert_linear.pt"])
def test_the_files_of_the_heads_are_part_of_the_fingerprint(tmp_path: Path, name: str) -> None:
    import torch

    folder = head_models.build_bge_m3(tmp_path / "model")
    before = fingerprint_model(folder)
    state = torch.load(folder / name, weights_only=True)
    torch.save({key: tensor * 2 for key, tensor in state.items()}, folder / name)
    assert fingerprint_model(folder) != before


@pytest.mark.parametrize("head", ["sparse", "multi_vector"])
@pytest.mark.parametrize("name", ["sparse_linear.pt", "colbert_linear.pt"])
def test_a_missing_file_of_the_heads_is_named(tmp_path: Path, name: str, head: str) -> None:
    folder = head_models.build_bge_m3(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"is incomplete: {name} is missing from") as caught:
        reference.load(folder, heads=(head,))
    assert caught.value.hint == "copy the model again"
    assert reference.load(folder).dim == head_models.DIM


@pytest.mark.parametrize("model", ["all-MiniLM-L6-v2", "potion", "openai:some-model", "splade"])
def test_models_without_heads_are_refused(tmp_path: Path, model: str) -> None:
    import models
    import sparse_models

    if model == "potion":
        model = str(models.folder("potion-base-8M"))
    if model == "splade":
        sparse_models.build_splade(tmp_path / "model", tmp_path / "work")
        model = str(tmp_path / "model")
    wanted = "multi_vector"
    with pytest.raises(UsageError, match=r"--heads multi_vector is for models with sparse_linear\.pt and colbert"):
        reference.load(model, heads=(wanted,), engine="auto", base_url="http://localhost:9")


@pytest.mark.parametrize(
    ("head", "options", "word"),
    [
        ("sparse", {"truncate_dim": 4}, "--truncate-dim"),
        ("sparse", {"precision": "binary"}, "--precision binary"),
        ("sparse", {"pool_factor": 2}, "--pool-factor"),
        ("sparse", {"engine": "openvino"}, "--engine openvino"),
        ("multi_vector", {"normalize": False}, "--no-normalize"),
        ("multi_vector", {"top_k_terms": 3}, "--top-k-terms"),
        ("multi_vector", {"max_seq_length": 513}, "--max-seq-length"),
        ("dense", {"top_k_terms": 3}, "--top-k-terms"),
    ],
)
def test_options_of_another_kind_are_refused(folder: Path, head: str, options: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        reference.load(folder, heads=(head,), **options)


# Damaged files


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    folder = head_models.build_bge_m3(tmp_path / "model")
    head_models.write_dangerous_pickle(folder / "colbert_linear.pt", tmp_path / "touched")
    with pytest.raises(ModelError, match=r"colbert_linear\.pt is a pickle with more than tensors in it"):
        reference.load(folder, heads=("multi_vector",))
    assert not (tmp_path / "touched").exists()


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = head_models.build_bge_m3(tmp_path / "model") / "sparse_linear.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match=r"sparse_linear\.pt cannot be read"):
        reference.load(path.parent, heads=("sparse",))


@pytest.mark.parametrize("change", ["columns", "rows", "no bias", "other names", "a list", "not finite"])
def test_files_with_something_else_in_them(tmp_path: Path, change: str) -> None:
    import torch

    path = head_models.build_bge_m3(tmp_path / "model") / "sparse_linear.pt"
    state: dict[str, Any] = dict(torch.load(path, weights_only=True))
    changes: dict[str, Any] = {
        "columns": state | {"weight": state["weight"][:, :-1]},
        "rows": {name: tensor.repeat(2, *[1] * (tensor.dim() - 1)) for name, tensor in state.items()},
        "no bias": {"weight": state["weight"]},
        "other names": {f"linear.{name}": tensor for name, tensor in state.items()},
        "a list": list(state.values()),
        "not finite": state | {"bias": state["bias"] * float("nan")},
    }
    torch.save(changes[change], path)
    with pytest.raises(ModelError, match=r"does not hold the linear layer|is damaged") as caught:
        reference.load(path.parent, heads=("sparse",))
    assert str(path) in str(caught.value)


def test_a_cached_model_without_the_files_is_looked_for_on_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other libraries fetch only what dense vectors need."""
    from embedcli.models import hub, resolve

    head_models.put_in_hub_cache(folder, tmp_path / "hub", leave_out=head_models.HEAD_FILES)
    head_models.put_in_hub_cache(folder, tmp_path / "whole")
    asked: list[str] = []

    def download(hub_id: str, *given: Any, **options: Any) -> Path:
        asked.append(hub_id)
        found = hub.find_cached_snapshot(hub_id, None, tmp_path / "whole")
        assert found is not None
        return found

    monkeypatch.setattr(hub, "download_snapshot", download)
    options = {"cache_dir": str(tmp_path / "hub")}
    assert resolve.resolve_model(reference.job("bge-m3", **options)).origin == "cache"
    assert resolve.resolve_model(reference.job("bge-m3", **options, heads=("dense",))).origin == "cache"
    assert not asked
    assert resolve.resolve_model(reference.job("bge-m3", **options, heads=("sparse",))).origin == "hub"
    assert asked == ["BAAI/bge-m3"]
    with pytest.raises(UsageError, match=r"bge-m3 computes dense vectors only"):
        reference.load("bge-m3", **options, heads=("sparse",), offline=True)
