"""The hosted encoder against a real HTTP server that misbehaves."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import fake_server as fake
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.core.row_vectors import as_dense
from embedcli.core.types import Chunk, InputSplit
from embedcli.encoders.hosted import encoder as hosted_encoder
from embedcli.encoders.hosted import identity, retry
from embedcli.encoders.hosted.canaries import CANARY_TEXTS
from embedcli.pipeline import engine, metrics
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.preparation import EncodingSettings
from fake_server import FakeServer, expected
from hosted import DIM, WORDS, FakeClock, Load, SkippingClock, embed, job_for, loading


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(dim=DIM) as running:
        yield running


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def load(server: FakeServer, notes: list[str], clock: FakeClock) -> Iterator[Load]:
    with loading(server, clock, notes.append) as start:
        yield start


def test_vectors_are_the_servers_in_the_order_of_the_texts(server: FakeServer, load: Load) -> None:
    encoder = load()
    assert np.array_equal(embed(encoder, WORDS), expected(WORDS, DIM))
    assert encoder.dim == DIM
    assert [seen.path for seen in server.seen] == ["/v1/embeddings"]
    body = server.seen[0].body
    assert {key: body[key] for key in body if key != "input"} == {"model": fake.MODEL, "encoding_format": "base64"}
    assert sorted(body["input"]) == sorted(WORDS)


def test_many_requests_at_once_keep_rows_and_vectors_together(server: FakeServer, load: Load) -> None:
    server.usual = fake.shuffled()
    texts = [f"text {number}" * (1 + number % 7) for number in range(500)]
    encoder = load()
    assert np.array_equal(embed(encoder, texts, budget=60), expected(texts, DIM))
    assert len(server.seen) > 50
    assert sorted(server.sent) == sorted(texts)


def test_the_prompt_is_sent_with_each_text(server: FakeServer, load: Load) -> None:
    encoder = load(prompt="query: ")
    assert np.array_equal(embed(encoder, ["a", "b"]), expected(["query: a", "query: b"], DIM))
    assert encoder.vector_space()["prompt"] == "query: "


def test_normalize_makes_length_one(server: FakeServer, load: Load) -> None:
    server.usual = fake.numbers(lambda vector: [3 * number for number in vector])
    assert np.allclose(np.linalg.norm(embed(load(), WORDS), axis=1), 3, atol=1e-5)
    assert np.allclose(np.linalg.norm(embed(load(normalize=True), WORDS), axis=1), 1, atol=1e-6)


# How servers differ


def test_floats_are_taken_where_base64_is_ignored(server: FakeServer, load: Load) -> None:
    server.base64 = False
    assert np.allclose(embed(load(), WORDS), expected(WORDS, DIM), atol=1e-7)


def test_encoding_format_is_left_out_where_it_is_refused(server: FakeServer, load: Load) -> None:
    server.base64 = None
    assert np.allclose(embed(load(), WORDS), expected(WORDS, DIM), atol=1e-7)
    assert all("encoding_format" not in seen.body for seen in server.seen)


def test_dimensions_are_asked_of_the_server(server: FakeServer, load: Load) -> None:
    encoder = load(truncate_dim=5)
    assert np.array_equal(embed(encoder, WORDS), expected(WORDS, 5))
    assert (encoder.dim, encoder.vector_space()["dimensions"]) == (5, 5)


@pytest.mark.parametrize(("support", "verb"), [(False, "ignores"), (None, "refuses")])
def test_dimensions_the_server_will_not_cut_are_left_to_the_engine(
    server: FakeServer, load: Load, notes: list[str], support: bool | None, verb: str
) -> None:
    server.dimensions = support
    encoder = load(truncate_dim=5)
    assert encoder.dim == DIM
    assert np.array_equal(embed(encoder, WORDS), expected(WORDS, DIM))
    assert f"the server {verb} `dimensions`: its 8 are cut to 5 here" in notes


def test_more_dimensions_than_there_are_is_an_error(server: FakeServer, load: Load) -> None:
    server.dimensions = False
    with pytest.raises(ModelError, match=r"gives 8 dimensions.*asks for 9"):
        load(truncate_dim=9)


def test_at_most_2048_texts_travel_together(server: FakeServer, load: Load) -> None:
    texts = [str(number) for number in range(5000)]
    assert np.array_equal(embed(load(), texts, budget=10**9), expected(texts, DIM))
    assert max(len(seen.texts) for seen in server.seen) == 2048


def test_a_smaller_limit_of_the_server_is_learned(server: FakeServer, load: Load) -> None:
    server.max_inputs = 32
    texts = [f"text {number}" for number in range(1000)]
    encoder = load()
    assert np.array_equal(embed(encoder, texts), expected(texts, DIM))
    server.seen.clear()
    assert np.array_equal(embed(encoder, texts), expected(texts, DIM))
    assert all(len(seen.texts) <= 32 for seen in server.seen)


def test_a_token_limit_of_the_server_is_learned(server: FakeServer, load: Load) -> None:
    server.max_tokens = 100
    texts = [f"{number} " + "word " * 9 for number in range(200)]
    encoder = load()
    assert np.array_equal(embed(encoder, texts), expected(texts, DIM))
    server.seen.clear()
    embed(encoder, texts)
    assert all(len(seen.texts) <= 10 for seen in server.seen)


# What goes wrong and is tried again


@pytest.mark.parametrize(
    "fault",
    [
        fake.status(500),
        fake.status(502, message="<html><b>Bad gateway</b></html>"),
        fake.status(503, {"Retry-After": "2"}),
        fake.status(529),
        fake.status(429),
        fake.status(408),
        fake.status(409),
        fake.cut_body(0.0),
        fake.cut_body(0.5),
        fake.cut_body(0.99),
        fake.reset(),
        fake.reset(after_head=True),
        fake.raw(b""),
        fake.raw(b"<html>all is well</html>"),
        fake.raw(b'{"data": [{"index": 0, "embedd'),
        fake.raw(b'{"error": {"message": "upstream hiccup"}}'),
        fake.raw(b"[]"),
        fake.raw(b'{"data": [1, 2]}'),
        fake.raw(b'{"data": {}}'),
        fake.missing_last(),
        fake.one_short_vector(),
        fake.wrong_dimension(),
        fake.index(lambda place: 0),
        fake.index(lambda place: place + 1),
        fake.index(lambda place: None if place else 3),
        fake.index(lambda place: str(place + 1)),
        fake.index(lambda place: [place]),
        fake.other_model("another-model"),
        fake.numbers(lambda vector: ["x"]),
        fake.numbers(lambda vector: [vector]),
        fake.numbers(lambda vector: []),
    ],
)
def test_one_bad_answer_costs_one_retry(server: FakeServer, load: Load, fault: fake.Fault) -> None:
    encoder = load()
    server.faults.append(fault)
    assert np.array_equal(embed(encoder, WORDS), expected(WORDS, DIM))
    assert [sorted(seen.texts) for seen in server.seen] == [sorted(WORDS)] * 2
    assert encoder.usage()["retries"] == 1


def test_a_burst_of_failures_under_many_lanes(server: FakeServer, load: Load) -> None:
    texts = [f"text {number}" for number in range(300)]
    encoder = load()
    server.faults += [fake.status(500), fake.reset(), fake.cut_body(), fake.status(429, {"Retry-After": "9"})] * 5
    assert np.array_equal(embed(encoder, texts, budget=100), expected(texts, DIM))
    # A request that fails three times makes the encoder send a short text, which may meet a fault too.
    assert 15 <= encoder.usage()["retries"] <= 20


def test_retry_after_is_waited_out(server: FakeServer, load: Load, clock: FakeClock, notes: list[str]) -> None:
    encoder = load()
    server.faults.append(fake.status(429, {"Retry-After": "1800"}, "Rate limit reached"))
    begun = clock.monotonic()
    embed(encoder, ["a"])
    assert 1800 <= clock.monotonic() - begun <= 1801
    assert any("429: Rate limit reached; trying again in 180" in note for note in notes)
    assert 1800 <= encoder.usage()["waited_seconds"] <= 1801


@pytest.mark.parametrize(
    ("fault", "said"), [(fake.drip, "sent its answer too slowly"), (fake.silent, "did not answer within 0.5 s")]
)
def test_a_server_too_slow_is_cut_off_and_asked_again(
    server: FakeServer, notes: list[str], fault: Callable[[threading.Event], fake.Fault], said: str
) -> None:
    let_go = threading.Event()
    encoder = hosted_encoder.load_hosted_encoder(
        job_for(server, request_timeout=0.5), notes.append, clock=SkippingClock()
    )
    server.faults.append(fault(let_go))
    assert np.array_equal(embed(encoder, WORDS), expected(WORDS, DIM))
    assert encoder.usage()["retries"] >= 1
    assert any(said in note for note in notes)
    let_go.set()
    encoder.close()


def test_an_answer_that_stays_wrong_ends_the_run(server: FakeServer, load: Load) -> None:
    encoder = load()
    server.usual = fake.wrong_dimension()
    with pytest.raises(ModelError, match=r"vectors of 9 dimensions instead of 8 \(5 times\)"):
        embed(encoder, WORDS)
    assert len(server.seen) == 5


def test_another_model_behind_the_same_name_ends_the_run(server: FakeServer, load: Load) -> None:
    encoder = load()
    server.model = "fake-embedding"
    server.usual = fake.other_model("fake-embedding-v2")
    with pytest.raises(ModelError, match="answers with model 'fake-embedding-v2', and began with 'fake-embedding'"):
        embed(encoder, WORDS)


def test_patience_ends_with_a_sentence(server: FakeServer, load: Load, clock: FakeClock) -> None:
    encoder = load(patience=600)
    server.usual = fake.status(503, message="overloaded")
    begun = clock.monotonic()
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:\d+ answered 503: overloaded; given up after"):
        embed(encoder, ["a"])
    assert clock.monotonic() - begun <= 600


# What goes wrong for good


@pytest.mark.parametrize(
    ("fault", "message", "hint"),
    [
        (fake.status(401), "requires an API key", "OPENAI_API_KEY"),
        (fake.status(402), "requires payment", "credit"),
        (fake.status(403), "does not let this key use fake-embedding", "rights"),
        (fake.status(404), "does not know this model or path", "--base-url"),
        (fake.status(405), "refuses the request", "--model"),
        (fake.status(308, {"Location": "https://elsewhere/v1/embeddings"}), "redirects", "https://elsewhere/v1 "),
        (fake.status(429, message="You exceeded your quota", kind="insufficient_quota"), "no credit left", "credit"),
    ],
)
def test_permanent_errors_stop_at_once(
    server: FakeServer, load: Load, fault: fake.Fault, message: str, hint: str
) -> None:
    encoder = load()
    server.faults.append(fault)
    with pytest.raises(ModelError, match=message) as caught:
        embed(encoder, ["a"])
    assert hint in caught.value.hint
    assert len(server.seen) == 1
    assert encoder.usage()["retries"] == 0


def test_a_refused_key_is_said_to_be_one(server: FakeServer, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    server.key = "sk-right"
    with pytest.raises(ModelError, match="does not accept the key in OPENAI_API_KEY") as caught:
        load()
    assert "sk-wrong" not in str(caught.value)


def test_the_key_is_sent_as_the_bearer(server: FakeServer, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " sk-right\n")
    server.key = "sk-right"
    assert np.array_equal(embed(load(), ["a"]), expected(["a"], DIM))


def test_without_a_key_no_header_is_sent(server: FakeServer, load: Load) -> None:
    embed(load(), ["a"])
    assert "authorization" not in server.seen[0].headers


def test_an_unknown_model_is_found_out_at_the_start(server: FakeServer, load: Load) -> None:
    with pytest.raises(ModelError, match="does not know this model"):
        load(model="openai:nothing")


def test_a_server_that_refuses_everything_is_found_out_at_the_start(server: FakeServer, load: Load) -> None:
    server.refuses = lambda text: True
    with pytest.raises(ModelError, match="refuses even a one-letter text"):
        load()


def test_no_server_at_the_address(clock: FakeClock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    job = Job(("in",), "out", model="openai:x", base_url=f"http://127.0.0.1:{port}/v1")
    with pytest.raises(ModelError, match=r"the connection to 127\.0\.0\.1:\d+ failed") as caught:
        hosted_encoder.load_hosted_encoder(job, print, clock=clock)
    assert "--base-url" in caught.value.hint
    assert clock.monotonic() <= 1000 + retry.UNREACHABLE_AT_START_SECONDS


# Texts the server will not take


def test_refused_texts_are_isolated_and_named(server: FakeServer, load: Load) -> None:
    texts = [f"text {number}" for number in range(100)]
    texts[7] = texts[8] = "poison"
    texts[60] = "poison too"
    server.refuses = lambda text: text.startswith("poison")
    encoder = load()
    tokens = encoder.tokenize(texts)
    rows = np.arange(100)[::-1]
    vectors = encoder.collect(encoder.forward(tokens, rows))[::-1]
    bad = [7, 8, 60]
    assert np.flatnonzero(np.isnan(vectors).any(axis=1)).tolist() == bad
    good = [row for row in range(100) if row not in bad]
    assert np.array_equal(vectors[good], expected([texts[row] for row in good], DIM))
    assert "the server refused the text: 400: invalid input" in str(encoder.reject_reason(tokens, 60))
    assert encoder.reject_reason(tokens, 61) is None
    assert len(server.seen) < 50


def test_a_refused_text_is_not_sent_again(server: FakeServer, load: Load) -> None:
    server.refuses = lambda text: text == "poison"
    encoder = load()
    tokens = encoder.tokenize(["fine", "poison"])
    encoder.collect(encoder.forward(tokens, np.array([0, 1])))
    server.seen.clear()
    again = encoder.encode_float32(tokens, np.array([1, 0]))
    assert np.isnan(again[0]).all()
    assert np.array_equal(again[1], expected(["fine"], DIM)[0])
    assert server.sent == ["fine"]


def test_refusing_everything_from_now_on_ends_the_run(server: FakeServer, load: Load) -> None:
    encoder = load()
    server.refuses = lambda text: True
    with pytest.raises(ModelError, match="now refuses every text"):
        embed(encoder, [f"text {number}" for number in range(1000)])


def test_many_bad_texts_in_a_row_are_not_mistaken_for_a_bad_server(server: FakeServer, load: Load) -> None:
    server.refuses = lambda text: "bad" in text
    encoder = load()
    vectors = embed(encoder, [f"bad {number}" for number in range(40)])
    assert np.isnan(vectors).all()


@pytest.mark.parametrize("none", ["null", "NaN", "Infinity"])
def test_a_vector_that_is_not_finite_is_passed_on_and_asked_for_again(
    server: FakeServer, load: Load, none: str
) -> None:
    encoder = load()
    vectors = ", ".join(f'{{"index": {row}, "embedding": [{none}, 1, 1, 1, 1, 1, 1, 1]}}' for row in range(2))
    server.faults.append(fake.raw(f'{{"data": [{vectors}]}}'.encode()))
    tokens = encoder.tokenize(["a", "b"])
    made = encoder.collect(encoder.forward(tokens, np.array([0, 1])))
    assert not np.isfinite(made[:, 0]).any()
    assert np.array_equal(encoder.encode_float32(tokens, np.array([0, 1])), expected(["a", "b"], DIM))
    assert [len(seen.texts) for seen in server.seen] == [2, 1, 1]


# Limits, counts, ends


def test_requests_per_minute(server: FakeServer, load: Load, clock: FakeClock) -> None:
    encoder = load(rpm=30, max_concurrency=1)
    begun = clock.monotonic()
    embed(encoder, [f"text {number}" for number in range(20)], budget=1)
    assert len(server.seen) == 20
    assert clock.monotonic() - begun == pytest.approx(40)


def test_tokens_per_minute_bound_the_requests_and_use_the_servers_count(
    server: FakeServer, load: Load, clock: FakeClock
) -> None:
    encoder = load(tpm=600, max_concurrency=1)
    assert encoder.batch_tokens == 600
    begun = clock.monotonic()
    embed(encoder, ["word " * 100 for _ in range(5)], budget=200)
    embed(encoder, ["end"])
    at_start = sum(map(fake.tokens_of, CANARY_TEXTS)) / 10
    assert clock.monotonic() - begun == pytest.approx(50 + at_start, abs=0.3)


def test_no_more_requests_at_once_than_lanes(server: FakeServer, load: Load) -> None:
    lock, gate = threading.Lock(), threading.Semaphore(0)
    at_once = most = 0

    def count(seen: fake.Seen, reply: fake.Reply) -> None:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
            if at_once == 3:
                gate.release(100)
        gate.acquire()
        with lock:
            at_once -= 1

    encoder = load(max_concurrency=3)
    server.usual = count
    embed(encoder, [f"text {number}" for number in range(60)], budget=10)
    assert most == 3
    assert encoder.max_in_flight == 6  # more batches than requests wait, so that a free place is taken at once


def test_usage_is_what_the_server_reports(server: FakeServer, load: Load) -> None:
    encoder = load()
    embed(encoder, ["one two three", "four"])
    told = encoder.usage()
    at_start = 1 + 2 * sum(map(fake.tokens_of, CANARY_TEXTS))
    assert (told["requests"], told["tokens"], told["tokens_reported"]) == (4, at_start + 4, True)
    server.faults.append(fake.without_usage())
    embed(encoder, ["five"])
    assert encoder.usage()["tokens_reported"] is False


@pytest.mark.parametrize("way", ["stop", "close"])
def test_a_stop_wakes_a_request_that_waits(server: FakeServer, way: str) -> None:
    stop, waits = threading.Event(), threading.Event()
    encoder = hosted_encoder.load_hosted_encoder(
        job_for(server), lambda line: waits.set() if "429" in line else None, stop=stop
    )
    server.faults.append(fake.status(429, {"Retry-After": "3000"}))
    output = encoder.forward(tokens := encoder.tokenize(["a"]), np.array([0]))
    waits.wait()
    if way == "stop":
        stop.set()
    else:
        encoder.close()
    with pytest.raises(ModelError, match="stopped while requests were waiting"):
        encoder.collect(output)
    assert tokens.payload.refusal_reasons == {}
    encoder.close()
    encoder.close()


def test_a_stop_wakes_a_load_that_waits(server: FakeServer) -> None:
    stop = threading.Event()
    server.faults.append(fake.status(429, {"Retry-After": "3000"}))
    with pytest.raises(ModelError, match="stopped while requests were waiting"):
        hosted_encoder.load_hosted_encoder(
            job_for(server), lambda line: stop.set() if "429" in line else None, stop=stop
        )


def test_the_space_says_what_decides_the_vectors(server: FakeServer, load: Load) -> None:
    space = load().vector_space()
    assert space["model"] == "openai:fake-embedding"
    assert space["endpoint"] == "127.0.0.1"
    assert space["base_url"] == server.base_url
    assert space["reported_model"] == fake.MODEL
    assert space["token_counting"] == "estimate"
    known_before = identity.hosted_model_identity(job_for(server))
    assert {key: space[key] for key in known_before} == known_before


# The engine around it


def chunk_of(texts: list[str]) -> Chunk:
    ids = pa.array([f"id{row}" for row in range(len(texts))])
    kept = pa.table({}).slice(0, 0)
    return Chunk(
        InputSplit(0, "in.jsonl"), 0, ids, texts, kept, list(range(1, len(texts) + 1)), (), len(texts), is_last=True
    )


@pytest.mark.parametrize("overflow", ["split", "pool"])
def test_long_texts_as_windows(server: FakeServer, load: Load, overflow: Any) -> None:
    texts = ["short", "a sentence with some words in it. " * 30]
    encoder = load(max_seq_length=20, overflow=overflow)
    settings = EncodingSettings(overflow=overflow, split_overlap=3)
    [made] = engine.encode_chunks([chunk_of(texts)], encoder, settings, metrics.MetricsCollector(), RunControl())
    assert all(text == "short" or text in texts[1] for text in server.sent)
    assert max(encoder._counter.count(server.sent)) <= 20
    assert len(server.sent) > 10
    assert set(made.rows.tolist()) == {0, 1}
    assert made.lost_tokens == 0
    if overflow == "split":
        starts, stops = (made.extra_columns[name].to_pylist()[1:] for name in ("char_start", "char_end"))
        windows = [texts[1][start:stop] for start, stop in zip(starts, stops, strict=True)]
        assert {*windows} == {*server.sent} - {"short"}


def test_the_engine_rejects_what_the_server_refuses_and_keeps_the_rest(server: FakeServer, load: Load) -> None:
    server.refuses = lambda text: "poison" in text
    texts = [f"text {row % 50}" for row in range(200)]
    texts[3] = texts[150] = "poison"
    texts[9] = ""
    encoder = load()
    settings = EncodingSettings(batch_tokens=40, truncate_dim=4)
    [made] = engine.encode_chunks([chunk_of(texts)], encoder, settings, metrics.MetricsCollector(), RunControl())
    assert [reject.line for reject in made.rejects] == [4, 10, 151]
    assert "the server refused the text: 400" in made.rejects[0].reason
    assert made.rejects[1].reason == "the text is empty"
    good = [row for row in range(200) if row not in (3, 9, 150)]
    assert made.rows.tolist() == good
    wanted = expected([texts[row] for row in good], DIM)[:, :4]
    assert np.allclose(as_dense(made.vectors), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)
    assert {*server.sent} == {*texts} - {""}


@pytest.mark.parametrize(
    "flags",
    [
        {"base_url": "ftp://host/v1"},
        {"base_url": "localhost:8080"},
        {"base_url": "http://"},
        {"base_url": "http://host:port/v1"},
        {"overflow": "split"},
        {"rpm": 0},
        {"max_concurrency": -1},
        {"prompt_name": "query"},
    ],
)
def test_flags_that_cannot_be_right(server: FakeServer, load: Load, flags: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        load(**flags)
    assert caught.value.hint
    assert server.seen == []


def test_openai_itself_wants_a_key() -> None:
    with pytest.raises(UsageError, match="OPENAI_API_KEY is not set"):
        hosted_encoder.load_hosted_encoder(Job(("in",), "out", model="openai:text-embedding-3-small"), print)


def test_the_address_may_come_from_the_environment(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, notes: list[str]
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url + "/")
    encoder = hosted_encoder.load_hosted_encoder(
        Job(("in",), "out", model="openai:" + fake.MODEL), notes.append, clock=FakeClock()
    )
    assert encoder.dim == DIM
    encoder.close()


def test_a_known_familys_prompts_are_pointed_out(server: FakeServer, load: Load, notes: list[str]) -> None:
    server.model = "intfloat/e5-base-v2"
    load(model="openai:intfloat/e5-base-v2")
    assert any("--prompt 'query: ' (query)" in note for note in notes)


def test_official_client_and_fake_server_agree(server: FakeServer) -> None:
    openai = pytest.importorskip("openai", reason="the official client is not installed")
    server.key = "sk-test"
    server.faults.append(fake.status(500))
    with openai.OpenAI(api_key="sk-test", base_url=server.base_url, max_retries=2) as client:
        for form in ("float", "base64"):
            made = client.embeddings.create(model=fake.MODEL, input=WORDS, encoding_format=form)
            assert [item.index for item in made.data] == list(range(len(WORDS)))
            assert made.usage.total_tokens == sum(map(fake.tokens_of, WORDS))
        plain = client.embeddings.create(model=fake.MODEL, input=WORDS)
        assert np.allclose([item.embedding for item in plain.data], expected(WORDS, DIM), atol=1e-7)
    assert server.seen[-1].path == "/v1/embeddings"
    assert server.seen[-1].body["encoding_format"] == "base64"
