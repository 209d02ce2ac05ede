"""What every encoder promises the engine, whatever computes its vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import numpy as np
import pytest

import models
from embedcli.core import batching
from embedcli.core.encoder import Encoder
from fake_server import MODEL, FakeServer
from reference import encode, load, samples


def local(name: str, **values: Any) -> AbstractContextManager[Encoder]:
    return closing(load(models.folder(name), **values))


@contextmanager
def hosted() -> Iterator[Encoder]:
    with FakeServer(dim=8) as server, closing(load("openai:" + MODEL, base_url=server.base_url)) as encoder:
        yield encoder


# A new encoder joins by a line here; its vectors must not need a network beyond this machine.
MAKERS: dict[str, Callable[[], AbstractContextManager[Encoder]]] = {
    "torch": lambda: local("all-MiniLM-L6-v2-shape"),
    "torch, raw folder": lambda: local("text2vec-large-chinese"),
    "torch, left padding": lambda: local("Qwen3-Embedding-0.6B", as_="query"),
    "torch, own code": lambda: local("bilingual-embedding-base", trust_remote_code=True),
    "torch, slow tokenizer": lambda: local("slow-tokenizer", trust_remote_code=True),
    "openvino": lambda: local("all-MiniLM-L6-v2-shape", engine="openvino"),
    "static": lambda: local("potion-base-8M", engine="auto"),
    "hosted": hosted,
}
SPACE = ("model", "normalize", "truncate_dim", "prompt", "dim", "dtype", "engine")
LONG = "a kettle and a gull " * 400
TEXTS = [*samples()[:24], "a", LONG, samples()[0]]


@pytest.fixture(scope="module", params=MAKERS)
def encoder(request: pytest.FixtureRequest) -> Iterator[Encoder]:
    with MAKERS[request.param]() as made:
        yield made


def rows(count: int) -> Any:
    return np.arange(count)


def test_its_numbers_are_usable(encoder: Encoder) -> None:
    assert min(encoder.dim, encoder.lanes, encoder.batch_tokens, encoder.multiple + 1) >= 1
    assert encoder.empty_reason


def test_tokens_are_a_ragged_array_within_the_whole(encoder: Encoder) -> None:
    tokens = encoder.tokenize(TEXTS)
    assert tokens.offsets[0] == 0
    assert tokens.offsets[-1] == len(tokens.ids)
    assert len(tokens.full) == len(tokens.lengths) == len(TEXTS)
    assert (tokens.lengths > 0).all()
    assert (tokens.full >= tokens.lengths).all()
    assert [array.dtype.name for array in (tokens.ids, tokens.offsets, tokens.full)] == ["int32", "int64", "int32"]


def test_a_texts_tokens_do_not_depend_on_its_neighbours(encoder: Encoder) -> None:
    together = encoder.tokenize(TEXTS)
    for i in (0, 7, len(TEXTS) - 2):
        alone = encoder.tokenize([TEXTS[i]])
        start, stop = together.offsets[i : i + 2]
        np.testing.assert_array_equal(alone.ids, together.ids[start:stop])
        assert alone.full[0] == together.full[i]


def test_no_texts_make_no_rows(encoder: Encoder) -> None:
    tokens = encoder.tokenize([])
    assert (len(tokens.ids), tokens.offsets.tolist(), len(tokens.full)) == (0, [0], 0)


def test_vectors_are_float32_finite_and_in_the_order_of_the_rows(encoder: Encoder) -> None:
    tokens = encoder.tokenize(TEXTS)
    forward = encoder.collect(encoder.forward(tokens, rows(6)))
    backward = encoder.collect(encoder.forward(tokens, rows(6)[::-1]))
    assert (forward.dtype.name, forward.shape) == ("float32", (6, encoder.dim))
    assert np.isfinite(forward).all()
    np.testing.assert_allclose(backward[::-1], forward, atol=1e-5)
    assert len(np.unique(forward.round(4), axis=0)) == 6


def test_a_rows_vector_does_not_depend_on_its_batch(encoder: Encoder) -> None:
    whole = encode(encoder, TEXTS)
    np.testing.assert_allclose(encode(encoder, TEXTS, 40), whole, atol=1e-5)
    np.testing.assert_allclose(whole[-1], whole[0], atol=1e-5)


def test_exact_gives_the_same_in_float32(encoder: Encoder) -> None:
    tokens = encoder.tokenize(TEXTS)
    chosen = np.array([5, len(TEXTS) - 2, 2])
    np.testing.assert_allclose(encoder.exact(tokens, chosen), encode(encoder, TEXTS)[chosen], atol=1e-5)
    assert encoder.exact(tokens, chosen).dtype == np.float32


def test_batches_in_flight_do_not_mix(encoder: Encoder) -> None:
    tokens = encoder.tokenize(TEXTS)
    batches = list(batching.pack(tokens.lengths, lambda: 60, encoder.multiple))
    expected = [encoder.collect(encoder.forward(tokens, batch)) for batch in batches]
    for at in range(0, len(batches), encoder.lanes):
        flying = [encoder.forward(tokens, batch) for batch in batches[at : at + encoder.lanes]]
        for output, vectors in zip(flying, expected[at:], strict=False):
            np.testing.assert_allclose(encoder.collect(output), vectors, atol=1e-5)


def test_collected_vectors_stay_what_they_are(encoder: Encoder) -> None:
    tokens = encoder.tokenize(TEXTS)
    first = encoder.collect(encoder.forward(tokens, rows(4)))
    kept = first.copy()
    encoder.collect(encoder.forward(tokens, rows(4) + 5))
    np.testing.assert_array_equal(first, kept)


def test_the_space_says_what_made_the_vectors_in_json(encoder: Encoder) -> None:
    space = encoder.space()
    assert json.loads(json.dumps(space)) == space
    assert set(SPACE) <= set(space)
    assert space["dim"] == encoder.dim
    lengths = np.linalg.norm(encode(encoder, TEXTS), axis=1)
    if space["normalize"] is not None:  # None: as the server does
        assert np.allclose(lengths, 1, atol=1e-4) is space["normalize"]
