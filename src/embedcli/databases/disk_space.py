"""The space on the disk of a database in files: checked before each batch, and named where something fails for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from embedcli import storage
from embedcli.core.errors import OutputError

if TYPE_CHECKING:
    from embedcli.databases.target import DatabaseTarget

# 8 MB of rows took 8 MB (LanceDB) to 22 MB (Qdrant Edge, which has more to spare) on disk.
BYTES_PER_BYTE = 2
MEGABYTE = 1 << 20


class DiskFullError(OutputError):
    """There is too little space on the disk of the database."""


def require_disk_space(target: DatabaseTarget, row_bytes: int = 0) -> None:
    """Raise DiskFullError unless the disk of the database has space for some rows; nothing happens for servers.

    Some databases do not survive a full disk: an access to a mapped file ends the process, or they try again for
    minutes.

    Args:
        target: The database.
        row_bytes: Size of the rows in memory.
    """
    path = target.address.path
    if path is None:
        return
    free, needed = count_free_bytes(path), target.spare_disk_bytes + BYTES_PER_BYTE * row_bytes
    if free < needed:
        raise DiskFullError(
            f"{storage.format_location(path)}: {free / MEGABYTE:,.1f} MB are left on its disk, and the next rows may "
            f"need {needed / MEGABYTE:,.1f} MB",
            "free some space, and run the same command again: only rows that are missing are sent",
        )


@contextmanager
def explain_full_disk(target: DatabaseTarget) -> Iterator[None]:
    """Say in an error of the database how little space is left on its disk, if there is little."""
    try:
        yield
    except DiskFullError:
        raise
    except OutputError as error:
        path = target.address.path
        free = target.spare_disk_bytes if path is None else count_free_bytes(path)
        if free >= target.spare_disk_bytes:
            raise
        raise DiskFullError(
            f"{error.message}; {free / MEGABYTE:,.1f} MB are left on the disk",
            "free some space, and run the same command again: only rows that are missing are sent",
        ) from error


def count_free_bytes(path: str) -> int:
    """Count the free bytes of the disk of a file or folder, which may not exist yet."""
    folder = os.path.abspath(path)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    return shutil.disk_usage(folder).free
