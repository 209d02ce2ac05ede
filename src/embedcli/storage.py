"""Where bytes come from and go to: list inputs, open them decompressed, replace outputs whole.

A path becomes a file system in one place, `files_of`; today that is this machine's, and stdin.
Inputs are opened through `open_input` (a stream) or `open_seekable` (random access, for Parquet).
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from embedcli.contracts import InputError, OutputError, UsageError
from embedcli.decompress import decompressed

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["file", "folder", "stream"]

# A folder is read by these endings; `.json` is left out, for folders keep their settings in such files.
DATA_ENDING = re.compile(r"\.(jsonl|ndjson|csv|tsv|tab|parquet|pq)(\.(gz|zst|bz2|xz))?$", re.IGNORECASE)
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


class Raw(Protocol):
    """Bytes as they lie in the file. `read` returns at least one byte unless the end is reached."""

    def read(self, size: int, /) -> bytes | None: ...

    def seek(self, offset: int, /) -> int: ...

    def close(self) -> None: ...


def shown(path: str) -> str:
    """A path as text: bytes of a name that are not UTF-8 become escapes such as \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def where(path: str, line: int | None = None) -> str:
    """`file:line` for a message, on one line whatever the name is."""
    name = "stdin" if path == "-" else shown(path).replace("\n", "\\n").replace("\r", "\\r")
    return name if line is None else f"{name}:{line}"


# File systems


class LocalFiles:
    """This machine's files."""

    def kind(self, path: str) -> Kind | None:
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

    def open(self, path: str) -> Raw:
        return open(path, "rb", buffering=0)

    def open_seekable(self, path: str) -> pa.NativeFile:
        import pyarrow as pa

        return pa.OSFile(os.fsencode(path))


def files_of(path: str) -> LocalFiles:
    """The file system a path belongs to. UsageError for an address whose scheme is not known."""
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://", path)
    if scheme is None or os.path.lexists(path):
        return LocalFiles()
    raise UsageError(f"{where(path)}: {scheme[1]}:// addresses cannot be read yet", "copy the file here first")


# Listing inputs


def expand(inputs: Sequence[str]) -> tuple[str, ...]:
    """The files that `inputs` name, in order: files, globs, folders (their data files), `-` for stdin.

    Files of a folder or glob are in natural order (part-2 before part-10), without those whose names
    begin with `_` or `.`. Raises UsageError for what is not there, InputError for what cannot be read.
    """
    found = tuple(path for given in inputs for path in _expanded(given))
    if not found:
        raise UsageError("No input was named", "name a file, a folder, a glob, or - for stdin")
    if found.count("-") > 1:
        raise UsageError("stdin (-) is named twice, and can be read only once", "name it once")
    return found


def _expanded(given: str) -> list[str]:
    if given == "-":
        return [given]
    files = files_of(given)
    with input_errors(given):
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
            f"{where(folder)}: no data files lie in this folder",
            "it is read by the endings .jsonl, .ndjson, .csv, .tsv, .parquet, and these with .gz, .zst, .bz2, .xz; "
            f"a glob reads others, and subfolders: '{where(folder.rstrip('/'))}/**/*.json'",
        )
    return [os.path.join(folder, name) for name in sorted(data, key=natural)]


def _matching(pattern: str, paths: list[str]) -> list[str]:
    hidden = () if os.path.basename(pattern).startswith("_") else ("_", ".")
    kept = [path for path in paths if not os.path.basename(path).startswith(hidden or ".")]
    if not kept:
        raise UsageError(f"{where(pattern)}: no file matches", "check the pattern, and quote it if the shell changes it")
    return sorted(kept, key=natural)


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key under which numbers count as numbers."""
    pieces = [piece for piece in re.split(r"([0-9]+)", name) if piece]
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces], name


def _missing(path: str) -> UsageError:
    folder, name = os.path.split(path)
    with suppress(OSError):
        close = get_close_matches(name, os.listdir(folder or "."), n=1)
        if close:
            return UsageError(f"{where(path)}: no such file", f"did you mean {where(os.path.join(folder, close[0]))} ?")
    return UsageError(f"{where(path)}: no such file or folder", "check the path; it is relative to the current folder")


def file_identity(path: str) -> dict[str, int]:
    """`size` in bytes and `mtime_ns` of a file; empty for what can be read only once. InputError if it is gone."""
    files = files_of(path)
    with input_errors(path):
        return files.identity(path) if path != "-" and files.kind(path) == "file" else {}


# Reading


@contextmanager
def input_errors(path: str) -> Iterator[None]:
    """Errors of the operating system become InputError with the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{where(path)}: cannot be read: {reason}", "check the path and its permissions") from error


@dataclass
class _Once:
    """A stream that can be read once. What a look at its beginning consumed is kept, and read again."""

    raw: Any
    kept: bytearray = field(default_factory=bytearray)
    read_by: int = 0

    def pull(self, size: int) -> bytes:
        read = getattr(self.raw, "read1", self.raw.read)
        return read(size) or b""


class _View:
    """One reading of a `_Once`, from its beginning."""

    def __init__(self, once: _Once, *, look: bool) -> None:
        self._once = once
        self._look = look
        self._at = 0
        once.read_by += not look

    def read(self, size: int, /) -> bytes:
        once = self._once
        if self._at < len(once.kept):
            data = bytes(once.kept[self._at : self._at + size])
        elif self._look and once.read_by:
            return b""
        else:
            data = once.pull(size)
            if self._look:
                once.kept += data
        self._at += len(data)
        return data

    def seek(self, offset: int, /) -> int:
        raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

    def close(self) -> None:
        if not self._look:
            self._once.kept.clear()


_STREAMS: dict[str, _Once] = {}


def _stream(path: str, *, look: bool) -> _View:
    raw = (sys.stdin and sys.stdin.buffer) if path == "-" else None
    if path == "-" and raw is None:
        raise InputError("stdin is closed", "name a file, or feed rows to stdin")
    once = _STREAMS.get(path)
    if once is None or (path == "-" and once.raw is not raw):
        once = _STREAMS[path] = _Once(raw or files_of(path).open(path))
    if once.read_by and not look:
        raise InputError(f"{where(path)}: a pipe can be read only once", "write it to a file first")
    return _View(once, look=look)


class Input:
    """The decompressed bytes of one input, front to back.

    `position` is how many bytes of the file itself have been read, `size` how many it has (None: not known),
    `codec` how it is compressed (None: not at all, and then `seek` works on a file).
    """

    def __init__(self, path: str, raw: Raw, size: int | None) -> None:
        self.path = path
        self.size = size
        self.position = 0
        self._raw = raw
        self.codec, self._blocks = decompressed(self._pull, where(path))

    def _pull(self, size: int) -> bytes:
        with input_errors(self.path):
            data = self._raw.read(size) or b""
        self.position += len(data)
        return data

    def read(self) -> bytes:
        """The next bytes, some at a time; empty at the end. InputError if they are damaged or cut off."""
        return next(self._blocks, b"")

    def seek(self, offset: int) -> None:
        """Go on at byte `offset` of a file that is not compressed."""
        with input_errors(self.path):
            self._raw.seek(offset)
        self.position = offset
        self._blocks = iter(lambda: self._pull(1 << 20), b"")

    def close(self) -> None:
        self._raw.close()

    def __enter__(self) -> Input:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_input(path: str, *, look: bool = False) -> Input:
    """Open an input for reading; its compression is told by its first bytes, never by its name.

    A pipe can be read once; with `look` what is read of it stays there for the reading that follows.
    """
    files = files_of(path)
    with input_errors(path):
        if path == "-" or files.kind(path) == "stream":
            return Input(path, _stream(path, look=look), None)
        size = files.identity(path)["size"]
        return Input(path, files.open(path), size)


def open_seekable(path: str) -> pa.NativeFile:
    """Open a file for random access as Arrow reads it."""
    with input_errors(path):
        return files_of(path).open_seekable(path)


# Writing


@contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Errors of the operating system become OutputError with the path and a remedy."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OutputError(f"{where(path)}: cannot be written: {reason}", HINTS.get(error.errno or 0, "")) from error


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary path in the same folder that becomes `path`, whole and on disk, when the block ends well.

    If the block or the disk fails, `path` is as it was before and the temporary file is gone. Errors of the
    operating system become OutputError. A link is followed; what is not a regular file is never replaced.
    """
    with os_errors(path):
        target = os.path.realpath(path)
        if os.path.lexists(target) and not os.path.isfile(target):
            raise OutputError(f"{where(path)}: is not a regular file, and is not replaced", "choose another output")
        temporary = _temporary(target)
        claim = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            with suppress(OSError):  # some network file systems have no such lock; then the process id decides
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(claim)
        sync_folder(os.path.dirname(target))


def write_bytes(path: str, data: bytes) -> None:
    """Write a small file whole, or not at all. OutputError if it cannot be written."""
    with replacing(path) as temporary, open(temporary, "wb") as out:
        out.write(data)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable, where the file system can."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise


def _temporary(target: str) -> str:
    """`.NAME.tmp-PID` beside the target; a long name is shortened to its digest."""
    folder, name = os.path.split(target)
    raw = os.fsencode(name)
    short = name if len(raw) < 230 else hashlib.blake2b(raw, digest_size=16).hexdigest()
    return os.path.join(folder, f".{short}.tmp-{os.getpid()}")


def sweep(folder: str | Path, name: str | None = None) -> list[str]:
    """Remove temporary files that `replacing` left in `folder` (for output `name`, or all); returns their names.

    Files of a process that is still at work stay.
    """
    prefix = None if name is None else os.path.basename(_temporary(name)).rsplit("-", 1)[0]
    removed = []
    with os_errors(str(folder)):
        for entry in os.listdir(folder):
            found = re.fullmatch(r"(\..+\.tmp)-([0-9]+)", entry, re.DOTALL)
            if not found or prefix not in (None, found[1]) or _in_use(os.path.join(folder, entry), int(found[2])):
                continue
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, entry))
                removed.append(entry)
    return removed


def _in_use(temporary: str, pid: int) -> bool:
    """Whether its writer is alive: it holds a lock on the file, which ends with the process."""
    try:
        descriptor = os.open(temporary, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return _alive(pid)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # alive, and another user's
    return True
