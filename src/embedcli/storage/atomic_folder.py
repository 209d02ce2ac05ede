"""Atomic replacement of a folder: complete and durable under its name, or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from embedcli.core.errors import OutputError
from embedcli.storage.atomic_replace import fsync_path, new_temporary_path, sync_folder, translate_output_errors
from embedcli.storage.paths import format_location


@contextmanager
def replace_folder_atomically(path: str) -> Iterator[str]:
    """Replace a folder with the one that the block writes.

    If the block or the disk fails, `path` stays as it was. An existing folder is moved away first, because no system
    call replaces a folder: a crash at that moment leaves neither of the two under the name.

    Args:
        path: The folder to replace or create, on this machine.

    Yields:
        The path of a folder that does not exist yet. It becomes `path` when the block succeeds.

    Raises:
        OutputError: The system refuses, or `path` is something other than a folder.
    """
    with translate_output_errors(path):
        target = os.path.realpath(path)
        if os.path.lexists(target) and not os.path.isdir(target):
            raise OutputError(
                f"{format_location(path)}: is not a folder; embedcli does not replace it", "choose another output"
            )
        workspace = new_temporary_path(target)
        new, old = os.path.join(workspace, "new"), os.path.join(workspace, "old")
        os.mkdir(workspace)
        try:
            yield new
            sync_tree(new)
            swap_folders(new, target, old)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
        sync_folder(os.path.dirname(target))


def sync_tree(folder: str) -> None:
    """Flush everything in a folder to disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            fsync_path(os.path.join(parent, name))
        sync_folder(parent)


def swap_folders(new: str, target: str, old: str) -> None:
    """Rename `new` to `target` and an existing `target` to `old`; undo that if it fails."""
    exists = os.path.isdir(target)
    if exists:
        os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        if exists:
            os.rename(old, target)
        raise
