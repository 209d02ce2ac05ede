"""Locks of tables in files, for databases that do not keep a second load away themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from embedcli import storage
from embedcli.core.errors import OutputLocked
from embedcli.databases.target import SWAP_SUFFIX


def lock_table(stem: str, table: str) -> Callable[[], None]:
    """Acquire the lock of a table and of the one that --swap fills for it.

    Args:
        stem: What the path of the lock file begins with, behind which comes the name of the table.
        table: The table.

    Returns:
        The function that releases the lock and removes its file. A process that dies releases it too.

    Raises:
        OutputLocked: Another load into the table is running.
    """
    name = table.removesuffix(SWAP_SUFFIX).lower()
    path = f"{stem}{name}"
    try:
        unlock = storage.acquire_lock(path, path)
    except OutputLocked:
        hint = "wait until it has finished, or use another --table"
        if not storage.is_local(path):
            hint += storage.LEASE_NOTE
        raise OutputLocked(
            f"another load into the table {name} is running: {storage.format_location(path)}", hint
        ) from None

    def release() -> None:
        if storage.is_local(path):
            with suppress(OSError):
                os.remove(path)
        unlock()

    return release
