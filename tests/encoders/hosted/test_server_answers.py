"""Answers that servers give and OpenAI does not: indices, redirects, errors with status 200."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fake_server as fake
from embedcli.core.errors import ModelError
from embedcli.encoders.hosted.response import MalformedResponseError, parse_error_body, parse_response
from fake_server import FakeServer, expected
from hosted import DIM, WORDS, FakeClock, Load, embed, loading


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(dim=DIM) as running:
        yield running


@pytest.fixture
def load(server: FakeServer) -> Iterator[Load]:
    with loading(server, FakeClock()) as start:
        yield start


@pytest.mark.parametrize(
    "fault",
    [
        fake.without_index(),
        fake.without_index(first_only=True),
        fake.index(lambda place: None),
        fake.index(lambda place: place or None),
        fake.index(str),
        fake.index(lambda place: "" if place else 0),
    ],
)
def test_the_order_counts_where_indices_are_missing(server: FakeServer, load: Load, fault: fake.Fault) -> None:
    server.usual = fault
    encoder = load()
    assert np.array_equal(embed(encoder, WORDS), expected(WORDS, DIM))
    assert encoder.usage()["retries"] == 0


def items(*indices: Any) -> dict[str, Any]:
    return {"data": [{"index": index, "embedding": [float(row)]} for row, index in enumerate(indices)]}


def test_string_indices_are_used_where_they_are_complete() -> None:
    assert parse_response(items("2", "0", "1"), 3).vectors.tolist() == [[1], [2], [0]]


@pytest.mark.parametrize(
    "indices",
    [
        (None, 0, 1),
        (0, 2, None),
        (None, None, 3),
        (None, None, -1),
        (0, 0, 1),
        ("1", None, "0"),
        (0, 1, 2.0),
        (0, 1, True),
        (0, 1, [2]),
        (1, 2, 3),
    ],
)
def test_indices_that_contradict_are_not_guessed(indices: tuple[Any, ...]) -> None:
    with pytest.raises(MalformedResponseError, match="ind"):
        parse_response(items(*indices), 3)


def test_too_few_embeddings_without_index_are_not_guessed() -> None:
    with pytest.raises(MalformedResponseError, match="2 embeddings for 3 texts"):
        parse_response(items(None, None), 3)


# Status 200, and no embeddings


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            b'{"error": {"message": "model is loading\\u001b[31m", "type": "x"}}',
            "reports an error: model is loading [31m",
        ),
        (b'{"error": "out of quota"}', "reports an error: out of quota"),
        (b'{"detail": "not ready"}', "reports an error: not ready"),
        (b"<html><style>p {}</style><h1>Welcome to nginx!</h1></html>", "is a web page, not JSON: Welcome to nginx!"),
        (b"upstream\nunavailable", "is text, not JSON: upstream unavailable"),
        (b"", "is empty"),
        (b'{"data": [{"index": 0, "embedd', "is JSON that was cut off or damaged"),
        (b'{"object": "list"}', "holds no list of embeddings"),
    ],
)
def test_the_servers_own_words_are_shown(server: FakeServer, load: Load, body: bytes, said: str) -> None:
    encoder = load()
    server.usual = fake.raw(body)
    with pytest.raises(ModelError) as caught:
        embed(encoder, ["a"])
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    # An error that the server names may pass; an answer that is none does not.
    assert ("--patience" if "reports an error" in said else "--base-url") in caught.value.hint


def test_a_server_that_reports_that_it_is_busy_is_waited_for(server: FakeServer, load: Load) -> None:
    """As gateways do that answer 200 while the model behind them is loaded."""
    encoder = load()
    server.faults.extend([fake.raw(b'{"error": {"message": "model is busy"}}')] * 12)
    np.testing.assert_allclose(embed(encoder, ["a"]), expected(["a"], DIM), atol=1e-6)


def test_null_in_place_of_one_vector_rejects_this_text(server: FakeServer, load: Load) -> None:
    """As servers do whose JSON has no NaN."""

    def null(seen: fake.Seen, reply: fake.Reply) -> None:
        for item, text in zip(reply.body["data"], seen.texts, strict=True):
            item["embedding"] = None if "poison" in text else item["embedding"]

    encoder = load()
    server.usual = null
    texts = ["one", "poison", "three"]
    tokens = encoder.tokenize(texts)
    vectors = encoder.collect(encoder.forward(tokens, np.arange(3)))
    np.testing.assert_allclose(vectors[[0, 2]], expected(["one", "three"], DIM), atol=1e-6)
    assert np.isnan(vectors[1]).all()


@pytest.mark.parametrize("name", ["encoding_format", "dimensions"])
def test_a_server_that_fails_for_an_unknown_field_is_asked_without_it(
    server: FakeServer, load: Load, name: str
) -> None:
    """500 and not 400, as servers do that pass fields to a function which does not take them."""
    server.usual = fake.fails_for_field(name)
    encoder = load(truncate_dim=DIM)
    np.testing.assert_allclose(embed(encoder, ["a", "b"]), expected(["a", "b"], DIM), atol=1e-6)
    assert name not in server.seen[-1].body
    encoder.close()


def test_a_validation_error_is_shown_without_the_text_that_it_repeats() -> None:
    error = {"input": "hello " * 1000, "loc": ["body", "input", 0], "msg": "String should have at most 9 characters"}
    body = json.dumps({"detail": [{"type": "string_too_long", **error}, {"msg": "and no list"}]}).encode()
    assert parse_error_body(body)[0] == "body.input.0: String should have at most 9 characters; and no list"


@pytest.mark.parametrize("detail", [["a", "b"], [{"msg": 1}], [{}], {"msg": "a"}])
def test_other_details_are_shown_as_they_are(detail: Any) -> None:
    assert parse_error_body(json.dumps({"detail": detail}).encode())[0] == json.dumps(detail, separators=(",", ":"))


def test_a_status_in_the_body_counts_as_the_status(server: FakeServer, load: Load) -> None:
    encoder = load()
    server.usual = fake.raw(b'{"error": {"message": "no such key", "code": 401}}')
    with pytest.raises(ModelError, match=r"requires an API key \(401\): no such key"):
        embed(encoder, ["a"])
    assert len(server.seen) == 1


# Redirects


@pytest.mark.parametrize("code", [307, 308])
@pytest.mark.parametrize("place", ["/v1/embeddings/", "absolute"])
def test_a_redirect_on_the_same_server_keeps_method_key_and_body(
    server: FakeServer, load: Load, monkeypatch: pytest.MonkeyPatch, code: int, place: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    server.key, server.path = "sk-right", "/v1/embeddings/"
    location = place if place != "absolute" else f"{server.base_url}/embeddings/"

    def fault(seen: fake.Seen, reply: fake.Reply) -> None:
        if seen.path != server.path:
            reply.status, reply.headers, reply.raw = code, {"Location": location}, b""

    server.usual = fault
    encoder = load()
    assert np.array_equal(embed(encoder, WORDS), expected(WORDS, DIM))
    # A permanent redirect is remembered.
    assert len(server.seen) == (1 if code == 308 else 2)
    assert encoder.vector_space()["base_url"] == server.base_url


def test_the_query_of_a_redirect_travels_unseen(server: FakeServer, load: Load) -> None:
    server.usual = fake.redirect(307, "/v1/embeddings?key=query-secret")
    encoder = load()
    assert np.array_equal(embed(encoder, WORDS), expected(WORDS, DIM))
    assert server.seen[-1].path == "/v1/embeddings?key=query-secret"


@pytest.mark.parametrize("code", [307, 308])
@pytest.mark.parametrize(
    "location", ["https://elsewhere/v1/embeddings?key=query-secret", "//elsewhere/v1", "ftp://x/", ""]
)
def test_a_redirect_to_another_server_gets_no_key(server: FakeServer, load: Load, code: int, location: str) -> None:
    encoder = load()
    server.usual = fake.redirect(code, location)
    with pytest.raises(ModelError, match="redirects") as caught:
        embed(encoder, ["a"])
    assert "query-secret" not in str(caught.value) + caught.value.hint
    assert "--base-url" in caught.value.hint


def test_another_port_is_another_server(server: FakeServer, load: Load) -> None:
    with FakeServer(dim=DIM) as other:
        encoder = load()
        server.usual = fake.redirect(308, f"{other.base_url}/embeddings")
        with pytest.raises(ModelError, match="to another server"):
            embed(encoder, ["a"])
        assert other.seen == []


@pytest.mark.parametrize("code", [301, 302, 303])
def test_a_redirect_that_drops_the_texts_is_not_followed(server: FakeServer, load: Load, code: int) -> None:
    encoder = load()
    server.usual = fake.redirect(code, "/v2/embeddings")
    with pytest.raises(ModelError, match="in a way that drops the texts") as caught:
        embed(encoder, ["a"])
    assert f"--base-url {server.base_url.replace('v1', 'v2')} itself" in caught.value.hint
    assert len(server.seen) == 1
