"""Vectors in base64 that are not float32 in little-endian order: noticed before the first row, never stored."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fake_server as fake
from embedcli.core.job import Job
from embedcli.encoders.hosted import encoder as hosted_encoder
from embedcli.encoders.hosted.canaries import CANARY_TEXTS
from fake_server import FakeServer, expected
from hosted import FakeClock

DIM = 8


def in_base64(pack: Callable[[Any], bytes]) -> fake.Fault:
    """Send other bytes where base64 is asked for."""

    def fault(seen: fake.Seen, reply: fake.Reply) -> None:
        if seen.body.get("encoding_format") == "base64":
            for item, vector in zip(reply.body["data"], expected(seen.texts, DIM), strict=True):
                item["embedding"] = base64.b64encode(pack(vector)).decode()

    return fault


def load_and_embed(server: FakeServer, notes: list[str], **flags: Any) -> Any:
    job = Job(("in",), "out.npy", model="openai:" + fake.MODEL, base_url=server.base_url, **flags)
    encoder = hosted_encoder.load_hosted_encoder(job, notes.append, clock=FakeClock(), rng=random.Random(0))
    try:
        tokens = encoder.tokenize(["one", "two"])
        return encoder, encoder.collect(encoder.forward(tokens, np.arange(2)))
    finally:
        encoder.close()


@pytest.mark.parametrize(
    ("pack", "name"),
    [
        (lambda vector: vector.astype(">f4").tobytes(), "float32 in big-endian order"),
        (lambda vector: vector.astype("<f8").tobytes(), "float64"),
        (lambda vector: vector.astype("<f2").tobytes(), "float16"),
        (lambda vector: np.round(vector * 127).astype("i1").tobytes(), "int8"),
        (lambda vector: (np.round(vector * 127) + 128).astype("u1").tobytes(), "uint8"),
        (lambda vector: vector[::-1].tobytes(), "other vectors"),
        (lambda vector: (vector * 3).tobytes(), "other vectors"),
    ],
)
@pytest.mark.parametrize("flags", [{}, {"truncate_dim": DIM}])
def test_other_numbers_in_base64_are_not_used(pack: Any, name: str, flags: dict[str, Any]) -> None:
    notes: list[str] = []
    with FakeServer(dim=DIM, usual=in_base64(pack)) as server:
        encoder, vectors = load_and_embed(server, notes, **flags)
        assert np.allclose(vectors, expected(["one", "two"], DIM))
        assert encoder.dim == DIM
        assert "encoding_format" not in server.seen[-1].body
        assert encoder.vector_space()["canaries"]["dim"] == DIM
    [note] = [note for note in notes if "base64" in note]
    assert f"sends {name} in base64" in note
    assert not any("dimensions" in note for note in notes)


def test_noise_is_not_taken_for_another_format() -> None:
    rng = np.random.default_rng(0)
    notes: list[str] = []

    def noisy(seen: fake.Seen, reply: fake.Reply) -> None:
        for item, vector in zip(reply.body["data"], expected(seen.texts, DIM), strict=True):
            changed = np.asarray(vector + rng.normal(0, 1e-2, DIM), np.float32)
            item["embedding"] = base64.b64encode(changed.tobytes()).decode()

    with FakeServer(dim=DIM, usual=noisy) as server:
        encoder, _ = load_and_embed(server, notes)
        assert server.seen[-1].body["encoding_format"] == "base64"
        assert 1e-5 < encoder.vector_space()["canaries"]["noise"] < 1e-2
    assert not any("base64" in note for note in notes)


def test_answers_that_differ_each_time_are_reported() -> None:
    rng = np.random.default_rng(0)
    notes: list[str] = []

    def any_vector(seen: fake.Seen, reply: fake.Reply) -> None:
        for item in reply.body["data"]:
            item["embedding"] = rng.standard_normal(DIM).tolist()

    with FakeServer(dim=DIM, usual=any_vector) as server:
        load_and_embed(server, notes)
    assert any("answers the same text with different vectors each time" in note for note in notes)


def test_the_fixed_texts_are_asked_once_in_each_encoding() -> None:
    with FakeServer(dim=DIM) as server:
        load_and_embed(server, [])
        asked = [seen.body.get("encoding_format") for seen in server.seen if seen.texts == list(CANARY_TEXTS)]
    assert asked == ["base64", None]


@pytest.mark.parametrize("dim", [6, 7])
def test_base64_that_is_no_whole_number_of_floats_is_not_used(dim: int) -> None:
    """int8 of 6 dimensions is 6 bytes: no float32 can be read from them at all."""

    def as_int8(seen: fake.Seen, reply: fake.Reply) -> None:
        if seen.body.get("encoding_format") == "base64":
            for item, vector in zip(reply.body["data"], expected(seen.texts, dim), strict=True):
                item["embedding"] = base64.b64encode(np.round(vector * 127).astype("i1").tobytes()).decode()

    with FakeServer(dim=dim, usual=as_int8) as server:
        _, vectors = load_and_embed(server, [])
    np.testing.assert_allclose(vectors, expected(["one", "two"], dim), atol=1e-6)
    assert "encoding_format" not in server.seen[-1].body
