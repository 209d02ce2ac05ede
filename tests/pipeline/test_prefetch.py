"""Laws of prefetching: order is kept, look-ahead is bounded, errors arrive as themselves, no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from embedcli.pipeline import prefetch as prefetch_module
from embedcli.pipeline.prefetch import IDLE_SIGNAL, prefetch, prefetch_with_idle


def double(items: Iterator[int]) -> Iterator[int]:
    for item in items:
        yield item * 2


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name in ("double", "fail", "count")}


def test_order_is_kept_through_a_chain() -> None:
    chain = prefetch(double, prefetch(double, iter(range(500))))
    assert list(chain) == [item * 4 for item in range(500)]
    assert not threads()


def test_look_ahead_is_bounded() -> None:
    made: list[int] = []

    def count(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            made.append(item)
            yield item

    taken = prefetch(count, iter(range(100)), depth=2)
    for expected in range(20):
        assert next(taken) == expected
        # At most 2 in the queue, one more in the thread, one on its way to the consumer.
        assert len(made) <= expected + 1 + 2 + 2
    taken.close()  # type: ignore[attr-defined]
    assert not threads()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_of_any_stage_arrives_once_as_itself(failing: int) -> None:
    error = ZeroDivisionError("stage")

    def fail(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            if item >= 3:
                raise error
            yield item

    stream: Iterator[int] = iter(range(10))
    for stage in range(3):
        stream = prefetch(fail if stage == failing else double, stream)
    with pytest.raises(ZeroDivisionError) as caught:
        list(stream)
    assert caught.value is error
    assert list(stream) == []
    assert not threads()


def test_an_error_while_closing_is_not_lost() -> None:
    def source() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise OSError("close failed")

    with pytest.raises(OSError, match="close failed"):
        list(prefetch(double, source()))


def test_closing_the_last_iterator_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    chain = prefetch(double, prefetch(double, source()))
    assert next(chain) == 4
    chain.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert not threads()


def test_a_waiting_consumer_gets_an_idle_signal() -> None:
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        go_on.wait()
        yield 2

    stream = prefetch_with_idle(double, source())
    assert next(stream) == 2
    assert next(stream) is IDLE_SIGNAL
    go_on.set()
    assert [item for item in stream if item is not IDLE_SIGNAL] == [4]


def test_cancel_ends_a_wait_for_a_source_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch_module, "JOIN_TIMEOUT_SECONDS", 0.01)
    hang, cancel = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 1
        hang.wait()

    stream = prefetch(double, source(), cancel=cancel)
    assert next(stream) == 2
    cancel.set()
    assert list(stream) == []
    hang.set()
