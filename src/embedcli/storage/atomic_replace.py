"""Atomic replacement of a file: complete and durable, or not at all; the leftovers of dead processes are removed."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from embedcli.core.errors import OutputError
from embedcli.storage.file_lock import try_lock
from embedcli.storage.local import NO_FOLLOW_FLAGS, LockHeld, is_process_alive, lock_descriptor
from embedcli.storage.paths import format_location, get_object_store, is_local

# Earlier versions left the random part out.
TEMPORARY_NAME = r"\.(.+)\.tmp-([0-9]+)(?:-[0-9a-f]{16})?"
# A name has at most 255 bytes, and 40 are needed for the rest.
MAX_TEMPORARY_NAME_BYTES = 210
HINTS = {
    errno.ENOSPC: "free some space, or choose an output on another disk",
    errno.EDQUOT: "free some space, or choose an output on another disk",
    errno.EFBIG: "raise the file size limit (ulimit -f), or choose a folder as output",
    errno.EACCES: "check the permissions, or choose another path",
    errno.EPERM: "check the permissions, or choose another path",
    errno.EROFS: "the file system is read-only: choose another path",
    errno.EIO: "the disk reports an error: choose another disk",
    errno.ENOENT: "create the folder first, or choose another path",
    errno.ENOTDIR: "a part of the path is not a folder: choose another path",
    errno.EISDIR: "the path is a folder: name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def translate_output_errors(path: str) -> Iterator[None]:
    """Translate errors of the operating system into OutputError with the path and a hint."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OutputError(
            f"{format_location(path)}: cannot be written: {reason}",
            hint_for_os_error(error),
        ) from error


def hint_for_os_error(error: OSError) -> str:
    """Return what to do about an error of the operating system."""
    return HINTS.get(error.errno or 0, "check the path and its permissions, or choose another output")


@contextmanager
def replace_file_atomically(path: str, mode_of: str | None = None) -> Iterator[str]:
    """Replace a file with the one that the block writes.

    If the block or the disk fails, `path` stays as it was and the temporary file is removed. A link is followed; only
    regular files are replaced. The new file has the mode of the old one.

    Args:
        path: The file to replace or create.
        mode_of: A file whose mode a new file gets, if it exists; by default the mode is that of new files.

    Yields:
        A temporary path in the same folder, which is renamed to `path` when the block succeeds. For an address it is
        a local path, which is then uploaded.

    Raises:
        OutputError: The system or the store refuses, or `path` is not a regular file.
    """
    if not is_local(path):
        with _upload_on_success(path) as temporary:
            yield temporary
        return
    with translate_output_errors(path):
        target = os.path.realpath(path)
        if os.path.lexists(target) and not os.path.isfile(target):
            raise OutputError(
                f"{format_location(path)}: is not a regular file; embedcli does not replace it", "choose another output"
            )
        temporary = new_temporary_path(target)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW_FLAGS, 0o666)
        with ExitStack() as held:
            held.callback(os.close, descriptor)
            try:
                _copy_mode(next(filter(os.path.isfile, (target, mode_of or target)), None), descriptor, temporary)
                with suppress(OSError):  # some network file systems have no locks; then the process id decides
                    try_lock(descriptor)
                yield temporary
                fsync_path(temporary)
                if sys.platform == "win32":
                    held.close()  # no open file can be renamed there
                os.replace(temporary, target)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
        sync_folder(os.path.dirname(target))


@contextmanager
def _upload_on_success(path: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="embedcli-") as folder:
        temporary = os.path.join(folder, "out" + os.path.splitext(path)[1])
        yield temporary
        with open(temporary, "rb") as spooled:
            get_object_store(path).upload_file(path, spooled, os.path.getsize(temporary))


def fsync_path(path: str) -> None:
    """Flush the content of a file, or the names in a folder, to disk."""
    # Windows flushes only files that are open for writing, and cannot open folders.
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str) -> None:
    """Flush the names in a folder to disk, if the file system can."""
    try:
        fsync_path(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise


def _copy_mode(source: str | None, descriptor: int, path: str) -> None:
    """Give a file, which is open and has this path, the mode of another one, if there is one."""
    if source is not None:
        # On Windows only the path can be given.
        os.chmod(descriptor if os.chmod in os.supports_fd else path, stat.S_IMODE(os.stat(source).st_mode))


def new_temporary_path(target: str) -> str:
    """Return `.NAME.tmp-PID-RANDOM` beside the target, which nobody can predict; a long name becomes its digest."""
    return f"{_temporary_prefix(target)}-{os.getpid()}-{secrets.token_hex(8)}"


def _temporary_prefix(target: str) -> str:
    folder, name = os.path.split(target)
    raw = os.fsencode(name)
    short = name if len(raw) < MAX_TEMPORARY_NAME_BYTES else hashlib.blake2b(raw, digest_size=16).hexdigest()
    return os.path.join(folder, f".{short}.tmp")


def remove_stale_temporaries(folder: str | Path, names: str = r".+") -> list[str]:
    """Remove the temporary files that dead processes left in a folder.

    Args:
        folder: A local folder; object stores have no temporary files.
        names: A regular expression for the names of the outputs whose temporary files are removed.

    Returns:
        The names of the removed files. Those of a living process stay.
    """
    if not is_local(str(folder)):
        return []
    removed = []
    with translate_output_errors(str(folder)):
        for entry in os.listdir(folder):
            found = re.fullmatch(TEMPORARY_NAME, entry, re.DOTALL)
            is_ours = found is not None and re.fullmatch(names, found[1], re.DOTALL) is not None
            if found is None or not is_ours or _is_in_use(os.path.join(folder, entry), int(found[2])):
                continue
            with suppress(FileNotFoundError):
                remove_path(os.path.join(folder, entry))
                removed.append(entry)
    return removed


def is_temporary_name(name: str) -> bool:
    """Whether a file name is that of a temporary file."""
    return re.fullmatch(TEMPORARY_NAME, name, re.DOTALL) is not None


def remove_stale_temporaries_beside(path: str) -> list[str]:
    """Remove the temporary files of an output; they are beside the target of a link."""
    real = os.path.realpath(path) if is_local(path) else path
    folder, prefix = os.path.split(_temporary_prefix(real))
    return remove_stale_temporaries(folder, re.escape(prefix[1:].removesuffix(".tmp")))


def remove_path(path: str) -> None:
    """Remove a file, or a folder with its content."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _is_in_use(temporary: str, pid: int) -> bool:
    """Whether the writer of a temporary file is alive: it holds a lock on it, which ends with the process."""
    try:
        descriptor = os.open(temporary, os.O_RDWR)
    except IsADirectoryError:
        return is_process_alive(pid)
    except OSError:
        return False
    try:
        return lock_descriptor(descriptor) is None and is_process_alive(pid)
    except LockHeld:
        return True
    except OSError:
        return is_process_alive(pid)
    finally:
        os.close(descriptor)
