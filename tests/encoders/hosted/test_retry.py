"""Pace, Retry-After, jitter and patience, on a clock that the tests turn."""

from __future__ import annotations

import random
from email.utils import formatdate
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.core.errors import ModelError
from embedcli.encoders.hosted.request_limits import RequestSizeLimits
from embedcli.encoders.hosted.retry import (
    Clock,
    EncoderClosedError,
    RateLimiter,
    Retrier,
    RetryableError,
    RetryLimits,
    backoff_seconds,
    parse_retry_after,
)
from hosted import FakeClock, SkippingClock


def retrier(clock: Clock, notes: list[str] | None = None, pace: RateLimiter | None = None) -> Retrier:
    said = notes if notes is not None else []
    return Retrier(clock, pace or RateLimiter(clock), said.append, random.Random(0))


class Failing:
    """A step that fails with these, one after the other, and then returns how often it was tried."""

    def __init__(self, *failures: RetryableError) -> None:
        self.failures = list(failures)
        self.tries = 0

    def __call__(self) -> int:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.tries


@given(
    rpm=st.integers(1, 300),
    tpm=st.integers(100, 100_000),
    requests=st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 30)), min_size=1, max_size=60),
)
def test_no_minute_holds_more_than_the_limits(rpm: int, tpm: int, requests: list[tuple[int, float]]) -> None:
    clock = FakeClock()
    pace = RateLimiter(clock, rpm, tpm)
    starts = []
    for tokens, idle in requests:
        clock.time += idle
        pace.acquire(tokens)
        starts.append((clock.monotonic(), tokens))
    for begin, _ in starts:
        inside = [tokens for at, tokens in starts if begin <= at < begin + 60 - 1e-6]
        assert len(inside) <= rpm
        assert sum(inside[:-1]) <= tpm + 1e-6 * tpm


def test_without_limits_nothing_waits() -> None:
    clock = FakeClock()
    pace = RateLimiter(clock)
    for _ in range(100):
        pace.acquire(10_000)
    assert clock.waits == []


def test_a_request_that_cost_more_than_estimated_is_charged() -> None:
    clock = FakeClock()
    pace = RateLimiter(clock, tpm=60)
    pace.acquire(1)
    pace.charge_difference(9)
    pace.acquire(1)
    assert clock.monotonic() == pytest.approx(1010)


def test_a_hold_keeps_every_lane_waiting() -> None:
    clock = FakeClock()
    pace = RateLimiter(clock)
    pace.pause(30)
    pace.pause(5)
    pace.acquire(1)
    assert clock.monotonic() == 1030


def test_a_hold_ends_at_the_deadline_and_a_rate_limit_does_not() -> None:
    clock = SkippingClock()
    clock.deadline = clock.monotonic() + 3
    held, limited = RateLimiter(clock), RateLimiter(clock, rpm=1)
    held.pause(3600)
    with pytest.raises(EncoderClosedError):
        held.acquire(1)
    assert clock.skipped <= 3
    limited.acquire(1)
    limited.acquire(1)
    assert clock.skipped > 50


@given(st.integers(0, 10_000), st.integers())
def test_backoff_is_full_jitter_with_a_cap(attempt: int, seed: int) -> None:
    wait = backoff_seconds(attempt, random.Random(seed))
    assert 0 <= wait <= min(60, 0.5 * 2 ** min(attempt, 20))


def test_backoff_uses_its_whole_range() -> None:
    waits = [backoff_seconds(3, random.Random(seed)) for seed in range(200)]
    assert min(waits) < 0.4
    assert max(waits) > 3.6


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 2.5 "}, 2.5),
        ({"retry-after": "86400"}, 86400),
        ({"retry-after-ms": "1500", "retry-after": "99"}, 1.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": formatdate(1_700_000_090, usegmt=True)}, 90),
        ({"retry-after": formatdate(1_600_000_000, usegmt=True)}, 0),
        ({"retry-after": "Wed, 99 Foo 2026 00:00:00 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert parse_retry_after(headers, 1_700_000_000) == seconds


def test_the_servers_wait_is_obeyed_however_long() -> None:
    clock = FakeClock()
    step = Failing(RetryableError("429", "busy", 3000.0), RetryableError("429", "busy", 3000.0))
    made = retrier(clock)
    assert made.run(step, 1, RetryLimits()) == 3
    assert 7000 <= clock.monotonic() <= 7002
    assert made.retries == 2
    assert 6000 <= made.waited_seconds <= 6002


def test_the_servers_wait_is_cut_to_the_cap() -> None:
    clock = FakeClock()
    retrier(clock).run(Failing(RetryableError("429", "busy", 1e6)), 1, RetryLimits(retry_cap=60))
    assert 1060 <= clock.monotonic() <= 1061


def test_one_lanes_wait_holds_the_others() -> None:
    class Spy(RateLimiter):
        def pause(self, seconds: float) -> None:
            held.append(seconds)

    held: list[float] = []
    clock = FakeClock()
    retrier(clock, pace=Spy(clock)).run(
        Failing(RetryableError("429", "busy", 100.0), RetryableError("500", "busy")), 1, RetryLimits()
    )
    assert held == [100]


def test_patience_counts_from_the_first_failure_and_ends_in_a_sentence() -> None:
    clock = FakeClock()
    step = Failing(*[RetryableError("the host answered 503: busy", "busy") for _ in range(10_000)])
    with pytest.raises(ModelError, match=r"answered 503.*given up after") as caught:
        retrier(clock).run(step, 1, RetryLimits(total_seconds=3600))
    assert 3500 < clock.monotonic() - 1000 <= 3600
    assert "same command" in caught.value.hint or "--patience" in caught.value.hint


def test_a_wait_longer_than_patience_is_not_begun() -> None:
    clock = FakeClock()
    with pytest.raises(ModelError, match="asks for 500 s more"):
        retrier(clock).run(Failing(RetryableError("429", "busy", 500.0)), 1, RetryLimits(total_seconds=100))
    assert clock.monotonic() == 1000


def test_an_unreachable_server_has_its_own_shorter_patience() -> None:
    clock = FakeClock()
    patience = RetryLimits(total_seconds=3600, unreachable_seconds=60)
    with pytest.raises(ModelError, match="refused"):
        retrier(clock).run(Failing(*[RetryableError("refused", "lost")] * 1000), 1, patience)
    assert clock.monotonic() <= 1060
    assert retrier(FakeClock()).run(Failing(RetryableError("429", "busy", 600.0)), 1, patience) == 2


def test_a_wrong_answer_is_tried_five_times() -> None:
    step = Failing(*[RetryableError("nonsense", "wrong") for _ in range(10)])
    with pytest.raises(ModelError, match=r"nonsense \(5 times\)"):
        retrier(FakeClock()).run(step, 1, RetryLimits())
    assert step.tries == 5


def test_other_errors_are_not_retried() -> None:
    def step() -> None:
        raise ModelError("no")

    clock = FakeClock()
    with pytest.raises(ModelError, match="no"):
        retrier(clock).run(step, 1, RetryLimits())
    assert clock.waits == []


def test_long_waits_are_reported_at_most_once_a_minute() -> None:
    clock = FakeClock()
    notes: list[str] = []
    retrier(clock, notes).run(Failing(*[RetryableError("busy", "busy", 20.0)] * 9), 1, RetryLimits())
    assert len(notes) == 3
    assert notes[0].startswith("busy; trying again in 2")
    assert "retry 4" in notes[1]


def test_a_closed_clock_wakes_its_waiters() -> None:
    clock = Clock()
    clock.close()
    with pytest.raises(EncoderClosedError):
        clock.wait(3600)


def test_a_stop_from_outside_wakes_the_waiters_and_is_not_set_by_a_close() -> None:
    stop = Event()
    clock = Clock(stop)
    clock.wait(0.001)
    clock.close()
    assert not stop.is_set()
    stop.set()
    with pytest.raises(EncoderClosedError):
        Clock(stop).wait(3600)


@given(st.lists(st.integers(0, 400), max_size=80), st.lists(st.tuples(st.integers(2, 30), st.integers(2, 2000))))
def test_limits_cut_into_allowed_requests(tokens: list[int], learned: list[tuple[int, int]]) -> None:
    limits = RequestSizeLimits(inputs=20, tokens=1500)
    for inputs, size in learned:
        limits.record_accepted(inputs, size)
    cuts = list(limits.split_into_requests(tokens))
    assert [place for start, stop in cuts for place in range(start, stop)] == list(range(len(tokens)))
    for start, stop in cuts:
        assert start < stop
        assert limits.is_allowed(stop - start, sum(tokens[start:stop]))


def test_a_learned_size_forbids_only_what_is_larger_in_both_senses() -> None:
    limits = RequestSizeLimits()
    limits.record_accepted(64, 32_000)
    assert limits.is_allowed(64, 40_000)
    assert limits.is_allowed(1000, 32_000)
    assert not limits.is_allowed(65, 32_001)
    assert limits.is_allowed(1, 10**9)
    limits.record_accepted(32, 16_000)
    assert not limits.is_allowed(33, 16_001)
    assert limits.is_allowed(32, 300_000)
    limits.record_accepted(40, 20_000)
    assert not limits.is_allowed(33, 16_001)


def test_a_wait_for_the_server_ends_at_the_deadline() -> None:
    clock = FakeClock()
    clock.deadline = clock.time + 5
    failing = Failing(*[RetryableError("busy", "busy", 3600.0)] * 2)
    with pytest.raises(EncoderClosedError):
        retrier(clock).run(failing, 1, RetryLimits())
    assert clock.waits == [5.0]
    assert failing.tries == 1


def test_a_pause_that_the_server_asks_for_ends_at_the_deadline_and_a_rate_of_the_user_does_not() -> None:
    clock = FakeClock()
    clock.deadline = clock.time + 5
    pace = RateLimiter(clock, rpm=1)
    pace.acquire(1)
    pace.acquire(1)
    assert clock.time > clock.deadline
    pace.pause(100)
    clock.deadline = clock.time + 5
    with pytest.raises(EncoderClosedError):
        pace.acquire(1)


@pytest.mark.parametrize(
    ("wait", "words"),
    [(0.0, "trying again at once"), (0.2, "trying again in 0.2 s"), (31.0, "trying again in 31 s")],
)
def test_a_note_says_when_the_next_attempt_comes(wait: float, words: str) -> None:
    notes: list[str] = []

    class NoJitter(random.Random):
        def uniform(self, low: float, high: float) -> float:
            return 0.0

    failure = RetryableError("lost", "lost", wait)
    clock = FakeClock()
    Retrier(clock, RateLimiter(clock), notes.append, NoJitter()).run(Failing(failure), 1, RetryLimits())
    assert [note.startswith(f"lost; {words} (") for note in notes] == [True]


def test_a_request_that_fails_after_the_end_fails_quietly() -> None:
    notes: list[str] = []
    clock = FakeClock()

    def attempt() -> int:
        clock.close()
        raise RetryableError("Pool is closed", "lost", suspicion="failure")

    with pytest.raises(EncoderClosedError):
        retrier(clock, notes).run(attempt, 1, RetryLimits(), lambda failure, started: True)
    assert notes == []
