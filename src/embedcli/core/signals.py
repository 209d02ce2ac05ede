"""Signals that ask the process to stop: what they do depends on how far the process has come."""

from __future__ import annotations

import os
import signal
import sys
import time

# Type checkers read this as true. This module is imported before anything else, so it imports almost nothing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

# Windows has no SIGHUP.
HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([HANG_UP] if HANG_UP else []))
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130
INTERRUPTED_MESSAGE = "interrupted"
INTERRUPTED_HINT = "run the same command again; encode and load continue where they stopped"
INTERRUPTED_OVERWRITE_HINT = "run the same command without --overwrite to continue"
# Signals that come this soon after one that raised belong to it: a second exception would break the cleanup.
SAME_REQUEST_SECONDS = 1.0


class InterruptedBySignal(BaseException):
    """A signal before any row was encoded, or a second signal: stop at once."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.exit_code = exit_code_of_stop(name)
        self.hint = INTERRUPTED_HINT


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
        if number != HANG_UP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, call)


def find_interruption(error: BaseException) -> BaseException:
    """Return the InterruptedBySignal from which an error comes, else the error itself.

    Python and libraries replace an exception that is raised, for example, while a class is created.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # a library may raise an error from itself
        if isinstance(cause, InterruptedBySignal):
            return cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return error


def replace_interruption_hint(error: BaseException, hint: str) -> None:
    """If an error comes from a signal, let its hint say how to go on with what a command has done."""
    interruption = find_interruption(error)
    if isinstance(interruption, InterruptedBySignal):
        interruption.hint = hint


class StopAtOnce:
    """Raises InterruptedBySignal for a signal, and ignores those that follow within SAME_REQUEST_SECONDS.

    Python loses an exception that is raised in a finalizer or in a callback of a library. The signal is remembered,
    so that `raise_if_lost` can be called before the next long step.
    """

    def __init__(self) -> None:
        self._raised_at = -SAME_REQUEST_SECONDS
        self._received: str | None = None

    def __call__(self, name: str) -> None:
        now = time.monotonic()
        if now - self._raised_at < SAME_REQUEST_SECONDS:
            return
        self._raised_at, self._received = now, name
        raise InterruptedBySignal(name)

    def raise_if_lost(self) -> None:
        """Raise the exception of a signal again if the command goes on after it."""
        name, self._received = self._received, None
        if name is not None:
            raise InterruptedBySignal(name)


# The state of this process, in which only one command runs.
stop_at_once = StopAtOnce()


def hide_lost_interruptions() -> None:
    """Print no traceback for an InterruptedBySignal that Python has to drop."""
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if unraisable.exc_type is not InterruptedBySignal:
            show(unraisable)

    sys.unraisablehook = hook


def ignore(name: str) -> None:
    """Do nothing: the process is about to end by itself."""


def exit_at_once(name: str) -> NoReturn:
    """End the process with a message: for the time before there is anything to keep."""
    try:
        os.write(2, f"error: {INTERRUPTED_MESSAGE}\nhint: {INTERRUPTED_HINT}\n".encode())
    finally:
        os._exit(exit_code_of_stop(name))
