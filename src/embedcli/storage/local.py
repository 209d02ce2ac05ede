"""This machine's files: what every file system here must be able to do."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

PathKind = Literal["file", "folder", "stream"]


class ReadableFile(Protocol):
    """Bytes as they lie in the file. `read` returns at least one byte unless the end is reached."""

    def read(self, size: int, /) -> bytes | None: ...

    def seek(self, offset: int, /) -> int: ...

    def close(self) -> None: ...


# What file systems answer where another holds a lock.
LOCK_HELD_ERRNOS = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
# What file systems answer that have no locks at all: there, nobody holds one.
NO_LOCK_SUPPORT_ERRNOS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class LockHeld(Exception):
    """Another process holds the lock."""


def alive(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # alive, and another user's
    return True


class LocalFileSystem:
    """This machine's files. Every method raises OSError for what the system refuses."""

    def kind(self, path: str) -> PathKind | None:
        """What `path` is: a stream is a pipe or a device, which can be read only once. None: nothing there."""
        try:
            mode = os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISDIR(mode):
            return "folder"
        return "file" if stat.S_ISREG(mode) else "stream"

    def names(self, folder: str) -> list[str]:
        """The names in a folder that are not folders themselves."""
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.is_dir()]

    def matches(self, pattern: str) -> list[str]:
        return [path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path)]

    def identity(self, path: str) -> dict[str, int]:
        status = os.stat(path)
        return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}

    def open(self, path: str) -> ReadableFile:
        return open(path, "rb", buffering=0)

    def open_with_size(self, path: str) -> tuple[ReadableFile, int]:
        """An open file and its size in bytes."""
        return self.open(path), os.path.getsize(path)

    def open_seekable(self, path: str) -> pa.NativeFile:
        import pyarrow as pa

        return pa.OSFile(os.fsencode(path))

    def nearby(self, path: str) -> str:
        return path

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def make_folder(self, path: str, *, parents: bool = True) -> None:
        if parents:
            os.makedirs(path, exist_ok=True)
            return
        try:
            os.mkdir(path)
        except FileExistsError:  # another process may have been first
            if not os.path.isdir(path):
                raise

    def remove_folder(self, path: str) -> None:
        """Remove a folder with all that is in it; what cannot be removed stays."""
        shutil.rmtree(path, ignore_errors=True)

    def lock(self, path: str) -> Callable[[], None]:
        """Take the lock `path`, which a dead process does not keep; what gives it back. Raises Taken."""
        from filelock import FileLock, Timeout

        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LockHeld from None
        return lock.release

    def acquire_shared_lock(self, path: str) -> Callable[[], None]:
        """Hold the lock `path` beside others that share it: `lock` fails meanwhile. Raises Taken if `lock` holds it."""
        while True:
            claim = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(claim, fcntl.LOCK_SH | fcntl.LOCK_NB)
                kept = os.fstat(claim).st_nlink > 0
            except OSError as error:
                if error.errno not in NO_LOCK_SUPPORT_ERRNOS:
                    os.close(claim)
                    raise (LockHeld() if error.errno in LOCK_HELD_ERRNOS else error) from None
                kept = True
            if kept:
                return lambda: os.close(claim)
            os.close(claim)  # its last owner has removed the file with the folder
