"""Requests in threads, and how many of them may wait for a server at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from heapq import heappop, heappush
from itertools import count
from queue import SimpleQueue
from threading import Event, Lock, Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")

FIRST_CONCURRENCY = 8
MAX_CONCURRENCY = 64
# Twice the requests must bring this many times the throughput, otherwise the server is at its limit already.
MIN_GAIN = 1.15
# Unless they take less than this many times as long: then it is this machine that sends no more.
MIN_SLOWDOWN = 1.5
# The share of the limit that is left after a 429 or 5xx, and how long a limit that was found is kept.
BUSY_FACTOR = 0.75
SETTLED_SECONDS = 30.0


class AdaptiveConcurrency:
    """How many requests may be in flight. Each waits for room and for its turn. Thread-safe.

    Without a number from the user it starts at 8 and doubles, to at most 64, until that brings no more throughput and
    requests take longer; then it goes back by one step. After a 429 or 5xx it goes down by a quarter, at most once for
    the requests that were in flight together, and then up by one for each round of successful requests (additive
    increase, multiplicative decrease). A limit that was found this way is kept for 30 seconds; then doubling is tried
    again.

    Args:
        chosen: The user's number, which is never exceeded; None for an adaptive one.
        clock: Returns seconds.
    """

    def __init__(self, chosen: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = chosen or FIRST_CONCURRENCY
        self._most = chosen or MAX_CONCURRENCY
        self._clock = clock
        self._is_doubling = chosen is None
        self._lock = Lock()
        self._turns = count()
        self._expected: dict[int, None] = {}  # turns of which no request has come yet, ascending
        self._waiting: list[tuple[int, int, Event]] = []  # a heap: turn, order of arrival, what ends the wait
        self._arrivals = count()
        self._in_flight = 0
        self._was_full = False
        self._rate = 0.0
        self._earlier_limit = self._ceiling = self.limit
        self._ignored_left = 0
        self._settled_until = 0.0
        self._round_requests = self._round_tokens = 0
        self._round_seconds = self._latency = 0.0
        self._round_start = clock()

    @property
    def max_in_flight(self) -> int:
        """How many batches should be started: more than may be in flight, so that a free place is taken at once."""
        return 2 * self.limit

    def take_turn(self) -> Turn:
        """Return the next turn: its requests start before those of later turns, whichever thread runs first."""
        with self._lock:
            number = next(self._turns)
            self._expected[number] = None
        return Turn(self, number)

    def enter(self, turn: int) -> None:
        """Wait until a request of a turn may start."""
        start = Event()
        with self._lock:
            self._expected.pop(turn, None)
            heappush(self._waiting, (turn, next(self._arrivals), start))
            self._start_waiting()
        start.wait()

    def leave(self) -> None:
        """Free the place of a request that has ended."""
        with self._lock:
            self._in_flight -= 1
            self._start_waiting()

    def end_turn(self, turn: int) -> None:
        """Wait no longer for the first request of a turn; later ones start without it."""
        with self._lock:
            self._expected.pop(turn, None)
            self._start_waiting()

    def _start_waiting(self) -> None:
        """Start the requests that there is room for, unless one of an earlier turn is still to come."""
        while self._waiting and self._in_flight < self.limit:
            if self._waiting[0][0] > next(iter(self._expected), self._waiting[0][0]):
                return
            heappop(self._waiting)[-1].set()
            self._in_flight += 1
            self._was_full |= self._in_flight >= self.limit

    def record_success(self, tokens: int, seconds: float) -> None:
        """Count a successful request that took some seconds; after a round of them the limit may rise."""
        with self._lock:
            if self._is_of_earlier_limit():
                return
            self._round_requests += 1
            self._round_tokens += tokens
            self._round_seconds += seconds
            if self._round_requests >= 2 * self.limit:
                self._end_round()

    def record_busy(self) -> None:
        """Lower the limit after a 429 or 5xx."""
        with self._lock:
            if self._is_of_earlier_limit():
                return
            self._hold()
            self._ceiling = self.limit
            self._change_limit(max(1, int(self.limit * BUSY_FACTOR)))

    def _is_of_earlier_limit(self) -> bool:
        """Whether a request was under way when the limit changed: it says nothing about the new one."""
        if self._ignored_left == 0:
            return False
        self._ignored_left -= 1
        if self._ignored_left == 0:
            self._begin_round()
        return True

    def _end_round(self) -> None:
        rate = self._round_tokens / max(self._clock() - self._round_start, 1e-9)
        latency = self._round_seconds / self._round_requests
        was_full = self._was_full
        self._begin_round()
        if not was_full:
            return
        is_slower = latency >= self._latency * MIN_SLOWDOWN
        if self._is_doubling and self._rate and rate < self._rate * MIN_GAIN and is_slower:
            self._hold()
            self._ceiling = self._earlier_limit
            self._change_limit(self._earlier_limit)
            return
        self._rate = 0.0  # only the first full round is compared
        if self.limit < self._most and (self._is_doubling or self._clock() >= self._settled_until):
            self._is_doubling = True
            self._rate, self._latency, self._earlier_limit = rate, latency, self.limit
            self._change_limit(min(self._most, 2 * self.limit))
        elif self.limit < self._ceiling:
            self._change_limit(self.limit + 1)

    def _hold(self) -> None:
        """Stop doubling for a while."""
        self._is_doubling = False
        self._rate = 0.0
        self._settled_until = self._clock() + SETTLED_SECONDS

    def _change_limit(self, limit: int) -> None:
        # New connections are opened first: they say nothing about the rate either.
        self._ignored_left = max(self._in_flight, limit)
        self.limit = limit
        self._begin_round()
        self._start_waiting()

    def _begin_round(self) -> None:
        self._round_start = self._clock()
        self._round_requests = self._round_tokens = 0
        self._round_seconds = 0.0
        self._was_full = self._in_flight >= self.limit


class Turn(AbstractContextManager[None]):
    """The turn of a batch: entering it waits until a request of the batch may start. Thread-safe.

    A batch may have several requests, one after the other or side by side; those of earlier batches go first.
    """

    def __init__(self, concurrency: AdaptiveConcurrency, number: int) -> None:
        self._concurrency = concurrency
        self._number = number

    def __enter__(self) -> None:
        self._concurrency.enter(self._number)

    def __exit__(self, *error: object) -> None:
        self._concurrency.leave()

    def run(self, work: Callable[[], T]) -> T:
        """Run `work`, which sends the requests of the batch; later turns do not wait for it if it sends none."""
        try:
            return work()
        finally:
            self._concurrency.end_turn(self._number)


class RequestThreads:
    """Daemon threads that run one request after the other: a stopped run does not wait for the server. Thread-safe."""

    def __init__(self, max_spare: int = MAX_CONCURRENCY) -> None:
        """`max_spare`: how many threads `run_if_spare` may have at once."""
        self._spare = Semaphore(max_spare)
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = Lock()
        self._count = self._idle = 0

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` at once, in a thread that has nothing to do or in a new one.

        Returns:
            The result or the error of `work`.
        """
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised where the result is collected
                future.set_exception(error)

        with self._lock:
            is_new = self._idle == 0
            self._idle -= not is_new
            self._count += is_new
        self._waiting.put(run)
        if is_new:
            Thread(target=self._serve, name="request", daemon=True).start()
        return future

    def run_if_spare(self, work: Callable[[], T]) -> Future[T] | None:
        """Run `work` like `run` if a thread may be spared for it; None if not."""
        if not self._spare.acquire(blocking=False):
            return None

        def run() -> T:
            try:
                return work()
            finally:
                self._spare.release()

        return self.run(run)

    def close(self) -> None:
        """End each thread once its work is done."""
        for _ in range(self._count):
            self._waiting.put(None)

    def _serve(self) -> None:
        while (run := self._waiting.get()) is not None:
            run()
            with self._lock:
                self._idle += 1
