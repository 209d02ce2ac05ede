"""How many requests are in flight: found without the user, for servers simulated event by event."""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable, Iterable
from functools import partial

import pytest

from embedcli.encoders.hosted.concurrency import (
    FIRST_CONCURRENCY,
    MAX_CONCURRENCY,
    AdaptiveConcurrency,
    RequestThreads,
    Turn,
)


class Simulation:
    """A server with some latency and room, and a client that always has requests to send and waits after a refusal."""

    def __init__(self, chosen: int | None = None) -> None:
        self.now = 0.0
        self.served = self.most = 0
        self.concurrency = AdaptiveConcurrency(chosen, lambda: self.now)
        self._random = random.Random(0)
        self._events: list[tuple[float, float, str, float]] = []
        self._clients = self._serving = 0

    def run(self, seconds: float, room: int, latency: Callable[[int], float]) -> None:
        """Serve for some time; a request that finds `room` others is refused with 429."""
        end = self.now + seconds
        while self.now < end:
            while self._clients < self.concurrency.limit:
                self.concurrency.take_turn().__enter__()
                self._clients += 1
                self.most = max(self.most, self._clients)
                self._send(room, latency)
            self.now, _, kind, seconds = heapq.heappop(self._events)
            if kind == "refused":
                self.concurrency.record_busy()
                self._schedule(self._random.uniform(0, 0.5), "sent again")
            elif kind == "sent again":
                self._send(room, latency)
            else:
                self.served += 1
                self._serving -= 1
                self._clients -= 1
                self.concurrency.record_success(100, seconds)
                self.concurrency.leave()

    def _send(self, room: int, latency: Callable[[int], float]) -> None:
        if self._serving >= room:
            self._schedule(0.01, "refused")
            return
        self._serving += 1
        seconds = latency(self._serving)
        self._schedule(seconds, "served")

    def _schedule(self, delay: float, kind: str) -> None:
        heapq.heappush(self._events, (self.now + delay, self._random.random(), kind, delay))


def test_it_starts_low_and_fills_a_server_with_room() -> None:
    simulation = Simulation()
    assert simulation.concurrency.limit == FIRST_CONCURRENCY
    simulation.run(10, MAX_CONCURRENCY, lambda in_flight: 0.05)
    assert simulation.concurrency.limit == MAX_CONCURRENCY
    assert simulation.served >= 0.9 * 10 * MAX_CONCURRENCY / 0.05


def test_a_server_that_computes_one_request_at_a_time_is_not_flooded() -> None:
    simulation = Simulation()
    simulation.run(25, 100, lambda in_flight: 0.1 * in_flight)
    assert simulation.most <= 2 * FIRST_CONCURRENCY
    assert simulation.concurrency.limit == FIRST_CONCURRENCY


@pytest.mark.parametrize("room", [1, 3, 20, 40])
def test_refusals_lower_it_and_most_requests_are_served(room: int) -> None:
    simulation = Simulation()
    simulation.run(60, room, lambda in_flight: 0.05)
    assert simulation.concurrency.limit <= 2 * room + 1
    assert simulation.served >= 0.6 * 60 * room / 0.05


def test_it_recovers_after_a_bad_time() -> None:
    simulation = Simulation()
    simulation.run(10, 64, lambda in_flight: 0.05)
    simulation.run(20, 4, lambda in_flight: 0.05)
    assert simulation.concurrency.limit <= 8
    simulation.run(60, 64, lambda in_flight: 0.05)
    assert simulation.concurrency.limit == MAX_CONCURRENCY


def test_a_client_that_sends_no_faster_keeps_the_higher_limit() -> None:
    now = 0.0
    concurrency = AdaptiveConcurrency(None, lambda: now)
    for _ in range(10):
        # 64 requests begin together; the machine sends 500 a second whatever the limit, and each takes 50 ms.
        for _ in range(concurrency.limit):
            concurrency.take_turn().__enter__()
        for _ in range(concurrency.limit):
            now += 0.002
            concurrency.record_success(100, 0.05)
            concurrency.leave()
    assert concurrency.limit > FIRST_CONCURRENCY


def test_threads_are_kept_and_end_after_their_work() -> None:
    threads, seen, gate = RequestThreads(), set[int](), threading.Event()
    before = threading.active_count()
    for _ in range(20):
        seen.add(threads.run(threading.get_ident).result())
    waiting = [threads.run(gate.wait) for _ in range(3)]
    assert threading.active_count() <= before + 4
    gate.set()
    assert [future.result() for future in waiting] == [True] * 3
    assert len(seen) <= 3
    with pytest.raises(ZeroDivisionError):
        threads.run(lambda: 1 // 0).result()
    ours = [thread for thread in threading.enumerate() if thread.name == "request"]
    threads.close()
    for thread in ours:
        thread.join(10)
    assert not any(thread.is_alive() for thread in ours)


def test_the_users_number_is_never_exceeded() -> None:
    simulation = Simulation(chosen=12)
    simulation.run(20, 64, lambda in_flight: 0.05)
    assert simulation.most == simulation.concurrency.limit == 12
    simulation.run(5, 4, lambda in_flight: 0.05)
    assert simulation.concurrency.limit <= 6


def test_threads_wait_for_a_place() -> None:
    concurrency, lock, gate = AdaptiveConcurrency(3), threading.Lock(), threading.Event()
    at_once = most = 0

    def work() -> None:
        nonlocal at_once, most
        with concurrency.take_turn():
            with lock:
                at_once += 1
                most = max(most, at_once)
                if at_once == 3:
                    gate.set()
            gate.wait()
            with lock:
                at_once -= 1

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 3


def run_in_threads(works: Iterable[Callable[[], object]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    return threads


def wait_for_blocked(concurrency: AdaptiveConcurrency, count: int) -> None:
    """Wait until so many threads wait for their turn."""
    while len(concurrency._waiting) < count:
        threading.Event().wait(0.001)


def test_requests_start_in_the_order_of_their_turns_whichever_thread_comes_first() -> None:
    concurrency, order = AdaptiveConcurrency(1), list[int]()

    def work(number: int, turn: Turn) -> None:
        with turn:
            order.append(number)

    first, *turns = [concurrency.take_turn() for _ in range(20)]
    later = run_in_threads(partial(work, *one) for one in reversed(list(enumerate(turns, 1))))
    wait_for_blocked(concurrency, 19)
    assert not order, "the first turn has not come yet"
    work(0, first)
    for thread in later:
        thread.join()
    assert order == list(range(20))


def test_a_turn_that_ends_without_a_request_is_not_waited_for() -> None:
    concurrency, started = AdaptiveConcurrency(1), threading.Event()

    def work(turn: Turn) -> None:
        with turn:
            started.set()

    first, second = concurrency.take_turn(), concurrency.take_turn()
    (thread,) = run_in_threads([partial(work, second)])
    wait_for_blocked(concurrency, 1)
    assert not started.is_set()
    with pytest.raises(ZeroDivisionError):
        first.run(lambda: 1 // 0)
    thread.join()
    assert started.is_set()


def test_a_further_request_of_an_earlier_turn_goes_first() -> None:
    concurrency, order = AdaptiveConcurrency(1), list[str]()

    def work(name: str, turn: Turn) -> None:
        with turn:
            order.append(name)

    first, second, third = (concurrency.take_turn() for _ in range(3))
    with first:
        threads = run_in_threads([partial(work, "third", third), partial(work, "second", second)])
        wait_for_blocked(concurrency, 2)
        threads += run_in_threads([partial(work, "first again", first)])
        wait_for_blocked(concurrency, 3)
    for thread in threads:
        thread.join()
    assert order == ["first again", "second", "third"]
