"""The one place where output bytes leave this process, and a second look at them before they get their name."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from embedcli.core.errors import OutputError
from embedcli.storage.atomic_replace import make_durable, replace_file_atomically, sync_folder, translate_output_errors
from embedcli.storage.fs import parent_folder, remove
from embedcli.storage.paths import format_location, get_object_store, is_local

BUFFER_BYTES = 1 << 20
# Opens a new file for writing, unbuffered. A seam: the tests put disks behind it that fail or lie.
open_raw: Callable[[str], io.RawIOBase] = lambda path: io.FileIO(path, "wb")  # noqa: E731


class Out(io.BufferedIOBase):
    """A file that only grows. It keeps the digest of what it was given, to compare with what the disk gives back."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._file = io.BufferedWriter(raw, BUFFER_BYTES)
        # SHA-1 is the fastest digest of the standard library where the CPU helps; it guards against faults only.
        self.digest = hashlib.sha1(usedforsecurity=False)
        self._size = 0

    def write(self, data: Any, /) -> int:
        """Take all of `data`. Raises OSError if the disk does not."""
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self._file.write(view)
        self._size += len(view)
        return len(view)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            super().close()


@contextmanager
def write_atomically(path: str) -> Iterator[BinaryIO]:
    """A file object whose bytes become `path` when the block ends well: whole, on disk, and read back as written.

    Reading back costs a pass through the page cache; it is what notices a disk that drops or tears a write and
    reports success. Raises OutputError; then `path` is as it was before. What goes to an address lies in a
    nameless file on this machine until it is whole, and is uploaded then.
    """
    if not is_local(path):
        with _spooled(path) as spooled:
            yield spooled
        return
    with replace_file_atomically(path) as temporary, translate_output_errors(path), _out(path, temporary) as out:
        yield out


@contextmanager
def write_pair_atomically(path: str, record: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The same for two files that belong together: `path`, and the `record` that says what it is.

    Both are whole before either appears. The old record goes before the new `path` comes, and the new one comes last:
    where there is a record, it is true.
    """
    if not is_local(path):
        with _spooled(record) as last, _spooled(path, instead_of=record) as first:
            yield first, last
        return
    with (
        replace_file_atomically(record) as last_temporary,
        replace_file_atomically(path) as first_temporary,
        translate_output_errors(path),
    ):
        with _out(path, first_temporary) as first, _out(record, last_temporary) as last:
            yield first, last
        for temporary in (first_temporary, last_temporary):
            make_durable(temporary)
        # Of a link, what it points to: that is what is replaced.
        old = os.path.realpath(record)
        remove(old)
        sync_folder(parent_folder(old))


@contextmanager
def _out(path: str, temporary: str) -> Iterator[BinaryIO]:
    """A temporary file of `path` to write to. OutputError if in the end it does not hold what was written."""
    out = Out(open_raw(temporary))
    try:
        yield out  # type: ignore[misc]
    finally:
        out.close()
    with open(temporary, "rb") as back:
        if not _given_back(back, out):
            raise OutputError(
                f"{format_location(path)}: the disk does not give back what was written to it", "choose another disk"
            )


def _given_back(file: Any, out: Out) -> bool:
    """Whether a file, read from its beginning, holds what was written."""
    return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).digest() == out.digest.digest()


@contextmanager
def _spooled(path: str, instead_of: str | None = None) -> Iterator[BinaryIO]:
    """A file on this machine that is uploaded when the block ends well, after `instead_of` was removed."""
    with translate_output_errors(path), tempfile.TemporaryFile(buffering=0) as raw:
        out = Out(os.fdopen(os.dup(raw.fileno()), "wb", buffering=0))
        try:
            yield out  # type: ignore[misc]
        finally:
            out.close()
        raw.seek(0)
        if not _given_back(raw, out):
            raise OutputError("the temporary folder does not give back what was written to it", "set TMPDIR to another")
        if instead_of is not None:
            remove(instead_of)
        get_object_store(path).upload(path, raw, out.tell())


def write_bytes(path: str, data: Any) -> None:
    """Write a small file whole, or not at all. OutputError if it cannot be written."""
    if not is_local(path):
        get_object_store(path).put(path, data)
        return
    with write_atomically(path) as out:
        out.write(data)
