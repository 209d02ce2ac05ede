"""Paths: how they are shown, and the file system that a path belongs to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from embedcli.core.errors import InputError, UsageError
from embedcli.storage.local import LocalFileSystem
from embedcli.storage.url_redaction import mask_secrets, parse_scheme

if TYPE_CHECKING:
    from embedcli.storage.object_store import RemoteFileSystem

# The files of a folder that are inputs. Not `.json`: folders keep settings in such files.
DATA_ENDING = re.compile(
    r"\.(jsonl|ndjson|csv|tsv|tab|parquet|pq|arrow|arrows|feather|ipc)(\.(gz|zst|bz2|xz))?$", re.IGNORECASE
)


def format_path(path: str) -> str:
    """Format a path for display: bytes that are not UTF-8 become escapes such as \\xff, secrets ***."""
    return os.fsencode(mask_secrets(path)).decode("utf-8", "backslashreplace")


def format_location(path: str, line: int | None = None) -> str:
    """Format a path, and a line number if given, as `file:line` for a message; always on one line."""
    name = "stdin" if path == "-" else format_path(path).replace("\n", "\\n").replace("\r", "\\r")
    return name if line is None else f"{name}:{line}"


@contextmanager
def translate_input_errors(path: str) -> Iterator[None]:
    """Translate errors of the operating system into InputError with the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{format_location(path)}: cannot be read: {reason}", "check the path and its permissions"
        ) from error


def is_local(path: str) -> bool:
    """Whether a path is local. A path of the form of an address is one, unless a file has exactly that name."""
    return parse_scheme(path) is None or os.path.lexists(path)


def get_object_store(path: str) -> RemoteFileSystem:
    """Return the file system of an address. UsageError for an unknown scheme or a missing extra."""
    from embedcli.storage.object_store import remote_file_system

    return remote_file_system(path)


def get_file_system(path: str) -> LocalFileSystem | RemoteFileSystem:
    """Return the file system that a path belongs to.

    Raises:
        UsageError: The address has an unknown scheme, or its extra is not installed.
    """
    return LocalFileSystem() if is_local(path) else get_object_store(path)


def check_writable(output: str) -> None:
    """Raise UsageError for an output that has no name, or an address that can only be read."""
    if not output:
        raise UsageError("the output has no name", "name a file, a folder/, or - for stdout")
    if not is_local(output):
        get_object_store(output).make_folder(output)


def natural_sort_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a sort key by which numbers in names count as numbers."""
    tokens = [token for token in re.split(r"([0-9]+)", name) if token]
    return [(0, int(token), "") if token.isdecimal() else (1, 0, token) for token in tokens], name


def file_identity(path: str) -> dict[str, int]:
    """Return what changes when a file does.

    Returns:
        `size` in bytes and `mtime_ns` of a local file, `size` and `version` of an object; empty for a stream and for a
        file that does not exist.
    """
    files = get_file_system(path)
    with translate_input_errors(path), suppress(FileNotFoundError):
        if path != "-" and (not is_local(path) or files.kind(path) == "file"):
            return files.identity(path)
    return {}


def file_state(path: str) -> dict[str, int]:
    """Return `file_identity` and, of a local file, the inode and the time of the last change of anything about it.

    Returns:
        The keys of `file_identity`; of a local file also `ctime_ns` and `inode`.
    """
    identity = file_identity(path)
    if not identity or not is_local(path):
        return identity
    with translate_input_errors(path):
        return LocalFileSystem().state(path)
