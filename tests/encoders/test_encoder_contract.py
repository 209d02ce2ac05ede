"""What every encoder promises the engine."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import numpy as np
import pytest

import embedcli
import fakes
import models
from embedcli.core import batching
from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.quantization import find_unusable
from fake_server import MODEL, FakeServer
from reference import encode, load, samples


def local(name: str, **values: Any) -> AbstractContextManager[BaseEncoder]:
    return closing(load(models.folder(name), **values))


@contextmanager
def hosted() -> Iterator[BaseEncoder]:
    with FakeServer(dim=8) as server, closing(load("openai:" + MODEL, base_url=server.base_url)) as encoder:
        yield encoder


# A new encoder joins by a line here; its vectors must not need a network beyond this machine.
MAKERS: dict[str, Callable[[], AbstractContextManager[BaseEncoder]]] = {
    "torch": lambda: local("all-MiniLM-L6-v2-shape"),
    "torch, raw folder": lambda: local("text2vec-large-chinese"),
    "torch, left padding": lambda: local("Qwen3-Embedding-0.6B", as_="query"),
    "torch, own code": lambda: local("own-code-model", trust_remote_code=True),
    "torch, slow tokenizer": lambda: local("slow-tokenizer", trust_remote_code=True),
    "openvino": lambda: local("all-MiniLM-L6-v2-shape", engine="openvino"),
    "static": lambda: local("potion-base-8M", engine="auto"),
    "hosted": hosted,
}
# Encoders that inherit, and that override, the default of an optional ability.
CANNOT_SPLIT = {"torch, slow tokenizer"}
BILLS_REQUESTS = {"hosted"}
SPACE = ("model", "normalize", "truncate_dim", "prompt", "dim", "dtype", "engine")
LONG = "a kettle and a gull " * 400
TEXTS = [*samples()[:24], "a", LONG, samples()[0]]


@pytest.fixture(scope="module", params=MAKERS)
def encoder(request: pytest.FixtureRequest) -> Iterator[BaseEncoder]:
    with MAKERS[request.param]() as made:
        yield made


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """The name of the tested encoder in MAKERS."""
    return str(request.node.callspec.params["encoder"])


def rows(count: int) -> Any:
    return np.arange(count)


def test_its_numbers_are_usable(encoder: Any) -> None:
    assert min(encoder.dim, encoder.max_in_flight, encoder.batch_tokens, encoder.pad_to_multiple_of + 1) >= 1
    assert encoder.empty_reason


def test_tokens_are_a_ragged_array_within_the_whole(encoder: Any) -> None:
    tokens = encoder.tokenize(TEXTS)
    assert tokens.offsets[0] == 0
    assert tokens.offsets[-1] == len(tokens.ids)
    assert len(tokens.untruncated_lengths) == len(tokens.lengths) == len(TEXTS)
    assert (tokens.lengths > 0).all()
    assert (tokens.untruncated_lengths >= tokens.lengths).all()
    assert [array.dtype.name for array in (tokens.ids, tokens.offsets, tokens.untruncated_lengths)] == [
        "int32",
        "int64",
        "int32",
    ]


def test_a_texts_tokens_do_not_depend_on_its_neighbours(encoder: Any) -> None:
    together = encoder.tokenize(TEXTS)
    for i in (0, 7, len(TEXTS) - 2):
        alone = encoder.tokenize([TEXTS[i]])
        start, stop = together.offsets[i : i + 2]
        np.testing.assert_array_equal(alone.ids, together.ids[start:stop])
        assert alone.untruncated_lengths[0] == together.untruncated_lengths[i]


def test_no_texts_make_no_rows(encoder: Any) -> None:
    tokens = encoder.tokenize([])
    assert (len(tokens.ids), tokens.offsets.tolist(), len(tokens.untruncated_lengths)) == (0, [0], 0)


def test_vectors_are_float32_finite_and_in_the_order_of_the_rows(encoder: Any) -> None:
    tokens = encoder.tokenize(TEXTS)
    forward = encoder.collect(encoder.forward(tokens, rows(6)))
    backward = encoder.collect(encoder.forward(tokens, rows(6)[::-1]))
    assert (forward.dtype.name, forward.shape) == ("float32", (6, encoder.dim))
    assert np.isfinite(forward).all()
    np.testing.assert_allclose(backward[::-1], forward, atol=1e-5)
    assert len(np.unique(forward.round(4), axis=0)) == 6


def test_a_rows_vector_does_not_depend_on_its_batch(encoder: Any) -> None:
    whole = encode(encoder, TEXTS)
    np.testing.assert_allclose(encode(encoder, TEXTS, 40), whole, atol=1e-5)
    np.testing.assert_allclose(whole[-1], whole[0], atol=1e-5)


def test_encode_float32_returns_the_same_vectors(encoder: Any) -> None:
    tokens = encoder.tokenize(TEXTS)
    chosen = np.array([5, len(TEXTS) - 2, 2])
    np.testing.assert_allclose(encoder.encode_float32(tokens, chosen), encode(encoder, TEXTS)[chosen], atol=1e-5)
    assert encoder.encode_float32(tokens, chosen).dtype == np.float32


def test_batches_in_flight_do_not_mix(encoder: Any) -> None:
    tokens = encoder.tokenize(TEXTS)
    batches = list(batching.pack_batches(tokens.lengths, lambda: 60, encoder.pad_to_multiple_of))
    expected = [encoder.collect(encoder.forward(tokens, batch)) for batch in batches]
    for at in range(0, len(batches), encoder.max_in_flight):
        in_flight = [encoder.forward(tokens, batch) for batch in batches[at : at + encoder.max_in_flight]]
        for output, vectors in zip(in_flight, expected[at:], strict=False):
            np.testing.assert_allclose(encoder.collect(output), vectors, atol=1e-5)


def test_collected_vectors_do_not_change(encoder: Any) -> None:
    tokens = encoder.tokenize(TEXTS)
    first = encoder.collect(encoder.forward(tokens, rows(4)))
    kept = first.copy()
    encoder.collect(encoder.forward(tokens, rows(4) + 5))
    np.testing.assert_array_equal(first, kept)


def test_the_vector_space_is_described_as_json(encoder: Any) -> None:
    space = encoder.vector_space()
    assert json.loads(json.dumps(space)) == space
    assert set(SPACE) <= set(space)
    assert space["dim"] == encoder.dim
    lengths = np.linalg.norm(encode(encoder, TEXTS), axis=1)
    if space["normalize"] is not None:  # None: as the server does
        assert np.allclose(lengths, 1, atol=1e-4) is space["normalize"]


def test_a_text_splits_into_windows_that_are_read_whole(kind: str, encoder: BaseEncoder) -> None:
    found = encoder.split_into_windows(LONG, 2)
    assert (found is None) == (kind in CANNOT_SPLIT)
    if found is None:
        return
    assert (found[0][0], found[-1][1]) == (0, len(LONG))
    assert all(start < stop for start, stop in found)
    assert all(later[0] <= earlier[1] for earlier, later in itertools.pairwise(found))
    tokens = encoder.tokenize([LONG[start:stop] for start, stop in found])
    np.testing.assert_array_equal(tokens.lengths, tokens.untruncated_lengths)


def test_only_encoders_that_do_not_pad_take_portions(encoder: Any) -> None:
    portion = encoder.portion_characters
    assert portion is None or (portion > 0 and encoder.pad_to_multiple_of == 0)


def test_vectors_are_verified_only_if_they_are_usable(encoder: Any) -> None:
    tokens = encoder.tokenize(TEXTS)
    output = encoder.forward(tokens, rows(4))
    vectors = encoder.collect(output)
    assert encoder.has_verified_vectors(output) in (False, not find_unusable(vectors).any())


def test_rows_with_vectors_have_no_reject_reason(encoder: Any) -> None:
    tokens = encoder.tokenize(TEXTS)
    encoder.collect(encoder.forward(tokens, rows(4)))
    assert [encoder.reject_reason(tokens, row) for row in range(4)] == [None] * 4


def test_only_billed_encoders_have_usage(kind: str, encoder: BaseEncoder) -> None:
    encoder.collect(encoder.forward(encoder.tokenize(TEXTS), rows(4)))
    used = encoder.usage()
    assert (used is not None) == (kind in BILLS_REQUESTS)
    if used is not None:
        assert min(used["requests"], used["tokens"]) >= 1


class MinimalEncoder(BaseEncoder):
    """Only what an encoder must have."""

    dim = max_in_flight = batch_tokens = pad_to_multiple_of = 1
    empty_reason = "no token"

    def vector_space(self) -> dict[str, Any]:
        return {}

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return Tokens(np.zeros(len(texts), np.int32), np.arange(len(texts) + 1), np.ones(len(texts), np.int32))

    def forward(self, tokens: Tokens, rows: Any) -> Any:
        return tokens, rows

    def collect(self, output: Any) -> Any:
        return np.ones((len(output[1]), 1), np.float32)

    def encode_float32(self, tokens: Tokens, rows: Any) -> Any:
        return self.collect((tokens, rows))


def test_defaults_of_optional_abilities() -> None:
    encoder = MinimalEncoder()
    tokens = encoder.tokenize(["a"])
    assert encoder.portion_characters is None
    assert encoder.split_into_windows("a b", 1) is None
    assert encoder.has_verified_vectors(encoder.forward(tokens, rows(1))) is False
    assert encoder.reject_reason(tokens, 0) is None
    assert encoder.usage() is None
    encoder.close()


@pytest.mark.parametrize("name", sorted(BaseEncoder.__abstractmethods__))
def test_an_encoder_without_a_required_method_cannot_be_built(name: str) -> None:
    incomplete = type("Incomplete", (MinimalEncoder,), {name: getattr(BaseEncoder, name)})
    with pytest.raises(TypeError, match=name):
        incomplete()


def public_methods(kind: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(kind, callable) if not name.startswith("_")}


def fake_classes(kind: type[fakes.FakeEncoder]) -> list[type[fakes.FakeEncoder]]:
    direct = kind.__subclasses__()
    found = [one for one in direct if one.__module__ == fakes.__name__]
    return found + [below for one in direct for below in fake_classes(one)]


def test_fakes_have_no_method_that_an_encoder_lacks() -> None:
    found = fake_classes(fakes.FakeEncoder)
    assert {fakes.NanEncoder, fakes.TightEncoder} <= set(found)
    found.append(fakes.FakeEncoder)
    base = public_methods(BaseEncoder)
    for fake in found:
        assert set(public_methods(fake)) == set(base), fake
        for name, method in public_methods(fake).items():
            assert list(inspect.signature(method).parameters) == list(inspect.signature(base[name]).parameters), fake


def test_everything_that_computes_vectors_derives_from_the_base_class() -> None:
    found = []
    for module in pkgutil.walk_packages(embedcli.__path__, "embedcli."):
        if ".programs" in module.name or module.name.endswith("__main__"):
            continue
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if kind.__module__ == module.name and set(dir(kind)) >= {"tokenize", "forward", "collect"}:
                found.append(kind)
    local = {"torch", "torch, multi-vector", "torch, heads", "openvino", "openvino, multi-vector", "static"}
    assert len(found) == len({"base", *local, "hosted", "results of a batch"})
    assert all(issubclass(kind, BaseEncoder) for kind in found), found
