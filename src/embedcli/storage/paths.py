"""Paths: the file system that a path belongs to, and the files that the user's inputs name."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
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


def expand_inputs(inputs: Sequence[str]) -> tuple[str, ...]:
    """List the files that the inputs name.

    Args:
        inputs: Files, globs, folders (which stand for their data files) and `-` for stdin.

    Returns:
        The files, in the order of `inputs`. Those of a folder or glob are in natural order (part-2 before part-10),
        without names that begin with `_` or `.`. Addresses are masked: they can be shown, recorded and opened.

    Raises:
        UsageError: Something does not exist, or nothing was named.
        InputError: Something cannot be read.
    """
    found = tuple(path for given in inputs for path in _expand(mask_secrets(given)))
    if not found:
        raise UsageError("no input was named", "name a file, a folder, a glob, or - for stdin")
    if found.count("-") > 1:
        raise UsageError("stdin (-) is named twice, but can be read only once", "name it once")
    return found


def _expand(given: str) -> list[str]:
    if given == "-":
        return [given]
    files = get_file_system(given)
    with translate_input_errors(given):
        kind = files.kind(given)
        if kind == "folder":
            return _select_data_files(given, files.list_files(given))
        if kind is not None:
            return [given]
        if given and glob.has_magic(given):
            return _select_matches(given, files.find_matches(given))
    raise _missing_error(given)


def _select_data_files(folder: str, names: list[str]) -> list[str]:
    data = [name for name in names if DATA_ENDING.search(name) and not name.startswith(("_", "."))]
    if not data:
        raise UsageError(
            f"{format_location(folder)}: there are no data files in this folder",
            f"use a glob for other names and for subfolders: '{format_location(folder.rstrip('/'))}/**/*.json'; "
            "without one, only files that end in .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow or .feather are read, "
            "also with .gz, .zst, .bz2 or .xz",
        )
    return [os.path.join(folder, name) for name in sorted(data, key=natural_sort_key)]


def _select_matches(pattern: str, paths: list[str]) -> list[str]:
    hidden = () if os.path.basename(pattern).startswith("_") else ("_", ".")
    kept = [path for path in paths if not os.path.basename(path).startswith(hidden or ".")]
    if not kept:
        reason = (
            None if is_local(pattern) else get_object_store(pattern).describe_missing_bucket(pattern)
        ) or "no file matches"
        raise UsageError(
            f"{format_location(pattern)}: {reason}", "check the pattern, and quote it if the shell changes it"
        )
    return sorted(kept, key=natural_sort_key)


def natural_sort_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a sort key by which numbers in names count as numbers."""
    tokens = [token for token in re.split(r"([0-9]+)", name) if token]
    return [(0, int(token), "") if token.isdecimal() else (1, 0, token) for token in tokens], name


def _missing_error(path: str) -> UsageError:
    if not is_local(path):
        files = get_object_store(path)
        reason = files.describe_missing_bucket(path) or ("no such file or folder" if files.can_list else "no such file")
        return UsageError(f"{format_location(path)}: {reason}", "check the address")
    folder, name = os.path.split(path)
    with suppress(OSError):
        close = get_close_matches(name, os.listdir(folder or "."), n=1)
        if close:
            return UsageError(
                f"{format_location(path)}: no such file",
                f"did you mean {format_location(os.path.join(folder, close[0]))}?",
            )
    return UsageError(
        f"{format_location(path)}: no such file or folder", "check the path; it is relative to the current folder"
    )


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
