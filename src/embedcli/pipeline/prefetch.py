"""Run a step over a stream in a thread, a few items ahead: the only concurrency primitive of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")
_END = object()


class IdleSignal:
    """The type of IDLE_SIGNAL."""


IDLE_SIGNAL = IdleSignal()
# How often a waiting consumer checks for cancellation; an item is taken as soon as it arrives.
POLL_SECONDS = 0.2
# How long a cancelled run waits for a thread that may hang in a read; the thread is a daemon and ends with the process.
JOIN_TIMEOUT_SECONDS = 2.0


def prefetch(
    step: Callable[[Iterator[A]], Iterator[B]], items: Iterable[A], depth: int = 2, cancel: Event | None = None
) -> Iterator[B]:
    """Yield what `step(items)` yields, in order, computed in a thread.

    Args:
        step: A generator function over the items.
        items: Owned by the thread, which closes it: closing the last iterator of a chain ends all its threads.
        depth: How many results may wait for the consumer.
        cancel: Once it is set the iterator ends, even if the thread hangs in a read that never returns.

    Raises:
        BaseException: Any error of `step` or `items`, once, as itself.
    """
    for item in prefetch_with_idle(step, items, depth, cancel):
        if item is not IDLE_SIGNAL:
            yield item  # type: ignore[misc]


def prefetch_with_idle(
    step: Callable[[Iterator[A]], Iterator[B]], items: Iterable[A], depth: int = 2, cancel: Event | None = None
) -> Iterator[B | IdleSignal]:
    """Like `prefetch`, and yield IDLE_SIGNAL whenever nothing has come for POLL_SECONDS."""
    worker = _PrefetchThread(step, iter(items), depth)
    worker.thread.start()
    try:
        yield from worker.receive(cancel or Event())
    finally:
        worker.stop.set()
        worker.thread.join(JOIN_TIMEOUT_SECONDS if cancel is not None and cancel.is_set() else None)


class _PrefetchThread(Generic[A, B]):
    """A thread that pulls from `source` through `step` and puts (item, error) pairs on a bounded queue."""

    def __init__(self, step: Callable[[Iterator[A]], Iterator[B]], source: Iterator[A], depth: int) -> None:
        self.step = step
        self.source = source
        self.stop = Event()
        self.queue: Queue[tuple[Any, BaseException | None]] = Queue(depth)
        self.thread = Thread(target=self._run, name=getattr(step, "__name__", "step"), daemon=True)

    def receive(self, cancel: Event) -> Iterator[B | IdleSignal]:
        while True:
            try:
                item, error = self.queue.get(timeout=POLL_SECONDS)
            except Empty:
                if cancel.is_set():
                    return
                yield IDLE_SIGNAL
                continue
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            self._pump()
        except BaseException as error:  # noqa: BLE001  raised again, as itself, in the consumer's thread
            failure = error
        self._put(_END, failure)

    def _pump(self) -> None:
        try:
            results = self.step(self.source)
            try:
                for item in results:
                    if not self._put(item):
                        return
            finally:
                close_iterator(results)
        finally:
            close_iterator(self.source)

    def _put(self, item: object, error: BaseException | None = None) -> bool:
        while not self.stop.is_set():
            try:
                self.queue.put((item, error), timeout=POLL_SECONDS)
                return True
            except Full:
                continue
        return False


def close_iterator(stream: object) -> None:
    """Close an iterator if it is a generator; other iterators hold nothing."""
    if isinstance(stream, Generator):
        stream.close()
