"""Writing: a file is replaced whole and durably, or not at all, and a dead process leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from embedcli.core.errors import OutputError
from embedcli.storage.local import alive
from embedcli.storage.paths import format_location, get_object_store, is_local

HINTS = {
    errno.ENOSPC: "free some space, or choose an output on another disk",
    errno.EDQUOT: "free some space, or choose an output on another disk",
    errno.EFBIG: "raise the file size limit (ulimit -f), or choose a folder as output",
    errno.EACCES: "check the permissions, or choose another path",
    errno.EPERM: "check the permissions, or choose another path",
    errno.EROFS: "the file system is read-only: choose another path",
    errno.EIO: "the disk reports a fault: choose another disk",
    errno.ENOENT: "create the folder first, or choose another path",
    errno.ENOTDIR: "a part of the path is not a folder: choose another path",
    errno.EISDIR: "the path is a folder: name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def translate_output_errors(path: str) -> Iterator[None]:
    """Errors of the operating system become OutputError with the path and a remedy."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OutputError(
            f"{format_location(path)}: cannot be written: {reason}",
            hint_for_os_error(error),
        ) from error


def hint_for_os_error(error: OSError) -> str:
    """What to do about an error of the operating system."""
    return HINTS.get(error.errno or 0, "check the path and its permissions, or choose another output")


@contextmanager
def replace_file_atomically(path: str) -> Iterator[str]:
    """A temporary path in the same folder that becomes `path`, whole and on disk, when the block ends well.

    If the block or the disk fails, `path` is as it was before and the temporary file is gone. Errors of the
    operating system become OutputError. A link is followed; what is not a regular file is never replaced.
    For an address the temporary path lies on this machine, and is uploaded when the block ends well.
    """
    if not is_local(path):
        with _uploaded(path) as temporary:
            yield temporary
        return
    with translate_output_errors(path):
        target = os.path.realpath(path)
        if os.path.lexists(target) and not os.path.isfile(target):
            raise OutputError(
                f"{format_location(path)}: is not a regular file, and is not replaced", "choose another output"
            )
        temporary = temporary_name(target)
        claim = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            with suppress(OSError):  # some network file systems have no such lock; then the process id decides
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield temporary
            make_durable(temporary)
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(claim)
        sync_folder(os.path.dirname(target))


@contextmanager
def _uploaded(path: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="embedcli-") as folder:
        temporary = os.path.join(folder, "out" + os.path.splitext(path)[1])
        yield temporary
        with open(temporary, "rb") as spooled:
            get_object_store(path).upload(path, spooled, os.path.getsize(temporary))


def make_durable(path: str) -> None:
    """What a file holds, or which names a folder has, is on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable, where the file system can."""
    try:
        make_durable(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise


def temporary_name(target: str) -> str:
    """`.NAME.tmp-PID` beside the target; a long name is shortened to its digest."""
    folder, name = os.path.split(target)
    raw = os.fsencode(name)
    short = name if len(raw) < 230 else hashlib.blake2b(raw, digest_size=16).hexdigest()
    return os.path.join(folder, f".{short}.tmp-{os.getpid()}")


def remove_stale_temporaries(folder: str | Path, name: str | None = None) -> list[str]:
    """Remove temporary files that `replacing` left in `folder` (for output `name`, or all); returns their names.

    Files of a process that is still at work stay. Nothing is left at an address: what is uploaded has its own name.
    """
    if not is_local(str(folder)):
        return []
    prefix = None if name is None else os.path.basename(temporary_name(name)).rsplit("-", 1)[0]
    removed = []
    with translate_output_errors(str(folder)):
        for entry in os.listdir(folder):
            found = re.fullmatch(r"(\..+\.tmp)-([0-9]+)", entry, re.DOTALL)
            if not found or prefix not in (None, found[1]) or _in_use(os.path.join(folder, entry), int(found[2])):
                continue
            with suppress(FileNotFoundError):
                drop(os.path.join(folder, entry))
                removed.append(entry)
    return removed


def remove_stale_temporaries_beside(path: str) -> list[str]:
    """`sweep` for an output: temporary files lie beside what a link points to."""
    real = os.path.realpath(path) if is_local(path) else path
    return remove_stale_temporaries(os.path.dirname(real), os.path.basename(real))


def drop(path: str) -> None:
    """Remove a file, or a folder with all that is in it."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _in_use(temporary: str, pid: int) -> bool:
    """Whether its writer is alive: it holds a lock on the file, which ends with the process."""
    try:
        descriptor = os.open(temporary, os.O_RDWR)
    except IsADirectoryError:
        return alive(pid)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return alive(pid)
    finally:
        os.close(descriptor)
