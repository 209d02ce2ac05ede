"""Locks of databases in files: only one load at a time, and an error that says who keeps another program away."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from embedcli import storage
from embedcli.core.errors import OutputLocked
from embedcli.databases.target import SWAP_SUFFIX
from embedcli.storage.local import LockHeld, lock_descriptor

LOCK_ENDING = "-embedcli-lock"
AGAIN_HINT = "run the same command again when it has finished"
MAX_PROCESS_DIGITS = 20


def lock_table(stem: str, table: str, place: str) -> Callable[[], None]:
    """Acquire the lock of a table and of the one that --swap fills for it.

    Args:
        stem: What the path of the lock file begins with, behind which comes the name of the table.
        table: The table.
        place: The database, for the message.

    Returns:
        The function that releases the lock and removes its file. A process that dies releases it too.

    Raises:
        OutputLocked: Another load into the table is running.
    """
    name = table.removesuffix(SWAP_SUFFIX).lower()
    path = f"{stem}{name}"
    try:
        return _acquire(path)
    except OutputLocked:
        hint = f"run the same command again when it has finished, or use another --table{_describe_lease(path)}"
        raise OutputLocked(
            f"{place}: another load into the table {name} is running{_describe_process(path)}", hint
        ) from None


def lock_database(path: str, place: str) -> Callable[[], None]:
    """Acquire the lock of a whole database, as `lock_table` does: its engine lets one program at a time write.

    Args:
        path: The lock file.
        place: The database, for the message.
    """
    try:
        return _acquire(path)
    except OutputLocked:
        raise OutputLocked(f"{place}: another load is running{_describe_process(path)}", AGAIN_HINT) from None


def _acquire(path: str) -> Callable[[], None]:
    unlock = storage.acquire_lock(path, path)
    if storage.is_local(path):
        with open(path, "w", encoding="ascii") as file:
            file.write(str(os.getpid()))

    def release() -> None:
        if storage.is_local(path):
            with suppress(OSError):
                os.remove(path)
        unlock()

    return release


def _describe_lease(path: str) -> str:
    return "" if storage.is_local(path) else storage.LEASE_NOTE


def _describe_process(path: str) -> str:
    """Return the process that holds a lock file, as ` (process 4711)`; empty if the file does not tell."""
    if not storage.is_local(path):
        return ""
    with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        return f" (process {int(file.read(MAX_PROCESS_DIGITS))})"
    return ""


def in_use_error(place: str, path: str | None) -> OutputLocked:
    """Return the error for a database that its engine cannot open because another program has.

    Args:
        place: The database, for the message.
        path: The lock file that a load holds; None if this process holds it.
    """
    if path is not None and is_locked(path):
        return OutputLocked(f"{place}: a load is running{_describe_process(path)}", AGAIN_HINT)
    return OutputLocked(
        f"{place}: another program has opened it, and only one at a time can",
        "run the same command again when that program has closed it",
    )


def is_locked(path: str) -> bool:
    """Whether another program holds a file or folder with `flock`."""
    if not os.path.exists(path):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        lock_descriptor(descriptor)
    except LockHeld:
        return True
    finally:
        os.close(descriptor)
    return False


def has_record_lock(path: str, *, is_reader: bool) -> bool:
    """Whether another process has locked a file with `fcntl`, as DuckDB does, so that this one cannot use it.

    Args:
        path: The file, which this process has not opened: it would lose its own locks.
        is_reader: Whether it is to be read only, which other readers do not prevent.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows, where the file itself could not be opened
        return False
    with open(path, "rb" if is_reader else "rb+") as file:
        try:
            fcntl.lockf(file, (fcntl.LOCK_SH if is_reader else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
