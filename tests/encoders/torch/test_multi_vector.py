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
from embedcli.core.multi_vectors import MultiVectors

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


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))


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
