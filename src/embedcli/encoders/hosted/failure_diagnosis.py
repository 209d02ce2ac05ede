"""Tell a request that fails because of its texts from a server that is down.

Servers answer 500 for one text that they cannot encode, or for a batch that is too large, and never answer others. A
server that is down fails for every text. Both look the same in one response, so they are distinguished like this:

1. A request whose texts may be the cause (`RetryableError.suspicion`) is repeated with growing delays until it has
   failed three times; a timeout counts for more, because each costs as long as the timeout.
2. Then the server is checked. It is up if it has answered another request since the failed attempt began; otherwise a
   short text is sent that it has encoded before.
3. If that fails too, the server is down, and nothing is concluded about the texts: the request is repeated until
   --patience ends, and its count of failures starts again. All requests answered 503, a refused connection and a
   Retry-After are waited for in the same way.
4. If the server is up, the request is halved. The halves are suspects: one failure is enough to halve them again, and
   they time out after a few seconds, so that one text among a thousand is found within a minute.
5. A text that fails alone is sent again with the whole timeout. It is rejected only if the server answers the short
   text directly after the last failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock

from embedcli.encoders.hosted.client import RequestRefusedError
from embedcli.encoders.hosted.retry import Clock, RetryableError

FAILURES_BEFORE_SPLIT = 3
# How many failures a request may have, by the kind of the last one: of several texts, and of one text alone.
ALLOWED_FAILURES = {"failure": (FAILURES_BEFORE_SPLIT, FAILURES_BEFORE_SPLIT), "timeout": (1, 2)}
# The same for texts of a request that has failed before.
ALLOWED_FAILURES_OF_SUSPECTS = {"failure": (1, 2), "timeout": (1, 1)}
# Suspects time out after this many seconds, or after this many times the slowest answer so far.
SUSPECT_TIMEOUT_SECONDS = 5.0
SUSPECT_TIMEOUT_FACTOR = 4.0
# For suspects, a server that has answered within this time before an attempt began counts as up.
ANSWER_VALID_SECONDS = 1.0


class ServerHealth:
    """What is known about the server as a whole, shared by all connections. Thread-safe."""

    def __init__(self, clock: Clock, timeout: float, ask: Callable[[float], object]) -> None:
        """`timeout`: seconds of a request. `ask` sends a short text once and raises if it is not encoded in time."""
        self._clock = clock
        self._timeout = timeout
        self._ask = ask
        self._lock = Lock()
        self._probe_lock = Lock()
        self._last_answer = self._last_probe = self._last_failed_probe = -math.inf
        self._slowest_answer = 0.0

    def record_answer(self, started: float) -> None:
        """Record a successful response to a request that was sent at `started` of the clock."""
        with self._lock:
            self._last_answer = self._clock.monotonic()
            self._slowest_answer = max(self._slowest_answer, self._last_answer - started)

    def suspect_timeout(self) -> float:
        """Seconds after which a request that is expected to fail is given up; at most the timeout of the job."""
        with self._lock:
            return min(self._timeout, max(SUSPECT_TIMEOUT_SECONDS, SUSPECT_TIMEOUT_FACTOR * self._slowest_answer))

    def is_up(self, since: float) -> bool:
        """Whether the server has answered since `since` of the clock, or answers a short text now."""
        with self._lock:
            if self._last_answer > since:
                return True
        return self.answers_now()

    def answers_now(self) -> bool:
        """Whether the server encodes a short text, sent now or by another connection since this was called."""
        called = self._clock.monotonic()
        with self._probe_lock:
            if max(self._last_probe, self._last_failed_probe) > called:
                return self._last_probe > called
            started = self._clock.monotonic()
            try:
                self._ask(self.suspect_timeout())
            except (RetryableError, RequestRefusedError):
                self._last_failed_probe = started
                return False
            self._last_probe = started
            return True


class RequestDiagnosis:
    """Counts the failures of one request."""

    def __init__(self, health: ServerHealth, texts: int, is_suspect: bool) -> None:
        """`texts`: how many texts it has. `is_suspect`: whether they are part of a request that failed."""
        self._health = health
        self._is_alone = texts == 1
        self._answer_valid_seconds = ANSWER_VALID_SECONDS if is_suspect else 0.0
        self._allowed = ALLOWED_FAILURES_OF_SUSPECTS if is_suspect else ALLOWED_FAILURES
        self._failures = 0

    def blames_texts(self, failure: RetryableError, started: float) -> bool:
        """Decide whether the texts are the cause of a failure.

        Args:
            failure: The failure of the latest attempt.
            started: When that attempt began, by the clock.

        Returns:
            True if the request should be halved, or its only text rejected; False to repeat it.
        """
        if failure.suspicion == "none":
            return False
        self._failures += 1
        if self._failures < self._allowed[failure.suspicion][self._is_alone]:
            return False
        since = started - self._answer_valid_seconds
        is_up = self._health.answers_now() if self._is_alone else self._health.is_up(since)
        if not is_up:
            self._failures = 0
        return is_up
