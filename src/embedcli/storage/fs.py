"""What a job keeps beside its output, on any file system: names, small files read whole, removal, and a lock."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from embedcli.core.errors import OutputError
from embedcli.storage.atomic_replace import os_errors
from embedcli.storage.local import Taken
from embedcli.storage.paths import files_of, input_errors, is_local, where


def join(folder: str, name: str) -> str:
    """A path in a folder, which may be an address."""
    return folder.rstrip("/") + "/" + name if folder.strip("/") else folder + name


def base(path: str) -> str:
    """The last name of a path."""
    return path.rstrip("/").rpartition("/")[2]


def parent(path: str) -> str:
    """The folder of a path; `.` for a bare name."""
    head, slash, _ = path.rstrip("/").rpartition("/")
    return head or (slash or ".")


def is_folder(path: str) -> bool:
    with os_errors(path):
        return files_of(path).kind(path) == "folder"


def exists(path: str) -> bool:
    with os_errors(path):
        return files_of(path).kind(path) is not None


def names(folder: str, pattern: str = "") -> list[str]:
    """The sorted names of the files in a folder that match a regular expression from their beginning; [] without it."""
    files = files_of(folder)
    with os_errors(folder):
        found = files.names(folder) if files.kind(folder) == "folder" else []
    return sorted(name for name in found if re.match(pattern, name, re.DOTALL))


def folders(folder: str, pattern: str) -> list[str]:
    """The sorted names of the folders in a folder of this machine that match a regular expression; [] elsewhere."""
    if not is_local(folder) or not os.path.isdir(folder):
        return []
    with os_errors(folder), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and re.match(pattern, entry.name, re.DOTALL))


def read_bytes(path: str) -> bytes:
    """A small file, whole. Raises OSError if it cannot be read."""
    with files_of(path).open_seekable(path) as source:
        return bytes(source.read())


def nearby(path: str) -> str:
    """The path of a file's content on this machine: its own, or that of a copy made once per process."""
    with input_errors(path):
        return files_of(path).nearby(path)


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    with os_errors(path):
        files_of(path).remove(path)


def make_folder(path: str) -> None:
    """Make a folder and those it lies in; nothing to do where names with slashes need none."""
    with os_errors(path):
        files_of(path).make_folder(path)


def remove_folder(path: str) -> None:
    with os_errors(path):
        files_of(path).remove_folder(path)


def lock(path: str, output: str, *, shared: bool = False) -> Callable[[], None]:
    """Take a lock; returns what gives it back. OutputError if another process is writing `output`.

    Those that take it `shared` hold it together, and keep off whoever wants it alone.
    """
    with os_errors(path):
        files = files_of(path)
        try:
            return files.lock_shared(path) if shared else files.lock(path)
        except Taken:
            hint = "wait for it, or choose another output"
            if not is_local(path):
                hint = "wait for it (a dead one keeps its lease for a minute), or choose another output"
            raise OutputError(f"another embedcli is writing {where(output)}", hint) from None
