"""The staging folder of an output and the locks that protect it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from embedcli import storage
from embedcli.core.constants import MANIFEST_FILE
from embedcli.outputs import target as output_target
from embedcli.outputs.target import OutputTarget

LOCK_FILE = "_lock"
DISCARDED_FILES = r"part-|rejects-|share-|inputs-|_(ranges|starts|space|replacing)\.json"
# While one of these is there, a later run can go on from the folder, or another shard is using it.
RESUMABLE_FILES = "part-|share-|_lock-"


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
        """Create the folder, lock it, and remove the temporary files of dead processes.

        Raises:
            OutputLocked: Another process is writing the output.
        """
        if self.target.is_folder:
            storage.make_folder(storage.parent_folder(self.path))
        self.target.make_staging_folder()
        if self._lock_name == LOCK_FILE:
            self._unlock = storage.acquire_lock(self.join(LOCK_FILE), self.target.output)
            self._remove_stale_temporaries()
        else:
            self._unlock = self._acquire_shard_locks()

    def _acquire_shard_locks(self) -> Callable[[], None]:
        locks = ExitStack()
        with locks:
            locks.callback(storage.acquire_lock(self.join(LOCK_FILE), self.target.output, shared=True))
            locks.callback(storage.acquire_lock(self.join(self._lock_name), self.target.output))
            return locks.pop_all().close

    def _remove_stale_temporaries(self) -> None:
        storage.remove_stale_temporaries(self.path)
        if self.target.is_folder:
            storage.remove_stale_temporaries(storage.parent_folder(self.path))
        for file in (*self.target.list_files(), self.target.rejects_path):
            storage.remove_stale_temporaries_beside(file)

    def discard_work(self) -> None:
        """Remove the work of an earlier job; a finished output stays until a new one replaces it."""
        storage.remove(self.join(MANIFEST_FILE))
        for name in self.list_files(DISCARDED_FILES):
            storage.remove(self.join(name))

    def remove(self) -> None:
        """Remove the folder while it is still locked, then release the lock."""
        # An object store removes a whole folder in a few requests; one file at a time takes three for each.
        names = self.list_files() if storage.is_local(self.path) else []
        # The manifest goes last of the files: if this is interrupted, the manifest leads the next run to the others.
        for name in sorted(names, key=lambda name: name == MANIFEST_FILE):
            if name not in (LOCK_FILE, self._lock_name):
                storage.remove(self.join(name))
        storage.remove_folder(self.path)
        self.release()

    def release(self) -> None:
        """Release the lock, and remove the folder if there is nothing in it to resume from."""
        if self._unlock is None:
            return
        unlock, self._unlock = self._unlock, None
        if self._lock_name == LOCK_FILE and not self.list_files(RESUMABLE_FILES):
            storage.remove_folder(self.path)
        unlock()
