"""Requests in threads, and how many of them may wait for a server at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")


def run_in_thread(free: Semaphore, work: Callable[[], T]) -> Future[T]:
    """Run `work` in a daemon thread when a connection is free; a stopped run does not wait for the server."""
    future: Future[T] = Future()

    def run() -> None:
        with free:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised where the result is collected
                future.set_exception(error)

    Thread(target=run, name="request", daemon=True).start()
    return future
