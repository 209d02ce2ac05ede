"""Reading: any input as a stream of decompressed bytes, pipes and stdin included."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedcli.core.errors import InputError
from embedcli.storage.compression import RAW_BYTES, Damaged, decompressed
from embedcli.storage.local import Raw
from embedcli.storage.paths import format_location, get_file_system, is_local, translate_input_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

# A look at the first rows of each of 10,000 files should not read gigabytes.
LOOK_BYTES = 64 << 10


@dataclass
class _Once:
    """A stream that can be read once. What a look at its beginning consumed is kept, and read again."""

    raw: Any
    owned: bool
    kept: bytearray = field(default_factory=bytearray)
    taken: bool = False

    def pull(self, size: int) -> bytes:
        read = getattr(self.raw, "read1", self.raw.read)
        return read(size) or b""

    def finish(self) -> None:
        self.kept.clear()
        if self.owned:
            self.raw.close()


class _View:
    """One reading of a `_Once`, from its beginning."""

    def __init__(self, once: _Once, *, look: bool) -> None:
        self._once = once
        self._look = look
        self._at = 0
        once.taken = once.taken or not look

    def read(self, size: int, /) -> bytes:
        once = self._once
        data = bytes(once.kept[self._at : self._at + size])
        if not data:
            data = once.pull(size)
            if self._look:
                once.kept += data
        self._at += len(data)
        return data

    def seek(self, offset: int, /) -> int:
        raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

    def close(self) -> None:
        if not self._look:
            self._once.finish()


_STREAMS: dict[str, _Once] = {}


def _stream(path: str, *, look: bool) -> _View:
    # A notebook has a stdin of its own, without bytes.
    stdin = getattr(sys.stdin, "buffer", None) if path == "-" else None
    # Unbuffered: a thread that waits in a buffered read holds a lock that Python needs to exit.
    stdin = getattr(stdin, "raw", stdin)
    if path == "-" and stdin is None:
        raise InputError("stdin is closed, or has no bytes", "name a file, or feed rows to stdin")
    once = _STREAMS.get(path)
    if once is None or (stdin is not None and once.raw is not stdin):
        once = _STREAMS[path] = _Once(stdin or get_file_system(path).open(path), owned=stdin is None)
    if once.taken:
        raise InputError(f"{format_location(path)}: a pipe can be read only once", "write it to a file first")
    return _View(once, look=look)


class InputStream:
    """The decompressed bytes of one input, front to back.

    `position` is how many bytes of the file itself have been read, `size` how many it has (None: not known),
    `codec` how it is compressed (None: not at all, and then `seek` works on a file).
    """

    def __init__(self, path: str, raw: Raw, size: int | None, portion: int = RAW_BYTES) -> None:
        self.path = path
        self.size = size
        self.position = 0
        self._raw = raw
        self._portion = portion
        self.codec, self._blocks = decompressed(self._pull)

    def _pull(self, size: int) -> bytes:
        with translate_input_errors(self.path):
            data = self._raw.read(min(size, self._portion)) or b""
        self.position += len(data)
        return data

    def read(self) -> bytes:
        """The next bytes, some at a time; empty at the end. InputError if they are damaged or cut off."""
        try:
            return next(self._blocks, b"")
        except Damaged as error:
            message = f"{format_location(self.path)}: {error.reason} at byte {error.offset}"
            raise InputError(message, "get the file again, or keep what is readable of it in a new file") from error

    def seek(self, offset: int) -> None:
        """Go on at byte `offset` of a file that is not compressed."""
        with translate_input_errors(self.path):
            self._raw.seek(offset)
        self.position = offset
        self._blocks = iter(lambda: self._pull(RAW_BYTES), b"")

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.read, b"")

    def close(self) -> None:
        self._raw.close()

    def __enter__(self) -> InputStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_input(path: str, *, look: bool = False) -> InputStream:
    """Open an input for reading; its compression is told by its first bytes, never by its name.

    `look` reads in small portions, and what it takes from a pipe stays there for the reading that follows;
    otherwise a pipe can be read only once.
    """
    files = get_file_system(path)
    with translate_input_errors(path):
        stream = path == "-" or (is_local(path) and files.kind(path) == "stream")
        raw, size = (_stream(path, look=look), None) if stream else files.open_sized(path)
    try:
        return InputStream(path, raw, size, LOOK_BYTES if look else RAW_BYTES)
    except BaseException:
        raw.close()
        raise


def open_seekable(path: str) -> pa.NativeFile:
    """Open a file for random access as Arrow reads it."""
    with translate_input_errors(path):
        return get_file_system(path).open_seekable(path)
