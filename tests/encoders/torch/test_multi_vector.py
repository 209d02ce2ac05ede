"""Multi-vector models give the vectors of `MultiVectorEncoder.encode_document` and `encode_query`, in every batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multi_vector_models as built
import reference
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.multi_vectors import MultiVectors

pytestmark = pytest.mark.usefixtures("own_cache")

Build = Callable[[Path, Path], Any]

LAYOUTS: dict[str, Build] = {
    "sentence-transformers": built.build_multi_vector,
    "pylate": lambda folder, work: built.build_pylate(folder),
    "pylate-untyped": lambda folder, work: built.build_pylate(folder, model_type=None),
    "pylate-attending": lambda folder, work: built.build_pylate(folder, attend=True),
    "original": lambda folder, work: built.build_original(folder),
    "original-attending": lambda folder, work: built.build_original(
        folder, attend_to_mask_tokens=True, mask_punctuation=False
    ),
}


@pytest.fixture(params=list(LAYOUTS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    LAYOUTS[request.param](tmp_path / "model", tmp_path)
    return tmp_path / "model"


def texts() -> list[str]:
    return [*reference.samples()[::9], "", "a", "...", "Is it? Yes, it is!", "[SEP] [Q] [unused0]"]


def encode(encoder: Any, texts: list[str], size: int) -> list[Any]:
    """The vectors of each text, in batches of `size` rows."""
    tokens = encoder.tokenize(texts)
    rows = [np.arange(start, min(start + size, len(texts))) for start in range(0, len(texts), size)]
    found: list[Any] = []
    for batch in rows:
        vectors = encoder.collect(encoder.forward(tokens, batch))
        assert isinstance(vectors, MultiVectors)
        assert vectors.shape == (len(batch), encoder.dim)
        found += np.split(vectors.values, vectors.offsets[1:-1])
    return found


def expected(folder: Path, texts: list[str], role: str) -> list[Any]:
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)
    encode = partial(model.encode_query if role == "query" else model.encode_document, convert_to_numpy=True)
    return [encode(text) for text in texts]


@pytest.mark.parametrize("role", ["document", "query"])
def test_vectors_are_those_of_sentence_transformers(folder: Path, role: str) -> None:
    ours = encode(reference.load(folder, as_=role), texts(), 7)
    theirs = expected(folder, texts(), role)
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    for mine, own in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, own, atol=1e-4)


def test_texts_are_documents_by_default(folder: Path) -> None:
    encoder = reference.load(folder)
    space = encoder.vector_space()
    assert space["task"] == "document"
    assert space["prompt"] in ("[D] ", "[unused1] ")
    asked = reference.load(folder, as_="document")
    np.testing.assert_array_equal(encode(encoder, ["a b"], 1)[0], encode(asked, ["a b"], 1)[0])


@pytest.mark.parametrize("role", ["document", "query"])
def test_vectors_do_not_depend_on_the_batch(folder: Path, role: str) -> None:
    encoder = reference.load(folder, as_=role)
    alone = encode(encoder, texts(), 1)
    for size in (3, len(texts())):
        for row, other in zip(alone, encode(encoder, texts(), size), strict=True):
            np.testing.assert_allclose(row, other, atol=1e-5)
    again = encoder.encode_float32(encoder.tokenize(texts()), np.arange(len(texts())))
    np.testing.assert_allclose(again.values, np.concatenate(alone), atol=1e-5)


def test_tokens_are_pooled_as_by_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    model = built.build_multi_vector(tmp_path / "model", tmp_path)
    encode_document = partial(model.encode_document, convert_to_numpy=True, token_pooling=HierarchicalTokenPooling(3))
    theirs = [encode_document(text) for text in texts()]
    ours = encode(reference.load(tmp_path / "model", pool_factor=3), texts(), 1)
    assert [len(row) for row in ours] == [len(row) for row in theirs]
    for mine, own in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, own, atol=1e-4)
    assert sum(map(len, ours)) < sum(map(len, encode(reference.load(tmp_path / "model"), texts(), 1))) / 2


def test_a_pooling_saved_with_the_model_is_applied(tmp_path: Path) -> None:
    built.build_multi_vector(tmp_path / "model", tmp_path, pool_factor=2)
    ours = encode(reference.load(tmp_path / "model"), texts(), 1)
    for mine, own in zip(ours, expected(tmp_path / "model", texts(), "document"), strict=True):
        np.testing.assert_allclose(mine, own, atol=1e-4)


@pytest.mark.parametrize("role", ["document", "query"])
def test_float16_vectors_have_length_one(tmp_path: Path, role: str) -> None:
    built.build_multi_vector(tmp_path / "model", tmp_path)
    for row in encode(reference.load(tmp_path / "model", as_=role, dtype="bfloat16"), texts()[:5], 2):
        np.testing.assert_allclose(np.linalg.norm(row, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"truncate_dim": 4}, "--truncate-dim"),
        ({"normalize": True}, "--normalize"),
        ({"normalize": False}, "--no-normalize"),
        ({"overflow": "pool"}, "--overflow pool"),
        ({"precision": "binary"}, "--precision binary"),
        ({"top_k_terms": 3}, "--top-k-terms"),
        ({"min_weight": 0.5}, "--min-weight"),
        ({"as_": "query", "max_seq_length": 9}, "--max-seq-length"),
        ({"as_": "query", "pool_factor": 2}, "--pool-factor"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], word: str) -> None:
    built.build_multi_vector(tmp_path / "model", tmp_path)
    with pytest.raises(UsageError, match=word):
        reference.load(tmp_path / "model", **options)


def test_pooling_is_refused_for_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--pool-factor is for models"):
        reference.load(pool_factor=2)


def test_the_limit_of_documents_can_be_set(tmp_path: Path) -> None:
    built.build_multi_vector(tmp_path / "model", tmp_path)
    encoder = reference.load(tmp_path / "model", max_seq_length=9)
    assert encoder.tokenize(["a b c d e f g h i j k"]).lengths.tolist() == [9]
    assert encoder.vector_space()["max_seq_length"] == 9


def test_a_projection_of_random_weights_is_refused(tmp_path: Path) -> None:
    built.build_original(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    network = built.build_network(tmp_path / "other", ("[unused0]", "[unused1]"))
    network.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "model" / "model.safetensors")
    with pytest.raises(ModelError, match="without the projection of its tokens"):
        reference.load(tmp_path / "model")


def test_settings_that_are_read_differently_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedcli.models import multi_vector

    built.build_pylate(tmp_path / "model")
    monkeypatch.setattr(multi_vector, "_read_pylate", lambda saved: {"document_length": 30})
    with pytest.raises(ModelError, match="reads 40 tokens"):
        reference.load(tmp_path / "model")
