"""`embedcli.Model` of multi-vector models gives what `MultiVectorEncoder` of sentence-transformers gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import embedcli
import head_models
import multi_vector_models
import sparse_models

TEXTS = ["A cat sleeps on the sofa, all day.", "Rain falls!", "What is the capital of France?"]


@pytest.fixture(scope="module", params=["own", "pylate"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    if request.param == "own":
        multi_vector_models.build_multi_vector(place / "own", place)
    else:
        multi_vector_models.build_pylate(place / "pylate")
    return place / str(request.param)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Iterator[embedcli.Model]:
    with embedcli.load(folder, device="cpu", engine="torch") as model:
        yield model


def assert_equal_vectors(found: Any, expected: Any) -> None:
    assert isinstance(found, list)
    assert len(found) == len(expected)
    for vectors, wanted in zip(found, expected, strict=True):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, wanted, atol=1e-4)


def test_vectors_of_documents_and_queries(ours: embedcli.Model, theirs: Any) -> None:
    documents = theirs.encode_document(TEXTS, convert_to_numpy=True)
    assert_equal_vectors(ours.encode(TEXTS), documents)
    assert_equal_vectors(ours.encode_document(TEXTS), documents)
    queries = theirs.encode_query(TEXTS, convert_to_numpy=True)
    assert_equal_vectors(ours.encode_query(TEXTS), queries)
    assert queries[0].shape != documents[0].shape
    single: Any = ours.encode_query(TEXTS[0])
    assert isinstance(single, np.ndarray)
    np.testing.assert_allclose(single, queries[0], atol=1e-4)
    assert ours.encode([]) == []
    assert (ours.kind, ours.dim) == ("multi_vector", multi_vector_models.DIM)


def test_the_encoder_of_documents_is_loaded_once(ours: embedcli.Model) -> None:
    for encode in (ours.encode, ours.encode_document, ours.encode_query):
        encode(TEXTS)
    assert len(ours._encoders) == 2


def test_similarities(ours: embedcli.Model, theirs: Any) -> None:
    queries, documents = ours.encode_query(TEXTS[:2]), ours.encode_document(TEXTS)
    given = theirs.encode_query(TEXTS[:2]), theirs.encode_document(TEXTS)
    assert ours.similarity_fn_name == theirs.similarity_fn_name == "maxsim"
    np.testing.assert_allclose(ours.similarity(queries, documents), theirs.similarity(*given), atol=1e-3)
    pairs = theirs.similarity_pairwise(given[0], given[1][:2])
    np.testing.assert_allclose(ours.similarity_pairwise(queries, documents[:2]), pairs, atol=1e-3)
    one = ours.similarity(queries[0], documents[0])
    np.testing.assert_allclose(one, theirs.similarity(given[0][:1], given[1][:1]), atol=1e-3)
    tensors = ours.encode_document(TEXTS, convert_to_tensor=True)
    assert ours.similarity(tensors, tensors).tolist() == pytest.approx(ours.similarity(documents, documents), abs=1e-5)
    for wrong in ([1, 2], [[0.5]], []):
        with pytest.raises(embedcli.UsageError, match="the vectors of tokens"):
            ours.similarity(wrong, documents)
    with pytest.raises(embedcli.UsageError, match="cannot be paired"):
        ours.similarity_pairwise(queries, documents)


def test_formats_and_types(ours: embedcli.Model) -> None:
    import torch

    vectors = ours.encode(TEXTS)
    halves = ours.encode(TEXTS, precision="float16")
    assert [half.dtype for half in halves] == [np.float16] * len(TEXTS)
    bytes_ = ours.encode(TEXTS, precision="int8")
    assert [(part.shape, part.dtype) for part in bytes_] == [(part.shape, np.int8) for part in vectors]
    for flags in ({"convert_to_tensor": True}, {"convert_to_numpy": False}):
        tensors = ours.encode(TEXTS, **flags)  # type: ignore[call-overload]
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors)
        np.testing.assert_array_equal(tensors[1].numpy(), vectors[1])
    for options in ({"truncate_dim": 4}, {"normalize_embeddings": True}, {"precision": "binary"}):
        with pytest.raises(embedcli.UsageError, match=f"{next(iter(options))}.* cannot be used with"):
            ours.encode(TEXTS, **options)


def test_a_table_needs_one_vector_for_each_text(ours: embedcli.Model) -> None:
    with pytest.raises(embedcli.UsageError, match="embed_table needs one for each text"):
        embedcli.embed_table(pa.table({"text": TEXTS}), model=ours)


def test_the_head_of_tokens(tmp_path: Path) -> None:
    head_models.build_bge_m3(tmp_path / "bge-m3")
    expected = [row["multi_vector"] for row in head_models.compute_heads(tmp_path / "bge-m3", TEXTS)]
    with embedcli.load(tmp_path / "bge-m3", device="cpu", heads="multi_vector") as model:
        assert_equal_vectors(model.encode(TEXTS), expected)
        assert_equal_vectors(model.encode_query(TEXTS), expected)
    with pytest.raises(embedcli.UsageError, match="several vectors"):
        embedcli.load(tmp_path / "bge-m3", heads="dense,multi_vector")


def test_sparse_vectors_are_compared_by_their_dot_product(tmp_path: Path) -> None:
    theirs = sparse_models.build_splade(tmp_path / "model", tmp_path)
    with embedcli.load(tmp_path / "model", device="cpu", engine="torch") as model:
        assert model.similarity_fn_name == theirs.similarity_fn_name == "dot"
        vectors = model.encode(TEXTS)
        given = theirs.encode(TEXTS, convert_to_sparse_tensor=False)
        np.testing.assert_allclose(model.similarity(vectors, vectors), theirs.similarity(given, given), rtol=1e-3)
