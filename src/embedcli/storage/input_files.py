"""List the files that the user's inputs name: files, globs, and folders with their subfolders."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches

from embedcli.core.constants import MANIFEST_FILE, STAGING_FOLDER
from embedcli.core.errors import UsageError
from embedcli.storage.dataset_splits import describe_splits
from embedcli.storage.errors import ObjectStoreError
from embedcli.storage.fs import join, read_bytes
from embedcli.storage.paths import (
    DATA_ENDING,
    format_location,
    get_file_system,
    get_object_store,
    is_local,
    natural_sort_key,
    translate_input_errors,
)
from embedcli.storage.url_redaction import mask_secrets

MAX_LISTED_NAMES = 3
# Beside the files of a saved dataset: `_data_files` lists those that belong to it, without those of a cache.
DATASET_STATE_FILE = "state.json"


@dataclass
class InputListing:
    """The files that the inputs name.

    Attributes:
        paths: The files, in the order of the inputs, each once.
        origins: The folder or glob that a file was found in; without files that the user named.
        notes: Sentences for the user about what was left out.
    """

    paths: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def expand_inputs(inputs: Sequence[str], *, recursive: bool = True) -> tuple[str, ...]:
    """List the files that the inputs name; see `list_input_files`."""
    return tuple(list_input_files(inputs, recursive=recursive).paths)


def list_input_files(inputs: Sequence[str], *, recursive: bool = True) -> InputListing:
    """List the files that the inputs name.

    Args:
        inputs: Files, globs, folders (which stand for their data files) and `-` for stdin.
        recursive: Whether folders stand for the data files in their subfolders, too.

    Returns:
        The files, in the order of `inputs`. Those of a folder or glob are in natural order (part-2 before part-10),
        without names that begin with `_` or `.`. Addresses are masked: they can be shown, recorded and opened.
        A file that is reached twice is listed once.

    Raises:
        UsageError: Something does not exist, or nothing was named.
        InputError: Something cannot be read.
    """
    listing = InputListing()
    for given in map(mask_secrets, inputs):
        paths = _expand(given, listing, recursive=recursive)
        if paths != [given]:
            listing.origins.update(dict.fromkeys(paths, given))
        listing.paths += paths
    for given in map(mask_secrets, inputs):
        listing.origins.pop(given, None)
    if not listing.paths:
        raise UsageError("no input was named", "name a file, a folder, a glob, or - for stdin")
    if listing.paths.count("-") > 1:
        raise UsageError("stdin (-) is named twice, but can be read only once", "name it once")
    _drop_repeated_files(listing)
    return listing


def is_hidden(name: str) -> bool:
    """Whether a name in a folder is left out, as in Arrow and Spark: `.NAME` and `_NAME`, but not `_KEY=VALUE`."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def partition_values(path: str) -> dict[str, str]:
    """The folders `KEY=VALUE` of a path, as they are written; of a repeated key, the last."""
    names = path.split("/")[:-1]
    return dict(name.split("=", 1) for name in names if "=" in name and not name.startswith("="))


def _expand(given: str, listing: InputListing, *, recursive: bool) -> list[str]:
    if given == "-":
        return [given]
    files = get_file_system(given)
    with translate_input_errors(given):
        kind = files.kind(given)
        if kind == "folder":
            names, repeated = files.walk_files(given, is_hidden) if recursive else (files.list_files(given), [])
            listing.notes += [
                f"{format_location(join(given, name))} links to a folder that is read already: it is not followed."
                for name in repeated
            ]
            return _select_data_files(given, names, listing)
        if kind is not None:
            return [given]
        if given and glob.has_magic(given):
            return _select_matches(given, files.find_matches(given), listing)
    raise _missing_error(given)


def _select_data_files(folder: str, names: list[str], listing: InputListing) -> list[str]:
    visible = [name for name in names if not is_hidden(os.path.basename(name))]
    visible = _without_staged_files(folder, visible, listing)
    belongs = _saved_dataset_files(folder, visible)
    data = [name for name in visible if DATA_ENDING.search(name) and belongs.get(name, True)]
    if not data:
        raise UsageError(
            f"{format_location(folder)}: there are no data files in this folder",
            f"use a glob for other names: '{format_location(folder.rstrip('/'))}/**/*.json'; "
            "without one, only files that end in .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow or .feather are read, "
            "also with .gz, .zst, .bz2 or .xz",
        )
    others = sorted({*visible} - {*data}, key=natural_sort_key)
    if others:
        listing.notes.append(f"Files of {format_location(folder)} that hold no rows are not read: {shorten(others)}.")
    data.sort(key=natural_sort_key)
    listing.notes += describe_splits(format_location(folder), data)
    return [os.path.join(folder, name) for name in data]


def _saved_dataset_files(folder: str, names: Sequence[str]) -> dict[str, bool]:
    """Whether each file beside the state file of a saved dataset belongs to the dataset; other files are not listed."""
    belongs: dict[str, bool] = {}
    for state in (name for name in names if os.path.basename(name) == DATASET_STATE_FILE):
        with suppress(OSError, ValueError, KeyError, TypeError, ObjectStoreError):
            files = {file["filename"] for file in json.loads(read_bytes(join(folder, state)))["_data_files"]}
            parent = state.removesuffix(DATASET_STATE_FILE)
            beside = (name for name in names if name.startswith(parent) and "/" not in name.removeprefix(parent))
            belongs |= {name: os.path.basename(name) in files for name in beside}
    return belongs


def _select_matches(pattern: str, paths: list[str], listing: InputListing) -> list[str]:
    hidden = () if os.path.basename(pattern).startswith("_") else ("_", ".")
    kept = [path for path in paths if not os.path.basename(path).startswith(hidden or ".")]
    kept = _without_staged_files("", kept, listing)
    if not kept:
        reason = (
            None if is_local(pattern) else get_object_store(pattern).describe_missing_bucket(pattern)
        ) or "no file matches"
        raise UsageError(
            f"{format_location(pattern)}: {reason}", "check the pattern, and quote it if the shell changes it"
        )
    return sorted(kept, key=natural_sort_key)


def _without_staged_files(folder: str, names: list[str], listing: InputListing) -> list[str]:
    """Leave out the files in staging folders, which their manifest shows, and add a note that names the folders."""
    parents = {name: parent for name in names if (parent := _staging_parent(name)) is not None}
    staging = sorted({parent for parent in parents.values() if _is_staging_folder(os.path.join(folder, parent))})
    if staging:
        shown = shorten([os.path.join(folder, parent) for parent in staging])
        listing.notes.append(f"The unfinished outputs in {shown} are not read.")
    return [name for name in names if parents.get(name) not in staging]


def _staging_parent(name: str) -> str | None:
    """The outermost folder in a path that is named like a staging folder; None without one."""
    folders = name.split("/")[:-1]
    named = (i for i, part in enumerate(folders) if part.endswith(".parts") or part == STAGING_FOLDER)
    first = next(named, None)
    return None if first is None else "/".join(folders[: first + 1])


def _is_staging_folder(folder: str) -> bool:
    return get_file_system(folder).kind(join(folder, MANIFEST_FILE)) == "file"


def shorten(names: Sequence[str]) -> str:
    """The first names for a message, and how many there are besides."""
    more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
    return ", ".join(map(format_location, names[:MAX_LISTED_NAMES])) + more


def _drop_repeated_files(listing: InputListing) -> None:
    """Keep the first of several paths to one file, and add a note.

    Paths with other partition values stay: equal files of a cache may be links to one file.
    """
    firsts: dict[object, str] = {}
    repeated = []
    for path in listing.paths:
        key = _file_key(path)
        if key in firsts:
            repeated.append((path, firsts[key]))
        firsts.setdefault(key, path)
    if repeated:
        (path, first), *others = repeated
        reason = "named twice" if path == first else f"the same file as {format_location(first)}"
        more = f"; so are {len(others)} other inputs" if others else ""
        listing.notes.append(f"{format_location(path)} is {reason}: it is read once{more}.")
        listing.paths = list(firsts.values())
    listing.origins = {path: listing.origins[path] for path in listing.paths if path in listing.origins}


def _file_key(path: str) -> object:
    """The same for all paths to one file: its device and number, for an address the address."""
    if path != "-" and is_local(path):
        with suppress(OSError):
            status = os.stat(path)
            return status.st_dev, status.st_ino, tuple(partition_values(path).items())
    return path


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
