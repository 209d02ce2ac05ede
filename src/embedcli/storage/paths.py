"""Paths: which file system one belongs to, and which files the user's inputs name."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING

from embedcli.core.errors import InputError, UsageError
from embedcli.storage.local import LocalFiles
from embedcli.storage.url_redaction import mask_secrets, scheme_of

if TYPE_CHECKING:
    from embedcli.storage.object_store import RemoteFiles

# A folder is read by these endings; `.json` is left out, for folders keep their settings in such files.
DATA_ENDING = re.compile(r"\.(jsonl|ndjson|csv|tsv|tab|parquet|pq)(\.(gz|zst|bz2|xz))?$", re.IGNORECASE)


def format_path(path: str) -> str:
    """A path as text: bytes of a name that are not UTF-8 become escapes such as \\xff, secrets of an address ***."""
    return os.fsencode(mask_secrets(path)).decode("utf-8", "backslashreplace")


def format_location(path: str, line: int | None = None) -> str:
    """`file:line` for a message, on one line whatever the name is."""
    name = "stdin" if path == "-" else format_path(path).replace("\n", "\\n").replace("\r", "\\r")
    return name if line is None else f"{name}:{line}"


@contextmanager
def translate_input_errors(path: str) -> Iterator[None]:
    """Errors of the operating system become InputError with the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{format_location(path)}: cannot be read: {reason}", "check the path and its permissions"
        ) from error


def is_local(path: str) -> bool:
    """Whether a path is this machine's; what has the form of an address is one unless a file has that very name."""
    return scheme_of(path) is None or os.path.lexists(path)


def get_object_store(path: str) -> RemoteFiles:
    """The files of an address. UsageError for one whose scheme is not known, or whose extra is not installed."""
    from embedcli.storage.object_store import files_at

    return files_at(path)


def get_file_system(path: str) -> LocalFiles | RemoteFiles:
    """The file system a path belongs to. UsageError for an address that nobody serves."""
    return LocalFiles() if is_local(path) else get_object_store(path)


def check_writable(output: str) -> None:
    """UsageError for an address that can only be read, or that is none."""
    if not output:
        raise UsageError("the output has no name", "name a file, a folder/, or - for stdout")
    if not is_local(output):
        get_object_store(output).make_folder(output)


def expand_inputs(inputs: Sequence[str]) -> tuple[str, ...]:
    """The files that `inputs` name, in order: files, globs, folders (their data files), `-` for stdin.

    Files of a folder or glob are in natural order (part-2 before part-10), without those whose names
    begin with `_` or `.`. Addresses come without their secrets, which this process remembers.
    Raises UsageError for what is not there, InputError for what cannot be read.
    """
    found = tuple(path for given in inputs for path in _expanded(mask_secrets(given)))
    if not found:
        raise UsageError("no input was named", "name a file, a folder, a glob, or - for stdin")
    if found.count("-") > 1:
        raise UsageError("stdin (-) is named twice, and can be read only once", "name it once")
    return found


def _expanded(given: str) -> list[str]:
    if given == "-":
        return [given]
    files = get_file_system(given)
    with translate_input_errors(given):
        kind = files.kind(given)
        if kind == "folder":
            return _data_files(given, files.names(given))
        if kind is not None:
            return [given]
        if given and glob.has_magic(given):
            return _matching(given, files.matches(given))
    raise _missing(given)


def _data_files(folder: str, names: list[str]) -> list[str]:
    data = [name for name in names if DATA_ENDING.search(name) and not name.startswith(("_", "."))]
    if not data:
        raise UsageError(
            f"{format_location(folder)}: no data files lie in this folder",
            "it is read by the endings .jsonl, .ndjson, .csv, .tsv, .parquet, and these with .gz, .zst, .bz2, .xz; "
            f"a glob reads others, and subfolders: '{format_location(folder.rstrip('/'))}/**/*.json'",
        )
    return [os.path.join(folder, name) for name in sorted(data, key=natural_sort_key)]


def _matching(pattern: str, paths: list[str]) -> list[str]:
    hidden = () if os.path.basename(pattern).startswith("_") else ("_", ".")
    kept = [path for path in paths if not os.path.basename(path).startswith(hidden or ".")]
    if not kept:
        reason = "no such file or folder" if is_local(pattern) else get_object_store(pattern).missing(pattern)
        reason = "no file matches" if reason.startswith("no such") else reason
        raise UsageError(
            f"{format_location(pattern)}: {reason}", "check the pattern, and quote it if the shell changes it"
        )
    return sorted(kept, key=natural_sort_key)


def natural_sort_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key under which numbers count as numbers."""
    pieces = [piece for piece in re.split(r"([0-9]+)", name) if piece]
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces], name


def _missing(path: str) -> UsageError:
    if not is_local(path):
        return UsageError(f"{format_location(path)}: {get_object_store(path).missing(path)}", "check the address")
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
    """`size` in bytes and `mtime_ns` of a file; empty for what can be read only once, or is not there."""
    files = get_file_system(path)
    with translate_input_errors(path), suppress(FileNotFoundError):
        if path != "-" and (not is_local(path) or files.kind(path) == "file"):
            return files.identity(path)
    return {}
