"""Rate limits and retries: delays, jitter, Retry-After and time limits, independent of the HTTP library."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from itertools import count
from threading import Event, Lock
from typing import Literal, TypeVar

from embedcli.core.errors import ModelError

T = TypeVar("T")
FailureKind = Literal["busy", "lost", "unresolved", "wrong"]
Suspicion = Literal["none", "failure", "timeout"]
BlamesTexts = Callable[["RetryableError", float], bool]

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 60.0
# A server that fails for one text answers others: the first retries that are to show it come soon.
SOON_RETRIES = 2
SOON_RETRY_SECONDS = 0.2
# Short waits are not reported, and long ones at most once a minute.
UNREPORTED_WAIT_SECONDS = 5.0
NOTICE_INTERVAL_SECONDS = 60.0
# At the start a mistyped address should fail soon; a server that answers "busy" is waited for as usual. An unknown
# name gets a few tries: the network of a container may come up after the process.
UNREACHABLE_AT_START_SECONDS = 60.0
UNRESOLVED_AT_START_SECONDS = 10.0


class EncoderClosedError(Exception):
    """The encoder was closed while a request was waiting."""


class RetryableError(Exception):
    """An attempt that failed and may succeed later.

    Attributes:
        failure_kind: "busy" (429, 5xx), "lost" (timeout, dropped connection, truncated body), "unresolved" (the name of
            the server is not known), or "wrong" (complete, but not a response to the request).
        retry_after_seconds: The wait that the server asked for, if any.
        reason: What failed, without secrets.
        suspicion: Whether the texts may be the cause: "failure" (5xx without a Retry-After, a dropped connection, an
            error in the body), "timeout" (no answer in time), or "none" (the server asks to wait, or is not there).
        hint: What to do if it goes on; "" for a hint by its kind.
    """

    def __init__(
        self,
        reason: str,
        kind: FailureKind,
        after: float | None = None,
        *,
        suspicion: Suspicion = "none",
        hint: str = "",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.failure_kind = kind
        self.retry_after_seconds = after
        self.suspicion = suspicion
        self.hint = hint


class FailingTextsError(Exception):
    """A request fails because of its texts, and not of the server. The message says how, without secrets."""


class Clock:
    """The clock and all waiting, so that tests can replace them.

    Args:
        stop: An event that ends all waits.
        deadline: When waits for the server end, in seconds of `monotonic`; None for no limit.
    """

    def __init__(self, stop: Event | None = None, deadline: float | None = None) -> None:
        self.deadline = math.inf if deadline is None else deadline
        self._closed = Event()
        self._stop = stop or self._closed

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    def unix_time(self) -> float:
        """Seconds since 1970, for dates in headers only."""
        return time.time()

    def wait(self, seconds: float) -> None:
        """Wait for `seconds`; raises EncoderClosedError soon after `close` or the stop event."""
        until = time.monotonic() + seconds
        while not (self._stop.is_set() or self._closed.is_set()):
            left = until - time.monotonic()
            if left <= 0:
                return
            # threading cannot wait for two events at once: the second one is polled four times a second.
            self._stop.wait(min(left, 0.25))
        raise EncoderClosedError

    def wait_for_server(self, seconds: float) -> None:
        """Wait before a retry: like `wait`, but raises EncoderClosedError at the deadline."""
        left = max(0.0, self.deadline - self.monotonic())
        self.wait(min(seconds, left))
        if seconds >= left:
            raise EncoderClosedError

    def is_ended(self) -> bool:
        """Whether all waits have ended, so that nothing is retried."""
        return self._stop.is_set() or self._closed.is_set()

    def close(self) -> None:
        """End all waits, now and in future."""
        self._closed.set()


class RateLimiter:
    """Token buckets for requests and for tokens, shared by all connections.

    In any 60 seconds at most `rpm` requests start, and at most `tpm` tokens plus those of one request.
    """

    def __init__(self, clock: Clock, rpm: int | None = None, tpm: int | None = None) -> None:
        self._clock = clock
        self._request_gap = 60.0 / rpm if rpm else 0.0
        self._token_gap = 60.0 / tpm if tpm else 0.0
        self._next_request = self._next_token = self._held = -math.inf
        self._lock = Lock()

    def acquire(self, tokens: int) -> None:
        """Wait until a request of `tokens` tokens may start."""
        while (needed := self._reserve(tokens)) is not None:
            seconds, is_paused = needed
            (self._clock.wait_for_server if is_paused else self._clock.wait)(seconds)

    def _reserve(self, tokens: int) -> tuple[float, bool] | None:
        """Reserve a request. If none may start yet: for how many seconds, and whether the server asked for that."""
        with self._lock:
            now = self._clock.monotonic()
            start = max(self._next_request, self._next_token, self._held)
            if start > now:
                return start - now, start == self._held
            self._next_request = now + self._request_gap
            self._next_token = now + tokens * self._token_gap
            return None

    def charge_difference(self, tokens: int) -> None:
        """Charge the difference between actual and estimated tokens; negative to give tokens back."""
        with self._lock:
            self._next_token += tokens * self._token_gap

    def pause(self, seconds: float) -> None:
        """Start no request for `seconds`."""
        with self._lock:
            self._held = max(self._held, self._clock.monotonic() + seconds)


@dataclass(frozen=True)
class RetryLimits:
    """How long one request may keep failing.

    `total_seconds` counts from the first failure; `unreachable_seconds`, if given, applies while nothing responds, and
    `unresolved_seconds` while the name of the server is not known. A Retry-After of the server is honoured up to
    `retry_cap`.
    """

    total_seconds: float = 8 * 3600
    retry_cap: float = 3600
    max_wrong_responses: int = 5
    unreachable_seconds: float | None = None
    unresolved_seconds: float | None = None

    def at_start(self) -> RetryLimits:
        """Return the limits for the first request, when the address may be mistyped."""
        return replace(
            self,
            unreachable_seconds=UNREACHABLE_AT_START_SECONDS,
            unresolved_seconds=UNRESOLVED_AT_START_SECONDS,
        )

    def allowed_seconds(self, kind: FailureKind) -> float:
        """Time limit in seconds for a kind of failure."""
        limits = {"lost": self.unreachable_seconds, "unresolved": self.unresolved_seconds}
        limit = limits.get(kind)
        return self.total_seconds if limit is None else min(self.total_seconds, limit)


class Retrier:
    """Runs attempts until one succeeds, and counts retries and waits. Thread-safe."""

    def __init__(self, clock: Clock, pace: RateLimiter, notify: Callable[[str], None], rng: random.Random) -> None:
        self.retries = 0
        self.waited_seconds = 0.0
        self._clock = clock
        self._pace = pace
        self._notify = notify
        self._rng = rng
        self._lock = Lock()
        self._next_note = -math.inf

    def run(
        self, step: Callable[[], T], tokens: int, patience: RetryLimits, blames_texts: BlamesTexts | None = None
    ) -> T:
        """Run an attempt until it succeeds, with a delay after each RetryableError.

        Args:
            step: One attempt.
            tokens: The tokens of one attempt, for the rate limits.
            patience: How long to go on.
            blames_texts: Whether the texts are the cause of a failure, given when its attempt began.

        Returns:
            The result of `step()`.

        Raises:
            FailingTextsError: `blames_texts` says so.
            ModelError: A limit of `patience` is reached.
            EncoderClosedError: The encoder was closed, or the deadline of the clock has passed.
        """
        first_failure: float | None = None
        wrong = 0
        for attempt in count():
            self._pace.acquire(tokens)
            if self._clock.is_ended():
                raise EncoderClosedError
            started = self._clock.monotonic()
            try:
                return step()
            except RetryableError as again:
                if self._clock.is_ended():
                    # The connections were closed under this request: nobody waits for its vectors any more.
                    raise EncoderClosedError from None
                if blames_texts is not None and blames_texts(again, started):
                    self._report_failing_texts(again)
                    raise FailingTextsError(again.reason) from None
                now = self._clock.monotonic()
                first_failure = now if first_failure is None else first_failure
                wrong += again.failure_kind == "wrong"
                wait = self._wait(again, attempt, patience)
                if blames_texts is not None and again.suspicion == "failure" and attempt < SOON_RETRIES:
                    wait = min(wait, SOON_RETRY_SECONDS)
                if wrong >= patience.max_wrong_responses:
                    raise ModelError(f"{again.reason} ({wrong} times)", WRONG_RESPONSE_HINT) from None
                if now + wait - first_failure > patience.allowed_seconds(again.failure_kind):
                    raise ModelError(*_describe_exhaustion(again, now - first_failure, wait)) from None
                self._report_wait(again, wait)
            self._clock.wait_for_server(wait)
        raise AssertionError("unreachable")

    def _wait(self, again: RetryableError, attempt: int, patience: RetryLimits) -> float:
        if again.retry_after_seconds is None:
            return backoff_seconds(attempt, self._rng)
        asked = min(again.retry_after_seconds, patience.retry_cap)
        self._pace.pause(asked)
        return asked + self._rng.uniform(0, min(1.0, asked))

    def _report_failing_texts(self, again: RetryableError) -> None:
        with self._lock:
            self.retries += 1
            now = self._clock.monotonic()
            if now < self._next_note or again.failure_kind == "busy":
                return
            self._next_note = now + NOTICE_INTERVAL_SECONDS
        self._notify(f"{again.reason}; looking for the text that causes it")

    def _report_wait(self, again: RetryableError, wait: float) -> None:
        with self._lock:
            self.retries += 1
            self.waited_seconds += wait
            now = self._clock.monotonic()
            if now < self._next_note or (wait < UNREPORTED_WAIT_SECONDS and again.failure_kind == "busy"):
                return
            self._next_note = now + NOTICE_INTERVAL_SECONDS
            retries = self.retries
        self._notify(f"{again.reason}; trying again {_format_wait(wait)} (retry {retries} of this run)")


WRONG_RESPONSE_HINT = "check --base-url and --model"
EXHAUSTION_HINTS: dict[FailureKind, str] = {
    "busy": "run the same command again later, or give a longer --patience (seconds)",
    "lost": "check --base-url and the network",
    "unresolved": "check the name of the host in --base-url and the network",
    "wrong": WRONG_RESPONSE_HINT,
}


def _describe_exhaustion(again: RetryableError, spent: float, wait: float) -> tuple[str, str]:
    asked = f" and asks for {again.retry_after_seconds:.0f} s more" if again.retry_after_seconds is not None else ""
    return f"{again.reason}; given up after {spent:.0f} s{asked}", again.hint or EXHAUSTION_HINTS[again.failure_kind]


def _format_wait(seconds: float) -> str:
    """Return "at once", "in 0.2 s" or "in 15 s"."""
    if seconds < 0.05:
        return "at once"
    return f"in {seconds:.1f} s" if seconds < 1 else f"in {seconds:.0f} s"


def backoff_seconds(attempt: int, rng: random.Random) -> float:
    """Delay before a retry: uniform between 0 and 0.5 s doubled per attempt, at most 60 s (full jitter).

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return rng.uniform(0, min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(attempt, 20)))


def parse_retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Parse `retry-after-ms` or `Retry-After` into seconds; None if absent or invalid.

    `Retry-After` is a number of seconds or an HTTP date (RFC 9110, 10.2.3); a past date means 0.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with suppress(ValueError):
            seconds = float(headers.get(name, "")) / unit
            return max(0.0, seconds) if math.isfinite(seconds) else None
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - wall)
    return None
