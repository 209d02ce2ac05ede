"""What a job keeps beside its output, on any file system: names, small files read whole, removal, and a lock."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from embedcli.core.errors import OutputError
from embedcli.storage.atomic_replace import translate_output_errors
from embedcli.storage.local import Taken
from embedcli.storage.paths import format_location, get_file_system, is_local, translate_input_errors


def join(folder: str, name: str) -> str:
    """A path in a folder, which may be an address."""
    return folder.rstrip("/") + "/" + name if folder.strip("/") else folder + name


def basename(path: str) -> str:
    """The last name of a path."""
    return path.rstrip("/").rpartition("/")[2]


def parent_folder(path: str) -> str:
    """The folder of a path; `.` for a bare name."""
    head, slash, _ = path.rstrip("/").rpartition("/")
    return head or (slash or ".")


def is_folder(path: str) -> bool:
    with translate_output_errors(path):
        return get_file_system(path).kind(path) == "folder"


def exists(path: str) -> bool:
    with translate_output_errors(path):
        return get_file_system(path).kind(path) is not None


def list_files(folder: str, pattern: str = "") -> list[str]:
    """The sorted names of the files in a folder that match a regular expression from their beginning; [] without it."""
    files = get_file_system(folder)
    with translate_output_errors(folder):
        found = files.names(folder) if files.kind(folder) == "folder" else []
    return sorted(name for name in found if re.match(pattern, name, re.DOTALL))


def list_folders(folder: str, pattern: str) -> list[str]:
    """The sorted names of the folders in a folder of this machine that match a regular expression; [] elsewhere."""
    if not is_local(folder) or not os.path.isdir(folder):
        return []
    with translate_output_errors(folder), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and re.match(pattern, entry.name, re.DOTALL))


def read_bytes(path: str) -> bytes:
    """A small file, whole. Raises OSError if it cannot be read."""
    with get_file_system(path).open_seekable(path) as source:
        return bytes(source.read())


def local_copy(path: str) -> str:
    """The path of a file's content on this machine: its own, or that of a copy made once per process."""
    with translate_input_errors(path):
        return get_file_system(path).nearby(path)


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    with translate_output_errors(path):
        get_file_system(path).remove(path)


def make_folder(path: str) -> None:
    """Make a folder and those it lies in; nothing to do where names with slashes need none."""
    with translate_output_errors(path):
        get_file_system(path).make_folder(path)


def remove_folder(path: str) -> None:
    with translate_output_errors(path):
        get_file_system(path).remove_folder(path)


def acquire_lock(path: str, output: str, *, shared: bool = False) -> Callable[[], None]:
    """Take a lock; returns what gives it back. OutputError if another process is writing `output`.

    Those that take it `shared` hold it together, and keep off whoever wants it alone.
    """
    with translate_output_errors(path):
        files = get_file_system(path)
        try:
            return files.lock_shared(path) if shared else files.lock(path)
        except Taken:
            hint = "wait for it, or choose another output"
            if not is_local(path):
                hint = "wait for it (a dead one keeps its lease for a minute), or choose another output"
            raise OutputError(f"another embedcli is writing {format_location(output)}", hint) from None
