"""Texts that make a server fail or hang are found and rejected; a server that is down rejects nothing."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_server as fake
import jobs
from embedcli.core.errors import ModelError
from embedcli.encoders.hosted import encoder as hosted_encoder
from embedcli.encoders.hosted import failure_diagnosis
from embedcli.encoders.hosted.encoder import HostedEncoder
from embedcli.encoders.hosted.failure_diagnosis import RequestDiagnosis, ServerHealth
from embedcli.encoders.hosted.request_limits import RequestSizeLimits
from embedcli.encoders.hosted.retry import RetryableError, Suspicion
from fake_server import FakeServer, expected
from hosted import DIM, FakeClock, Load, SkippingClock, loading

TOO_LARGE = "input is too large to process. increase the physical batch size"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(dim=DIM) as running:
        yield running


@pytest.fixture
def load(server: FakeServer) -> Iterator[Load]:
    with loading(server, FakeClock()) as start:
        yield start


def is_poison(text: str) -> bool:
    return "poison" in text


def collect(encoder: HostedEncoder, texts: list[str]) -> tuple[np.ndarray[Any, Any], dict[int, str]]:
    """All vectors from one batch, and the reasons of rejected rows."""
    tokens = encoder.tokenize(texts)
    rows = np.arange(len(texts))
    vectors = encoder.collect(encoder.forward(tokens, rows))
    return vectors, {row: reason for row in rows.tolist() if (reason := encoder.reject_reason(tokens, row))}


def check(texts: list[str], vectors: np.ndarray[Any, Any], bad: list[int]) -> None:
    good = [row for row in range(len(texts)) if row not in bad]
    assert np.array_equal(vectors[good], expected([texts[row] for row in good], DIM))
    assert np.isnan(vectors[bad]).all()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (fake.fails_for(is_poison, TOO_LARGE), "{} answered 500: " + TOO_LARGE),
        (fake.fails_for(is_poison, "two\nlines\x1b[31m", 502), "{} answered 502: two lines [31m"),
        (fake.reports_for(is_poison, "cannot encode"), "the answer of {} reports an error: cannot encode"),
        (fake.crashes_for(is_poison), "the connection to {} failed"),
    ],
)
def test_a_text_that_makes_the_server_fail_is_rejected_alone(
    server: FakeServer, load: Load, fault: fake.Fault, words: str
) -> None:
    server.usual = fault
    texts = [f"text {number}" for number in range(200)]
    texts[0] = texts[99] = "poison"
    encoder = load()
    vectors, reasons = collect(encoder, texts)
    check(texts, vectors, [0, 99])
    assert set(reasons) == {0, 99}
    assert all(
        reason.startswith(f"the server fails for this text: {words.format(server.place)}")
        for reason in reasons.values()
    )
    assert all(reason.isprintable() for reason in reasons.values())
    assert len(server.seen) < 60


def test_three_poison_texts_on_a_server_with_random_failures(server: FakeServer, load: Load) -> None:
    chance = random.Random(7)
    poison = fake.fails_for(is_poison, TOO_LARGE)

    def fault(seen: fake.Seen, reply: fake.Reply) -> None:
        if chance.random() < 0.01:
            fake.status(chance.choice([500, 502, 503]))(seen, reply)
        else:
            poison(seen, reply)

    texts = [f"text {number} " + "word " * 80 for number in range(1000)]
    bad = [17, 500, 900]
    for row in bad:
        texts[row] = f"poison {row}"
    encoder = load()
    server.usual = fault
    vectors, reasons = collect(encoder, texts)
    check(texts, vectors, bad)
    assert set(reasons) == set(bad)
    assert len(server.seen) < 150


def test_a_batch_that_is_too_large_rejects_nothing_and_is_learned(server: FakeServer, load: Load) -> None:
    server.usual = fake.fails_above(20)
    texts = [f"text {number:03}" for number in range(300)]
    encoder = load()
    assert collect(encoder, texts)[1] == {}
    server.seen.clear()
    vectors, reasons = collect(encoder, texts)
    check(texts, vectors, [])
    assert reasons == {}
    assert max(len(seen.texts) for seen in server.seen) <= 20
    assert encoder.usage()["retries"] < 40


def test_a_limit_that_is_found_holds_for_requests_under_way_and_is_said(server: FakeServer) -> None:
    """500 above 8 texts, for 2,000 rows of requests that are made before the first one has failed."""
    server.usual = fake.fails_above(8)
    notes: list[str] = []
    texts = [f"text {number:04}" for number in range(2000)]
    with loading(server, FakeClock(), notes.append) as load:
        encoder = load()
        tokens = encoder.tokenize(texts)
        batches = [encoder.forward(tokens, rows) for rows in np.array_split(np.arange(2000), 8)]
        vectors = np.concatenate([encoder.collect(batch) for batch in batches])
        check(texts, vectors, [])
        failed = [seen for seen in server.seen if len(seen.texts) > 8]
        # Not one for each node of the tree that halving makes: that would be 250 and more.
        assert len(failed) < 150
        assert encoder._concurrency.limit >= 4
    said = [note for note in notes if "at once" in note]
    assert len(said) == 1
    assert "--batch-tokens" in said[0]


def test_one_failure_after_another_at_random_teaches_no_size() -> None:
    limits = RequestSizeLimits()
    limits.record_answered(100, 5000)
    limits.record_accepted(50, 2500, was_failure=True)
    assert limits.is_allowed(100, 5000)
    limits.record_accepted(50, 2500)
    assert not limits.is_allowed(100, 5000)
    limits = RequestSizeLimits()
    limits.record_answered(100, 5000)
    limits.record_accepted(200, 2500, was_failure=True)
    assert not limits.is_allowed(201, 2501)


def test_a_text_that_is_never_answered_costs_two_timeouts_and_little_more(server: FakeServer, load: Load) -> None:
    let_go = threading.Event()
    server.usual = fake.hangs_for(lambda seen: any(map(is_poison, seen.texts)), let_go)
    texts = [f"text {number}" for number in range(64)]
    texts[40] = "poison"
    encoder = load(SkippingClock(), request_timeout=0.4)
    vectors, reasons = collect(encoder, texts)
    let_go.set()
    check(texts, vectors, [40])
    assert reasons == {40: f"the server fails for this text: {server.place} did not answer within 0.4 s"}
    # The batch, its halves down to the text, and nothing twice.
    assert sum("poison" in seen.texts for seen in server.seen) == 7


def test_halves_of_a_request_that_hung_have_a_short_timeout() -> None:
    health = ServerHealth(FakeClock(), 600, lambda timeout: None)
    assert health.suspect_timeout() == 5
    clock = FakeClock()
    health = ServerHealth(clock, 600, lambda timeout: None)
    clock.time += 10
    health.record_answer(1000)
    assert health.suspect_timeout() == 40
    assert ServerHealth(clock, 3, lambda timeout: None).suspect_timeout() == 3


def test_parts_of_a_request_that_hung_are_given_up_early_and_a_text_alone_is_not(
    server: FakeServer, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failure_diagnosis, "SUSPECT_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(failure_diagnosis, "SUSPECT_TIMEOUT_FACTOR", 0.0)
    let_go = threading.Event()
    server.usual = fake.hangs_for(lambda seen: any(map(is_poison, seen.texts)), let_go)
    encoder = load(SkippingClock(), request_timeout=0.5)
    timeouts: list[tuple[int, float | None]] = []
    post = encoder._endpoint.post

    def record(body: bytes, timeout: float | None = None) -> bytes:
        if b"poison" in body:
            timeouts.append((len(json.loads(body)["input"]), timeout))
        return post(body, timeout)

    monkeypatch.setattr(encoder._endpoint, "post", record)
    collect(encoder, ["one", "poison", "three", "four"])
    let_go.set()
    assert timeouts == [(4, None), (2, 0.2), (1, None)]


def test_a_mixture_that_hangs_is_sent_in_parts(server: FakeServer, load: Load) -> None:
    let_go = threading.Event()
    server.usual = fake.hangs_for(lambda seen: len({len(text) for text in seen.texts}) > 1, let_go)
    texts = ["short", "much longer", "short", "much longer"]
    encoder = load(SkippingClock(), request_timeout=0.3)
    vectors, reasons = collect(encoder, texts)
    let_go.set()
    check(texts, vectors, [])
    assert reasons == {}


# A server that is down


@pytest.mark.parametrize(
    "fault", [fake.status(503), fake.status(500), fake.status(502), fake.reset(), fake.raw(b'{"error": "down"}')]
)
def test_a_server_that_is_down_rejects_nothing(server: FakeServer, load: Load, fault: fake.Fault) -> None:
    encoder = load(patience=600)
    texts = [f"text {number}" for number in range(50)]
    tokens = encoder.tokenize(texts)
    server.usual = fault
    with pytest.raises(ModelError, match=r"given up after|5 times"):
        encoder.collect(encoder.forward(tokens, np.arange(50)))
    assert tokens.payload.refusal_reasons == {}
    # Suspects are not halved either: the rows, and the short text that shows that the server is down.
    assert {len(seen.texts) for seen in server.seen} == {50, 1}
    assert {*server.sent} == {*texts, hosted_encoder.PROBE_TEXT}


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_asks_to_wait_is_not_suspected(server: FakeServer, load: Load, code: int) -> None:
    encoder = load()
    server.faults += [fake.status(code, {"Retry-After": "20"})] * 10
    texts = [f"text {number}" for number in range(50)]
    check(texts, collect(encoder, texts)[0], [])
    assert [len(seen.texts) for seen in server.seen] == [50] * 11


def test_a_server_that_comes_back_encodes_everything(server: FakeServer, load: Load) -> None:
    encoder = load()
    server.faults += [fake.status(502)] * 20
    texts = [f"text {number}" for number in range(50)]
    vectors, reasons = collect(encoder, texts)
    check(texts, vectors, [])
    assert reasons == {}


def test_a_server_that_hangs_for_all_rejects_nothing(server: FakeServer, load: Load) -> None:
    let_go = threading.Event()
    encoder = load(SkippingClock(), request_timeout=0.2, patience=30)
    server.usual = fake.silent(let_go)
    with pytest.raises(ModelError, match="did not answer within"):
        collect(encoder, ["one", "two"])
    let_go.set()


# Rules, one by one


class Health(ServerHealth):
    """A server with a fixed state; probes are counted."""

    def __init__(self, *answers: bool) -> None:
        super().__init__(FakeClock(), 600, self.ask)
        self.answers = list(answers)

    def ask(self, timeout: float) -> None:
        if not self.answers.pop(0):
            raise RetryableError("down", "busy")


def judge(
    texts: int, is_suspect: bool, failures: list[Suspicion], answers: tuple[bool, ...] = (True,) * 9
) -> list[bool]:
    diagnosis = RequestDiagnosis(Health(*answers), texts, is_suspect)
    return [
        diagnosis.blames_texts(RetryableError("reason", "busy", suspicion=suspicion), 1000) for suspicion in failures
    ]


def test_how_many_failures_it_takes() -> None:
    assert judge(9, False, ["failure"] * 3) == [False, False, True]
    assert judge(1, False, ["failure"] * 3) == [False, False, True]
    assert judge(9, False, ["timeout"]) == [True]
    assert judge(1, False, ["timeout"] * 2) == [False, True]
    assert judge(9, True, ["failure"]) == [True]
    assert judge(1, True, ["failure"] * 2) == [False, True]
    assert judge(1, True, ["timeout"]) == [True]
    assert judge(1, True, ["none"] * 5) == [False] * 5


def test_failures_while_the_server_is_down_are_forgotten() -> None:
    assert judge(1, False, ["failure"] * 6, (False, True)) == [False] * 5 + [True]


def test_an_answer_to_another_request_shows_that_the_server_is_up_but_rejects_no_text() -> None:
    health = Health(False)
    health.record_answer(1000)
    failure = RetryableError("reason", "busy", suspicion="timeout")
    assert RequestDiagnosis(health, 9, True).blames_texts(failure, 1000)
    assert not RequestDiagnosis(health, 1, True).blames_texts(failure, 1000)


def test_a_run_with_poison_texts_ends_with_3_and_is_complete(tmp_path: Path, server: FakeServer) -> None:
    server.usual = fake.fails_for(is_poison, TOO_LARGE)
    rows = [{"id": number, "text": f"text {number}"} for number in range(100)]
    rows[5]["text"] = "poison"
    jobs.write_jsonl(tmp_path / "in.jsonl", rows)
    command = ("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "-m", f"openai:{fake.MODEL}")
    result = jobs.run(*command, "--base-url", server.base_url)
    assert result.code == 3
    rejects = (tmp_path / "out.parquet.rejects.jsonl").read_text()
    assert rejects.count("\n") == 1
    assert TOO_LARGE in rejects
    assert jobs.run("inspect", tmp_path / "out.parquet").code == 0
