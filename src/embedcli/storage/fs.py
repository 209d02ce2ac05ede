"""Operations on any file system by path: names, listing, small files, removal, and locks."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from contextlib import suppress

from embedcli.core.errors import OutputError, OutputLocked
from embedcli.storage.atomic_replace import translate_output_errors
from embedcli.storage.local import LockHeld
from embedcli.storage.paths import format_location, get_file_system, get_object_store, is_local, translate_input_errors

# Added to what to do about a lock in an object store.
LEASE_NOTE = "; the lock of a process that died on another machine expires after a minute"


def join(folder: str, name: str) -> str:
    """Return the path of a file in a folder; both may be addresses."""
    return folder.rstrip("/") + "/" + name if folder.strip("/") else folder + name


def basename(path: str) -> str:
    """Return the last name of a path."""
    return path.rstrip("/").rpartition("/")[2]


def parent_folder(path: str) -> str:
    """Return the folder of a path; `.` for a bare name."""
    head, slash, _ = path.rstrip("/").rpartition("/")
    return head or (slash or ".")


def is_folder(path: str) -> bool:
    with translate_output_errors(path):
        return get_file_system(path).kind(path) == "folder"


def check_file_can_be_made(path: str) -> None:
    """Raise OutputError if a file on this machine has no folder, or one that cannot be written to."""
    is_device = os.path.exists(path) and not os.path.isfile(path)
    if not is_local(path) or is_device:
        return
    folder = os.path.dirname(path)
    if folder and not is_folder(folder):
        raise OutputError(f"{path}: there is no folder {folder}", f"make it: mkdir -p {shlex.quote(folder)}")
    if not os.access(folder or ".", os.W_OK):
        raise OutputError(f"{path}: no permission to write to the folder {folder or '.'}", "choose another folder")


def exists(path: str) -> bool:
    with translate_output_errors(path):
        return get_file_system(path).kind(path) is not None


def list_files(folder: str, pattern: str = "") -> list[str]:
    """List the files in a folder.

    Args:
        folder: A local path or an address.
        pattern: A regular expression that names must match from their beginning.

    Returns:
        The sorted names; empty if there is no such folder.
    """
    files = get_file_system(folder)
    with translate_output_errors(folder):
        found = files.list_files(folder) if files.kind(folder) == "folder" else []
    return sorted(name for name in found if re.match(pattern, name, re.DOTALL))


def list_folders(folder: str, pattern: str) -> list[str]:
    """List the folders in a local folder.

    Returns:
        The sorted names that match the regular expression `pattern` from their beginning; empty for an address and if
        there is no such folder.
    """
    if not is_local(folder) or not os.path.isdir(folder):
        return []
    with translate_output_errors(folder), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and re.match(pattern, entry.name, re.DOTALL))


def read_bytes(path: str) -> bytes:
    """Read a small file completely. Raises OSError, or ObjectStoreError for an address, if it cannot be read."""
    with get_file_system(path).open_seekable(path) as source:
        return bytes(source.read())


def local_copy(path: str) -> str:
    """Return a local path with a file's content: its own path, or that of a copy made once per process."""
    with translate_input_errors(path):
        return get_file_system(path).local_copy(path)


def remove(path: str) -> None:
    """Remove a file if it exists."""
    with translate_output_errors(path):
        get_file_system(path).remove(path)


def move_file(path: str, new_path: str) -> None:
    """Give a file another path in the same file system, where it replaces another file."""
    with translate_output_errors(new_path):
        get_file_system(new_path).move(path, new_path)


def make_folder(path: str) -> None:
    """Create a folder and its parents; object stores need none."""
    with translate_output_errors(path):
        get_file_system(path).make_folder(path)


def remove_folder(address: str) -> None:
    """Remove everything in a folder of an object store."""
    with translate_output_errors(address):
        get_object_store(address).remove_folder(address)


def remove_empty_folder(path: str) -> None:
    """Remove a local folder unless something is in it; object stores have no empty folders."""
    if is_local(path):
        with suppress(OSError):
            os.rmdir(path)


def acquire_lock(path: str, output: str, *, shared: bool = False) -> Callable[[], None]:
    """Acquire the lock of an output.

    Args:
        path: The lock file.
        output: The output that it guards, for the message.
        shared: Hold the lock together with other processes that share it; nobody can then acquire it alone.

    Returns:
        The function that releases the lock.

    Raises:
        OutputLocked: Another process is writing `output`.
    """
    with translate_output_errors(path):
        files = get_file_system(path)
        try:
            return files.acquire_shared_lock(path) if shared else files.acquire_lock(path)
        except LockHeld:
            hint = "wait until it has finished, or choose another output"
            if not is_local(path):
                hint += LEASE_NOTE
            raise OutputLocked(f"another embedcli is writing {format_location(output)}", hint) from None
