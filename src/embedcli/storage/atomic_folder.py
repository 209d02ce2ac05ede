"""Writing a folder of files as one thing: whole and durable under its name, or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from embedcli.core.errors import OutputError
from embedcli.storage.atomic_replace import make_durable, sync_folder, temporary_name, translate_output_errors
from embedcli.storage.paths import format_location


@contextmanager
def replace_folder_atomically(path: str) -> Iterator[str]:
    """A folder yet to be made that becomes `path`, whole and on disk, when the block ends well.

    If the block or the disk fails, `path` is as it was before. A folder that was there is moved aside first, as no
    system call replaces one: a crash in that moment leaves neither. Errors of the system become OutputError.
    """
    with translate_output_errors(path):
        target = os.path.realpath(path)
        if os.path.lexists(target) and not os.path.isdir(target):
            raise OutputError(f"{format_location(path)}: is not a folder, and is not replaced", "choose another output")
        room = temporary_name(target)
        new, old = os.path.join(room, "new"), os.path.join(room, "old")
        shutil.rmtree(room, ignore_errors=True)
        os.mkdir(room)
        try:
            yield new
            sync_tree(new)
            exchange(new, target, old)
        finally:
            shutil.rmtree(room, ignore_errors=True)
        sync_folder(os.path.dirname(target))


def sync_tree(folder: str) -> None:
    """Everything in a folder is on disk when this returns."""
    for here, _, names in os.walk(folder):
        for name in names:
            make_durable(os.path.join(here, name))
        sync_folder(here)


def exchange(new: str, target: str, old: str) -> None:
    """Give `new` the name `target`; what had it before goes to `old`, and comes back if that fails."""
    replaced = os.path.isdir(target)
    if replaced:
        os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        if replaced:
            os.rename(old, target)
        raise
