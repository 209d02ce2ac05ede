"""The file system of an address: the methods of `LocalFileSystem`, with ranged reads and complete uploads."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, BinaryIO

from embedcli.core.errors import OutputError, UsageError
from embedcli.storage import lease_lock
from embedcli.storage.clients import Client, get_client
from embedcli.storage.errors import (
    BUCKET_WORDS,
    ObjectStoreWriteError,
    scheme_family,
    translate_create_errors,
    translate_store_errors,
)
from embedcli.storage.glob import glob_to_regex, split_pattern
from embedcli.storage.local import PathKind, ReadableFile
from embedcli.storage.object_facts import answers_range_requests, find_version, md5_or_etag, read_metadata
from embedcli.storage.ranged_file import Fetch, RangedFile, arrow_file
from embedcli.storage.url_redaction import mask_secrets, unmasked

if TYPE_CHECKING:
    import pyarrow as pa

COPY_BYTES = 1 << 20
MD5 = re.compile(r"[0-9a-f]{32}")


class RemoteFileSystem:
    """The files of one server.

    Every method raises FileNotFoundError for a file that does not exist and ObjectStoreError for any other failure.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._fs = client.fs

    # Listing and identity

    def kind(self, path: str) -> PathKind | None:
        """Return what a path is; None if it does not exist. A prefix of other names is a folder."""
        import pyarrow.fs as pafs

        if self._client.fsspec_fs is not None:
            return self._kind_in_fsspec(path)
        with translate_store_errors(path):
            found = self._fs.get_file_info(self._client.fs_path(path)).type
        return {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}.get(found)  # type: ignore[return-value]

    def _kind_in_fsspec(self, path: str) -> PathKind | None:
        try:
            with translate_store_errors(path):
                return (
                    "folder"
                    if self._client.fsspec_fs.info(self._client.fs_path(path))["type"] == "directory"
                    else "file"
                )
        except FileNotFoundError:
            return None

    def describe_missing_bucket(self, path: str) -> str | None:
        """Return a message if the bucket of a missing file does not exist either; None if it does."""
        bucket = "/".join(path.split("/")[:3])
        word = BUCKET_WORDS.get(scheme_family(path))
        return f"there is no {word} {bucket}" if word is not None and self.kind(bucket) is None else None

    def list_files(self, folder: str) -> list[str]:
        """Return the names in a folder that are not folders themselves."""
        return [info.base_name for info in self._list(folder, recursive=False)]

    def walk_files(self, folder: str, is_hidden: Callable[[str], bool]) -> tuple[list[str], list[str]]:
        """List the files in a folder and its subfolders, see `LocalFileSystem.walk_files`; there are no links."""
        top = self._client.fs_path(folder).rstrip("/")
        names = (info.path.removeprefix(top).lstrip("/") for info in self._list(folder, recursive=True))
        return [name for name in names if not any(map(is_hidden, name.split("/")))], []

    def find_matches(self, pattern: str) -> list[str]:
        """Return the addresses that match a pattern: * and ? within a name, ** across folders."""
        if not self._client.can_list:
            raise UsageError(
                f"{mask_secrets(pattern)}: no such file, and web servers cannot list files",
                "check the address, and name each file",
            )
        fixed, magic = split_pattern(pattern)
        top = self._client.fs_path(fixed).rstrip("/")
        regex = re.compile(glob_to_regex(magic), re.DOTALL)
        is_deep = "/" in magic
        keys = (info.path.removeprefix(top).lstrip("/") for info in self._list(fixed, recursive=is_deep))
        return [f"{fixed}/{key}" for key in keys if regex.fullmatch(key)]

    def _list(self, folder: str, *, recursive: bool) -> list[Any]:
        import pyarrow.fs as pafs

        selector = pafs.FileSelector(self._client.fs_path(folder), allow_not_found=True, recursive=recursive)
        with translate_store_errors(folder):
            return [info for info in self._fs.get_file_info(selector) if info.type == pafs.FileType.File]

    def identity(self, path: str) -> dict[str, int]:
        """Return `size` and the digest of the version that the server reports: ETag or time of last change."""
        size, version = self._version(path)
        if size is None:
            size = os.path.getsize(self.local_copy(path))
        return {"size": size, "version": int.from_bytes(hashlib.blake2b(version.encode(), digest_size=6).digest())}

    def _version(self, path: str) -> tuple[int | None, str]:
        with translate_store_errors(path):
            if self._client.fsspec_fs is not None:
                info = self._client.fsspec_fs.info(self._client.fs_path(path))
                return info.get("size"), find_version(info)
            with self._fs.open_input_file(self._client.fs_path(path)) as file:
                return file.size(), find_version(read_metadata(file))

    # Reading

    def open(self, path: str) -> ReadableFile:
        file: ReadableFile = self._open(path)
        return file

    def open_with_size(self, path: str) -> tuple[ReadableFile, int]:
        """Open a file; return it and its size in bytes."""
        file = self._open(path)
        return file, file.size() if isinstance(file, RangedFile) else os.fstat(file.fileno()).st_size

    def open_seekable(self, path: str) -> pa.NativeFile:
        return arrow_file(self._open(path))

    @property
    def can_list(self) -> bool:
        """Whether the server can list folders; web servers cannot."""
        return self._client.can_list

    def open_prefetched(self, path: str) -> RangedFile:
        """Open a file with the bytes that are read first: all of a small file, the footer of Parquet."""
        file = self._open_ranged(path)
        if file.size():
            file.prefetch(at_end=path.lower().endswith((".parquet", ".pq")))
        return file

    def _open(self, path: str) -> Any:
        if not self._client.can_list and not self._serves_ranges(path):
            return open(self.local_copy(path), "rb")
        return self._open_ranged(path)

    def _open_ranged(self, path: str) -> RangedFile:
        """Open a file without fsspec's buffers, which would read 5 MiB ahead of every request."""
        raw, name = self._client.fsspec_fs, self._client.fs_path(path)
        with translate_store_errors(path):
            if raw is not None and raw.async_impl and self._client.can_list:
                return RangedFile(
                    path, raw.info(name)["size"], _translate_fetch_errors(path, partial(_fetch_part, raw, name))
                )
            if raw is not None:
                file = raw.open(name, "rb", cache_type="none")
                return RangedFile(
                    path, file.size, _translate_fetch_errors(path, partial(_fetch_by_seek, file)), file.close
                )
            file = self._fs.open_input_file(name)
            return RangedFile(
                path, file.size(), _translate_fetch_errors(path, partial(_fetch_from_arrow, file)), file.close
            )

    def _serves_ranges(self, path: str) -> bool:
        """Whether the server supports ranges. A web server without them would send the complete file each time."""
        if self._client.can_list:
            return True
        with translate_store_errors(path):
            info = self._client.fsspec_fs.info(self._client.fs_path(path))
            if info.get("size") is None or info.get("partial") is False:
                return False
            return info["size"] == 0 or answers_range_requests(self._client.fsspec_fs, self._client.fs_path(path))

    def local_copy(self, path: str) -> str:
        """Return the path of a local copy, made once per process and removed when it ends."""
        return _download_once(unmasked(path), self._version(path)[1])

    def download(self, path: str, out: BinaryIO) -> None:
        """Copy a complete file. ObjectStoreError if fewer bytes arrive than the server announced."""
        with translate_store_errors(path):
            if self._client.can_list:
                source: Any = self._open(path)
                with source:
                    shutil.copyfileobj(source, out, 8 * COPY_BYTES)
            else:
                self._client.fsspec_fs.get_file(self._client.fs_path(path), out)

    # Writing

    def write_object(self, path: str, data: Any) -> None:
        """Upload an object from memory or a memory map; it becomes visible complete or not at all."""
        self._require_writable(path)
        with translate_create_errors(path):
            if self._client.fsspec_fs is not None:
                self._client.fsspec_fs.pipe_file(self._client.fs_path(path), bytes(data))
            else:
                # One write and then close: no signal can come in between, and a failed write never completes.
                stream = self._fs.open_output_stream(self._client.fs_path(path), compression=None)
                stream.write(data)
                stream.close()
        self._verify_content(path, memoryview(data))

    def upload_file(self, path: str, spooled: BinaryIO, size: int) -> None:
        """Upload a spooled file; it becomes visible complete or not at all."""
        import pyarrow as pa

        if size == 0:
            self.write_object(path, b"")
            return
        name = f"/dev/fd/{spooled.fileno()}"
        if self._client.fsspec_fs is None:
            with pa.memory_map(name) as mapped:
                self.write_object(path, mapped.read_buffer())
            return
        self._require_writable(path)
        with translate_create_errors(path):
            self._client.fsspec_fs.put_file(name, self._client.fs_path(path))
        self._verify_size(path, size)

    def _verify_content(self, path: str, data: memoryview) -> None:
        """Compare the size, and the MD5 if the store reports one, with what was written."""
        if self._client.fsspec_fs is not None:
            self._verify_size(path, data.nbytes)
            return
        with translate_store_errors(path, writing=True), self._fs.open_input_file(self._client.fs_path(path)) as file:
            tag = md5_or_etag(read_metadata(file))
            same = file.size() == data.nbytes
            # The ETag of an encrypted object looks like an MD5 but is not one: only reading it back can tell.
            if same and MD5.fullmatch(tag) and hashlib.md5(data, usedforsecurity=False).hexdigest() != tag:
                same = file.read() == data
        if not same:
            raise _altered_error(path)

    def _verify_size(self, path: str, size: int) -> None:
        with translate_store_errors(path, writing=True):
            size_in_store = self._client.fsspec_fs.info(self._client.fs_path(path)).get("size")
        if size_in_store != size:
            raise _altered_error(path)

    def _require_writable(self, path: str) -> None:
        if self._client.can_write:
            return
        raise UsageError(
            f"{mask_secrets(path)}: can be read but not written",
            "write to a local folder, then: hf upload REPO FOLDER"
            if scheme_family(path) == "hf"
            else "write to a local file, or to s3://, gs:// or az://",
        )

    # Folders and removal

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        with suppress(FileNotFoundError), translate_store_errors(path, writing=True):
            self._fs.delete_file(self._client.fs_path(path))

    def move(self, path: str, new_path: str) -> None:
        """Copy an object inside the store, where it replaces another one, and remove it under its old name."""
        with translate_store_errors(new_path, writing=True):
            self._fs.copy_file(self._client.fs_path(path), self._client.fs_path(new_path))
        self.remove(path)

    def make_folder(self, path: str, *, parents: bool = True) -> None:
        """Check that the address can be written to. Folders are only prefixes of names and need not be created."""
        self._require_writable(path)

    def remove_folder(self, path: str) -> None:
        """Remove everything in a folder."""
        with suppress(FileNotFoundError), translate_store_errors(path, writing=True):
            if scheme_family(path) != "gs":
                self._fs.delete_dir(self._client.fs_path(path))
                return
            # pyarrow's gs:// client reports a folder without an object of its own name as missing.
            for info in self._list(path, recursive=True):
                self._fs.delete_file(info.path)

    # Locks

    def acquire_lock(self, path: str) -> Callable[[], None]:
        """Acquire a lease, see `lease_lock.acquire_exclusive`."""
        self._require_writable(path)
        return lease_lock.acquire_exclusive(self, path)

    def acquire_shared_lock(self, path: str) -> Callable[[], None]:
        """Acquire a lease that others share, see `lease_lock.acquire_shared`."""
        self._require_writable(path)
        return lease_lock.acquire_shared(self, path)

    def read_with_age(self, path: str) -> tuple[bytes, float] | None:
        """Read a small object and its age in seconds by the clock of this machine; None if it does not exist."""
        try:
            with translate_store_errors(path):
                if self._client.fsspec_fs is not None:
                    name = self._client.fs_path(path)
                    modified = self._client.fsspec_fs.modified(name)
                    return bytes(self._client.fsspec_fs.cat_file(name)), time.time() - modified.timestamp()
                info = self._fs.get_file_info(self._client.fs_path(path))
                with self._fs.open_input_file(self._client.fs_path(path)) as file:
                    return bytes(file.read()), time.time() - (info.mtime.timestamp() if info.mtime else 0.0)
        except FileNotFoundError:
            return None


def remote_file_system(path: str) -> RemoteFileSystem:
    """Return the file system of an address. UsageError for an unknown scheme or a missing extra."""
    return RemoteFileSystem(get_client(path))


def _translate_fetch_errors(path: str, ask: Fetch) -> Fetch:
    """Wrap a request so that its errors become ObjectStoreError."""

    def fetch(start: int, count: int) -> bytes:
        with translate_store_errors(path):
            return bytes(ask(start, count))

    return fetch


def _fetch_part(raw: Any, name: str, start: int, count: int) -> bytes:
    return bytes(raw.cat_file(name, start=start, end=start + count))


def _fetch_by_seek(file: Any, start: int, count: int) -> bytes:
    file.seek(start)
    return bytes(file.read(count))


def _fetch_from_arrow(file: Any, start: int, count: int) -> bytes:
    return bytes(file.read_at(count, start))


def _altered_error(path: str) -> OutputError:
    return ObjectStoreWriteError(
        f"{mask_secrets(path)}: read-back check failed: the object differs from what was written",
        "make sure that no other program writes there, then run the same command again",
    )


@lru_cache(maxsize=1024)
def _download_once(path: str, version: str) -> str:
    files, folder = remote_file_system(path), _download_folder()
    descriptor, name = tempfile.mkstemp(dir=folder.name)
    with open(descriptor, "wb") as out:
        files.download(path, out)
    return name


@lru_cache(maxsize=1)
def _download_folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="embedcli-")
