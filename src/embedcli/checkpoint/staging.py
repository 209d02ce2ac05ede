"""The staging folder of an output and the locks that protect it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from embedcli import storage
from embedcli.core.constants import MANIFEST_FILE, PART_FILE_PATTERN, STAGED_FILE_PATTERN
from embedcli.core.errors import OutputLocked, UsageError
from embedcli.outputs import target as output_target
from embedcli.outputs.target import OutputTarget

LOCK_FILE = "_lock"
# Whoever begins a new job in the folder keeps its locks, and the names of the files that it replaces.
KEPT_FILES = re.compile(r"_lock.*|_begin|_replaced\.json")
LOCK_NAMES = re.compile(r"_lock.*|_begin")
# While one of these is there, a later run can go on from the folder.
WORK_FILES = "part-|share-"
# While one of these is there, the folder is kept: another shard may be using it, also where locks do not work.
RESUMABLE_FILES = f"{WORK_FILES}|_lock-"


class StagingFolder:
    """The staging folder of an output, locked between `acquire` and `release`.

    The operating system releases the locks of a process that dies. A shard locks the output together with other shards,
    and a lock file of its own exclusively; any other run locks the output exclusively.
    """

    def __init__(self, target: OutputTarget, lock_name: str = LOCK_FILE) -> None:
        self.target = target
        self.path = target.staging_folder
        self._lock_name = lock_name
        self._unlock: Callable[[], None] | None = None
        self._created_folders: list[str] = []

    def join(self, name: str) -> str:
        """Return the path of a file in this folder."""
        return storage.join(self.path, name)

    def list_files(self, pattern: str = "") -> list[str]:
        """Return the names of the files whose beginning matches a regular expression."""
        return storage.list_files(self.path, pattern)

    def read_manifest(self) -> dict[str, Any]:
        """Return the identity of the job that the folder belongs to; {} if there is none or it is damaged."""
        return output_target.read_json_or_empty(self.join(MANIFEST_FILE))

    def acquire(self) -> None:
        """Create the folder, lock it, and remove the temporary files of dead processes and the rejects of failed runs.

        Raises:
            OutputLocked: Another process is writing the output.
            UsageError: Something else has the name of the folder.
        """
        self._created_folders = self._list_missing_folders()
        try:
            if self.target.is_folder:
                storage.make_folder(storage.parent_folder(self.path))
            self._refuse_foreign_folder()
            self.target.make_staging_folder()
            if self._lock_name == LOCK_FILE:
                self._unlock = storage.acquire_lock(self.join(LOCK_FILE), self.target.output)
                self._remove_stale_temporaries()
            else:
                self._unlock = self._acquire_shard_locks()
            storage.remove(self.target.unpublished_rejects_path)
        except BaseException:
            self.release()
            self._remove_created_folders()
            raise

    def _list_missing_folders(self) -> list[str]:
        """List the folders that `acquire` will create, the innermost first."""
        missing, folder = [], self.path
        while storage.is_local(folder) and not os.path.lexists(folder):
            missing.append(folder)
            folder = storage.parent_folder(folder)
        return missing

    def _remove_created_folders(self) -> None:
        """Remove the folders that this run created, unless something is in them."""
        for folder in self._created_folders:
            storage.remove_empty_folder(folder)

    def _acquire_shard_locks(self) -> Callable[[], None]:
        locks = ExitStack()
        with locks:
            locks.callback(storage.acquire_lock(self.join(LOCK_FILE), self.target.output, shared=True))
            locks.callback(storage.acquire_lock(self.join(self._lock_name), self.target.output))
            return locks.pop_all().close

    def _remove_stale_temporaries(self) -> None:
        storage.remove_stale_temporaries(self.path, STAGED_FILE_PATTERN)
        if self.target.is_folder:
            own_names = rf"{PART_FILE_PATTERN}|{re.escape(MANIFEST_FILE)}"
            storage.remove_stale_temporaries(storage.parent_folder(self.path), own_names)
        for file in (*self.target.list_files(), self.target.rejects_path):
            storage.remove_stale_temporaries_beside(file)

    def discard_work(self) -> None:
        """Remove the work of an earlier job; a finished output stays until a new one replaces it."""
        storage.remove(self.join(MANIFEST_FILE))
        for name in self._list_own_files():
            if not KEPT_FILES.fullmatch(name):
                storage.remove(self.join(name))

    def remove(self) -> None:
        """Remove the folder while it is still locked, then release the lock. Files that are not embedcli's stay."""
        self._remove_folder()
        self.release()

    def release(self) -> None:
        """Release the lock, and remove the folder if there is nothing in it to resume from."""
        if self._unlock is None:
            return
        unlock, self._unlock = self._unlock, None
        if self._lock_name != LOCK_FILE:
            self._remove_shard_lock_without_work()
            unlock()
            self._remove_folder_as_last_shard()
        else:
            if not self.list_files(RESUMABLE_FILES):
                self._remove_folder()
            unlock()
        self._remove_created_folders()

    def _remove_shard_lock_without_work(self) -> None:
        """Remove this shard's lock file, as others judge by it whether the folder is in use."""
        if storage.is_local(self.path) and not self.list_files(WORK_FILES):
            storage.remove(self.join(self._lock_name))

    def _remove_folder_as_last_shard(self) -> None:
        """Remove the folder if no other shard is using it, and there is nothing in it to resume from."""
        if not storage.is_local(self.path) or not storage.exists(self.path) or self.list_files(RESUMABLE_FILES):
            return
        with suppress(OutputLocked):
            unlock = storage.acquire_lock(self.join(LOCK_FILE), self.target.output)
            if not self.list_files(RESUMABLE_FILES):
                self._remove_folder()
            unlock()

    def _list_own_files(self) -> list[str]:
        return [name for name in self.list_files() if re.fullmatch(STAGED_FILE_PATTERN, name)]

    def _remove_folder(self) -> None:
        """Remove the own files, the manifest after the others and the locks last, and the folder if it is empty then.

        If this is interrupted, the manifest leads the next run to the other files.
        """
        if storage.is_local(self.path) and storage.exists(self.path):
            storage.remove_stale_temporaries(self.path, STAGED_FILE_PATTERN)  # of workers that were killed
        own_names = self._list_own_files()
        if not storage.is_local(self.path) and len(own_names) == len(self.list_files()):
            # An object store removes a whole folder in a few requests; one file at a time takes three for each.
            storage.remove_folder(self.path)
            return
        for name in sorted(own_names, key=lambda name: (bool(LOCK_NAMES.fullmatch(name)), name == MANIFEST_FILE)):
            storage.remove(self.join(name))
        storage.remove_empty_folder(self.path)

    def _refuse_foreign_folder(self) -> None:
        """Raise UsageError if the folder is a link, or if it has foreign content and no job of embedcli."""
        if not storage.is_local(self.path):
            return
        shown = storage.format_location(self.path)
        hint = "remove or rename it, or choose another output: embedcli keeps unfinished work under this name"
        if os.path.islink(self.path):
            raise UsageError(f"{shown} is a link", hint)
        if not os.path.isdir(self.path) or storage.exists(self.join(MANIFEST_FILE)):
            return
        own_names = set(self._list_own_files())
        foreign = [name for name in sorted(os.listdir(self.path)) if name not in own_names]
        foreign = [name for name in foreign if not storage.is_temporary_name(name)]
        if foreign:
            raise UsageError(f"{shown} has files that embedcli did not write: {storage.format_path(foreign[0])}", hint)
