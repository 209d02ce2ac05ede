"""Signals that ask the process to stop: what they do depends on how far the process has come."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130
INTERRUPTED_MESSAGE = "interrupted"
INTERRUPTED_HINT = "run the same command again to continue"
# Signals that come this soon after one that raised belong to it: a second exception would break the cleanup.
SAME_REQUEST_SECONDS = 1.0


class InterruptedBySignal(BaseException):
    """A signal before any row was encoded, or a second signal: stop at once."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.exit_code = exit_code_of_stop(name)


def exit_code_of_stop(reason: str) -> int:
    """Return the exit code of a process that was stopped by a signal of this name, or by anything else."""
    return EXIT_INTERRUPTED if reason == "SIGINT" else EXIT_STOPPED


def set_stop_handler(handle: Callable[[str], None]) -> None:
    """Call `handle` with the name of each signal that asks the process to stop.

    A hang-up that the caller ignores, as `nohup` does, stays ignored.
    """

    def call(number: int, frame: object) -> None:
        handle(signal.Signals(number).name)

    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, call)


class RaiseInterrupted:
    """Raises InterruptedBySignal for a signal, and ignores those that follow within SAME_REQUEST_SECONDS."""

    def __init__(self) -> None:
        self._raised_at = -SAME_REQUEST_SECONDS

    def __call__(self, name: str) -> None:
        now = time.monotonic()
        if now - self._raised_at < SAME_REQUEST_SECONDS:
            return
        self._raised_at = now
        raise InterruptedBySignal(name)


def ignore(name: str) -> None:
    """Do nothing: the process is about to end by itself."""


def exit_at_once(name: str) -> NoReturn:
    """End the process with a message: for the time before there is anything to keep."""
    with suppress(OSError):
        os.write(2, f"error: {INTERRUPTED_MESSAGE}\nhint: {INTERRUPTED_HINT}\n".encode())
    os._exit(exit_code_of_stop(name))
