"""Write output files: every byte passes here, and is read back before the file gets its name."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from embedcli.core.errors import OutputError
from embedcli.storage.atomic_replace import fsync_path, replace_file_atomically, sync_folder, translate_output_errors
from embedcli.storage.fs import parent_folder, remove
from embedcli.storage.paths import format_location, get_object_store, is_local

BUFFER_BYTES = 1 << 20
# Opens a new file for writing, unbuffered. Tests replace it with disks that fail or return other bytes.
open_raw: Callable[[str], io.RawIOBase] = lambda path: io.FileIO(path, "wb")  # noqa: E731


class AppendOnlyWriter(io.BufferedIOBase):
    """A file that is only written to, from its beginning on; subclasses define `_append`."""

    def __init__(self) -> None:
        self._size = 0

    def write(self, data: Any, /) -> int:
        """Write all of `data`. Raises OSError if the disk does not take it."""
        view = memoryview(data).cast("B")
        self._append(view)
        self._size += len(view)
        return len(view)

    def _append(self, view: memoryview) -> None:
        raise NotImplementedError

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size


class HashingWriter(AppendOnlyWriter):
    """An append-only file with the digest of what was written, for the read-back check."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__()
        self._file = io.BufferedWriter(raw, BUFFER_BYTES)
        # SHA-1 is the fastest digest of the standard library with CPU support; it only has to detect errors.
        self.digest = hashlib.sha1(usedforsecurity=False)

    def _append(self, view: memoryview) -> None:
        self.digest.update(view)
        self._file.write(view)

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            super().close()


@contextmanager
def write_atomically(path: str, mode_of: str | None = None) -> Iterator[BinaryIO]:
    """Replace a file with the bytes that the block writes.

    The file gets its name when the block succeeds, the bytes are on disk and the read-back check has passed. Reading
    back costs one pass through the page cache; it notices a disk that drops or tears a write and reports success.

    Args:
        path: The file to replace or create. For an address the bytes are collected in a nameless local file first,
            which is then uploaded.
        mode_of: A file whose mode a new file gets, if it exists.

    Yields:
        The file object to write to.

    Raises:
        OutputError: Writing failed; `path` stays as it was.
    """
    if not is_local(path):
        with _spool_and_upload(path) as spooled:
            yield spooled
        return
    with (
        replace_file_atomically(path, mode_of) as temporary,
        translate_output_errors(path),
        _open_verified(path, temporary) as out,
    ):
        yield out


@contextmanager
def write_pair_atomically(path: str, record: str) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Replace two files that belong together: `path`, and the `record` that describes it.

    Both are complete before either appears. The old record is removed before the new `path` appears, and the new record
    appears last: a record that exists is true.

    Yields:
        The file objects for `path` and for `record`.

    Raises:
        OutputError: Writing failed.
    """
    if not is_local(path):
        with _spool_and_upload(record) as last, _spool_and_upload(path, instead_of=record) as first:
            yield first, last
        return
    with (
        replace_file_atomically(record) as last_temporary,
        replace_file_atomically(path) as first_temporary,
        translate_output_errors(path),
    ):
        with _open_verified(path, first_temporary) as first, _open_verified(record, last_temporary) as last:
            yield first, last
        for temporary in (first_temporary, last_temporary):
            fsync_path(temporary)
        # A link is followed: its target is replaced.
        old = os.path.realpath(record)
        remove(old)
        sync_folder(parent_folder(old))


@contextmanager
def _open_verified(path: str, temporary: str) -> Iterator[BinaryIO]:
    """Open a temporary file of `path` for writing. OutputError if the read-back check fails in the end."""
    out = HashingWriter(open_raw(temporary))
    try:
        yield out  # type: ignore[misc]
    finally:
        out.close()
    with open(temporary, "rb") as written:
        if not _reads_back_as_written(written, out):
            raise OutputError(
                f"{format_location(path)}: read-back check failed: the file differs from what was written",
                "choose another disk",
            )


def _reads_back_as_written(file: Any, out: HashingWriter) -> bool:
    """Whether a file at its beginning contains what was written."""
    return hashlib.file_digest(file, lambda: hashlib.sha1(usedforsecurity=False)).digest() == out.digest.digest()


@contextmanager
def _spool_and_upload(path: str, instead_of: str | None = None) -> Iterator[BinaryIO]:
    """Open a nameless local file that is uploaded when the block succeeds, after `instead_of` was removed."""
    with translate_output_errors(path), tempfile.TemporaryFile(buffering=0) as raw:
        out = HashingWriter(os.fdopen(os.dup(raw.fileno()), "wb", buffering=0))
        try:
            yield out  # type: ignore[misc]
        finally:
            out.close()
        raw.seek(0)
        if not _reads_back_as_written(raw, out):
            raise OutputError(
                "read-back check failed: a file in the temporary folder differs from what was written",
                "set TMPDIR to a folder on another disk",
            )
        if instead_of is not None:
            remove(instead_of)
        get_object_store(path).upload_file(path, raw, out.tell())


def write_bytes(path: str, data: Any) -> None:
    """Write a small file completely or not at all. OutputError if it cannot be written."""
    if not is_local(path):
        get_object_store(path).write_object(path, data)
        return
    with write_atomically(path) as out:
        out.write(data)
