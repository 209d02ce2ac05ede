"""The local file system, and with it the methods that every file system here must have."""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from embedcli.storage.file_lock import try_lock

if TYPE_CHECKING:
    import pyarrow as pa

PathKind = Literal["file", "folder", "stream"]


class ReadableFile(Protocol):
    """An open file. `read` returns at least one byte unless the end is reached."""

    def read(self, size: int, /) -> bytes | None: ...

    def seek(self, offset: int, /) -> int: ...

    def close(self) -> None: ...


# What file systems report when another process holds a lock.
LOCK_HELD_ERRNOS = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
# What file systems without locks report: there, no process holds one.
NO_LOCK_SUPPORT_ERRNOS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


# Windows has neither flag; there, files are not inherited by default.
NO_FOLLOW_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class LockHeld(Exception):
    """Another process holds the lock."""


def is_process_alive(pid: int) -> bool:
    """Whether a process with this id exists on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it exists and belongs to another user
    return True


class LocalFileSystem:
    """Files of this machine. Every method raises OSError for what the system refuses."""

    def kind(self, path: str) -> PathKind | None:
        """Return what `path` is; None if it does not exist. A stream (pipe, device) can be read only once."""
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISDIR(mode):
            return "folder"
        return "file" if stat.S_ISREG(mode) else "stream"

    def list_files(self, folder: str) -> list[str]:
        """Return the names in a folder that are not folders themselves."""
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.is_dir()]

    def walk_files(self, folder: str, is_hidden: Callable[[str], bool]) -> tuple[list[str], list[str]]:
        """List the files in a folder and its subfolders.

        Args:
            folder: The folder.
            is_hidden: Whether a file or folder of this name is left out.

        Returns:
            The paths of the files inside the folder, and of links to folders that were not followed because the walk
            has been there already, as in a loop.
        """
        names, repeated = [], []
        visited = set()
        folders: list[str] = [""]
        links: list[str] = []
        while folders or links:  # links come last, so that a file has its own path rather than one through a link
            parent = folders.pop() if folders else links.pop(0)
            status = os.stat(os.path.join(folder, parent))
            if (status.st_dev, status.st_ino) in visited:
                repeated.append(parent)
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(folder, parent)) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if is_hidden(entry.name):
                        continue
                    path = os.path.join(parent, entry.name)
                    if entry.is_dir():
                        (links if entry.is_symlink() else folders).append(path)
                    else:
                        names.append(path)
        return names, repeated

    def find_matches(self, pattern: str) -> list[str]:
        """Return the paths that match a glob pattern and are not folders."""
        return [path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)]

    def identity(self, path: str) -> dict[str, int]:
        """Return `size` and `mtime_ns`, which change when the content does."""
        status = os.stat(path)
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}

    def state(self, path: str) -> dict[str, int]:
        """Return `identity`, `ctime_ns` and `inode`, which also change when a program sets the time back."""
        status = os.stat(path)
        return self.identity(path) | {"ctime_ns": status.st_ctime_ns, "inode": status.st_ino}

    def open(self, path: str) -> ReadableFile:
        return open(path, "rb", buffering=0)

    def open_with_size(self, path: str) -> tuple[ReadableFile, int]:
        """Open a file; return it and its size in bytes."""
        return self.open(path), os.path.getsize(path)

    def open_seekable(self, path: str) -> pa.NativeFile:
        import pyarrow as pa

        return pa.OSFile(os.fsencode(path))

    def local_copy(self, path: str) -> str:
        return path

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def move(self, path: str, new_path: str) -> None:
        """Rename a file; it replaces another one."""
        os.replace(path, new_path)

    def make_folder(self, path: str, *, parents: bool = True) -> None:
        if parents:
            os.makedirs(path, exist_ok=True)
            return
        try:
            os.mkdir(path)
        except FileExistsError:  # another process may have been first
            if not os.path.isdir(path):
                raise

    def acquire_lock(self, path: str) -> Callable[[], None]:
        """Acquire the lock file `path`, which a dead process does not keep.

        Returns:
            The function that releases it.

        Raises:
            LockHeld: Another process holds or shares it.
        """
        return _acquire_flock(path)

    def acquire_shared_lock(self, path: str) -> Callable[[], None]:
        """Acquire the lock file `path` together with others that share it; `acquire_lock` fails meanwhile.

        Returns:
            The function that releases it.

        Raises:
            LockHeld: Another process holds it exclusively.
        """
        return _acquire_flock(path, is_shared=True)


def _acquire_flock(path: str, *, is_shared: bool = False) -> Callable[[], None]:
    """Lock a file without waiting, and return the function that unlocks it; see `LocalFileSystem.acquire_lock`.

    A file system without locks lets everybody in: part files and records then tell whose work they are.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW_FLAGS, 0o644)
        try:
            is_current = lock_descriptor(descriptor, is_shared=is_shared) is None or _is_at(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if is_current:
            return partial(os.close, descriptor)
        os.close(descriptor)  # its last owner has removed the file with the folder


def lock_descriptor(descriptor: int, *, is_shared: bool = False) -> bool | None:
    """Lock an open file without waiting; closing it unlocks it.

    Args:
        descriptor: The open file.
        is_shared: Whether others may share the lock.

    Returns:
        True if it is locked now; None if its file system has no locks.

    Raises:
        LockHeld: Another process holds the lock.
        OSError: The system refuses for another reason.
    """
    try:
        try_lock(descriptor, is_shared=is_shared)
    except OSError as error:
        if error.errno in LOCK_HELD_ERRNOS:
            raise LockHeld from None
        if error.errno in NO_LOCK_SUPPORT_ERRNOS:
            return None
        raise
    return True


def _is_at(path: str, descriptor: int) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
