"""Read any input as a stream of decompressed bytes, including pipes and stdin."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedcli.core.errors import InputError
from embedcli.storage.compression import RAW_BYTES, CorruptStreamError, decompress_stream
from embedcli.storage.local import ReadableFile
from embedcli.storage.paths import format_location, get_file_system, is_local, translate_input_errors
from embedcli.storage.ranged_file import arrow_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from embedcli.storage.parallel_open import PrefetchedFiles

# A preview of each of 10,000 files should not read gigabytes.
PREVIEW_BYTES = 64 << 10


@dataclass
class _SinglePassStream:
    """A stream that can be read once. What a preview consumed is kept, and read again."""

    raw: Any
    closes_raw: bool
    previewed: bytearray = field(default_factory=bytearray)
    is_consumed: bool = False

    def read_more(self, size: int) -> bytes:
        read = getattr(self.raw, "read1", self.raw.read)
        return read(size) or b""

    def finish(self) -> None:
        self.previewed.clear()
        if self.closes_raw:
            self.raw.close()


class _StreamReader:
    """One reading of a stream, from its beginning."""

    def __init__(self, stream: _SinglePassStream, *, preview: bool) -> None:
        self._stream = stream
        self._preview = preview
        self._position = 0
        stream.is_consumed = stream.is_consumed or not preview

    def read(self, size: int, /) -> bytes:
        stream = self._stream
        data = bytes(stream.previewed[self._position : self._position + size])
        if not data:
            data = stream.read_more(size)
            if self._preview:
                stream.previewed += data
        self._position += len(data)
        return data

    def seek(self, offset: int, /) -> int:
        raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

    def close(self) -> None:
        if not self._preview:
            self._stream.finish()


# A pipe is consumed for the whole process, so what a preview read of it must be kept for the whole process.
_OPEN_STREAMS: dict[str, _SinglePassStream] = {}


def _open_stream(path: str, *, preview: bool) -> _StreamReader:
    # A notebook replaces stdin with an object that has no bytes.
    stdin = getattr(sys.stdin, "buffer", None) if path == "-" else None
    # Unbuffered: a thread that waits in a buffered read holds a lock that Python needs to exit.
    stdin = getattr(stdin, "raw", stdin)
    if path == "-" and stdin is None:
        raise InputError("stdin is closed or not binary", "name a file, or pipe rows to stdin")
    stream = _OPEN_STREAMS.get(path)
    if stream is None or (stdin is not None and stream.raw is not stdin):
        stream = _OPEN_STREAMS[path] = _SinglePassStream(
            stdin or get_file_system(path).open(path), closes_raw=stdin is None
        )
    if stream.is_consumed:
        raise InputError(f"{format_location(path)}: a pipe can be read only once", "write it to a file first")
    return _StreamReader(stream, preview=preview)


class InputStream:
    """The decompressed bytes of one input, from beginning to end.

    Attributes:
        path: The input.
        position: Bytes of the file itself that have been read.
        size: Bytes of the file itself; None if unknown.
        codec: How it is compressed; None if it is not, and then `seek` works on a file.
    """

    def __init__(self, path: str, raw: ReadableFile, size: int | None, block_size: int = RAW_BYTES) -> None:
        self.path = path
        self.size = size
        self.position = 0
        self._raw = raw
        self._block_size = block_size
        self.codec, self._blocks = decompress_stream(self._read_raw)

    def _read_raw(self, size: int) -> bytes:
        with translate_input_errors(self.path):
            data = self._raw.read(min(size, self._block_size)) or b""
        self.position += len(data)
        return data

    def read(self) -> bytes:
        """Return the next block of bytes, empty at the end. InputError if they are corrupt or cut off."""
        try:
            return next(self._blocks, b"")
        except CorruptStreamError as error:
            message = f"{format_location(self.path)}: {error.reason} at byte {error.offset}"
            raise InputError(message, "fetch the file again, or copy its readable part to a new file") from error

    def seek(self, offset: int) -> None:
        """Continue at byte `offset` of a file that is not compressed."""
        with translate_input_errors(self.path):
            self._raw.seek(offset)
        self.position = offset
        self._blocks = iter(lambda: self._read_raw(RAW_BYTES), b"")

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.read, b"")

    def close(self) -> None:
        self._raw.close()

    def __enter__(self) -> InputStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_input(path: str, *, preview: bool = False, prefetched: PrefetchedFiles | None = None) -> InputStream:
    """Open an input for reading; the compression is detected from its first bytes, not from its name.

    Args:
        path: A file, a pipe, an address, or `-` for stdin.
        preview: Preview the beginning: read in small blocks, and keep what is read of a pipe for the next reader.
            Otherwise a pipe can be read only once.
        prefetched: Take the file from here if it is ready.

    Raises:
        InputError: The input cannot be read.
    """
    files = get_file_system(path)
    raw: ReadableFile
    with translate_input_errors(path):
        opened = prefetched.take(path) if prefetched is not None else None
        if opened is not None:
            raw, size = opened, opened.size()
        elif path == "-" or (is_local(path) and files.kind(path) == "stream"):
            raw, size = _open_stream(path, preview=preview), None
        else:
            raw, size = files.open_with_size(path)
    try:
        return InputStream(path, raw, size, PREVIEW_BYTES if preview else RAW_BYTES)
    except BaseException:
        raw.close()
        raise


def open_seekable(path: str, *, prefetched: PrefetchedFiles | None = None) -> pa.NativeFile:
    """Open a file for random access by Arrow.

    Args:
        path: A file or an address.
        prefetched: Take the file from here if it is ready.

    Raises:
        InputError: The file cannot be read.
    """
    with translate_input_errors(path):
        opened = prefetched.take(path) if prefetched is not None else None
        return get_file_system(path).open_seekable(path) if opened is None else arrow_file(opened)
