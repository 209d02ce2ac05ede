"""Files at an address: what storage.local does for this machine, with ranged reads and whole uploads."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, BinaryIO

from embedcli.core.errors import OutputError, UsageError
from embedcli.storage import lease_lock
from embedcli.storage.clients import Client, client_of
from embedcli.storage.errors import BUCKETS, OutputRefused, creating, family, reaching
from embedcli.storage.glob import expression, halves
from embedcli.storage.local import Kind, Raw
from embedcli.storage.ranged_file import READY, Fetch, RangedFile
from embedcli.storage.url_redaction import mask_secrets

if TYPE_CHECKING:
    import pyarrow as pa

COPY_BYTES = 1 << 20
# What tells one version of a file from the next, by the names that servers and libraries give it.
VERSION_KEYS = (
    "ETag",
    "etag",
    "generation",
    "blob_id",
    "Content-MD5",
    "content_md5",
    "Last-Modified",
    "last_modified",
    "mtime",
)
MD5 = re.compile(r"[0-9a-f]{32}")


class RemoteFiles:
    """The files of one server. FileNotFoundError for what is not there, StoreRefused for all other trouble."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._fs = client.fs

    # Looking

    def kind(self, path: str) -> Kind | None:
        """What lies there; a prefix of other names is a folder."""
        import pyarrow.fs as pafs

        if self._client.raw is not None:
            return self._raw_kind(path)
        with reaching(path):
            found = self._fs.get_file_info(self._client.name(path)).type
        return {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}.get(found)  # type: ignore[return-value]

    def _raw_kind(self, path: str) -> Kind | None:
        try:
            with reaching(path):
                return "folder" if self._client.raw.info(self._client.name(path))["type"] == "directory" else "file"
        except FileNotFoundError:
            return None

    def missing(self, path: str) -> str:
        """What is not there, when `path` is not."""
        bucket = "/".join(path.split("/")[:3])
        what = BUCKETS.get(family(path))
        if what is not None and self.kind(bucket) is None:
            return f"there is no {what} {bucket}"
        return "no such file" + (" or folder" if self._client.lists else "")

    def names(self, folder: str) -> list[str]:
        """The names in a folder that are not folders themselves."""
        return [info.base_name for info in self._listed(folder, recursive=False)]

    def matches(self, pattern: str) -> list[str]:
        """The addresses that match a pattern: * and ? within a name, ** across folders."""
        if not self._client.lists:
            raise UsageError(
                f"{mask_secrets(pattern)}: no such file, and web servers list none",
                "check the address, and name each file",
            )
        fixed, magic = halves(pattern)
        top = self._client.name(fixed).rstrip("/")
        wanted = re.compile(expression(magic), re.DOTALL)
        deep = "/" in magic
        keys = (info.path.removeprefix(top).lstrip("/") for info in self._listed(fixed, recursive=deep))
        return [f"{fixed}/{key}" for key in keys if wanted.fullmatch(key)]

    def _listed(self, folder: str, *, recursive: bool) -> list[Any]:
        import pyarrow.fs as pafs

        selector = pafs.FileSelector(self._client.name(folder), allow_not_found=True, recursive=recursive)
        with reaching(folder):
            return [info for info in self._fs.get_file_info(selector) if info.type == pafs.FileType.File]

    def identity(self, path: str) -> dict[str, int]:
        """`size`, and the digest of what the server says of the version: ETag, or the time of the last change."""
        size, version = self._version(path)
        if size is None:
            size = os.path.getsize(self.nearby(path))
        return {"size": size, "version": int.from_bytes(hashlib.blake2b(version.encode(), digest_size=6).digest())}

    def _version(self, path: str) -> tuple[int | None, str]:
        with reaching(path):
            if self._client.raw is not None:
                info = self._client.raw.info(self._client.name(path))
                return info.get("size"), _version_in(info)
            with self._fs.open_input_file(self._client.name(path)) as file:
                return file.size(), _version_in(_facts(file))

    # Reading

    def open(self, path: str) -> Raw:
        opened: Raw = self._opened(path)
        return opened

    def open_sized(self, path: str) -> tuple[Raw, int]:
        """An open file and its size in bytes, by one look at the object."""
        opened = self._opened(path)
        return opened, opened.size() if isinstance(opened, RangedFile) else os.fstat(opened.fileno()).st_size

    def open_seekable(self, path: str) -> pa.NativeFile:
        import pyarrow as pa

        return pa.PythonFile(self._opened(path), mode="r")

    @property
    def lists(self) -> bool:
        """Whether this is a store, and no web server."""
        return self._client.lists

    def opened_warm(self, path: str) -> RangedFile:
        """An open file that holds the bytes which are read first: all of a small one, the footer of Parquet."""
        file = self._ranged(path)
        if file.size():
            file.warm(at_end=path.lower().endswith((".parquet", ".pq")))
        return file

    def _opened(self, path: str) -> Any:
        ready = READY.pop(path, None)
        if ready is not None:
            return ready.result()
        if not self._client.lists and not self._ranges(path):
            return open(self.nearby(path), "rb")
        return self._ranged(path)

    def _ranged(self, path: str) -> RangedFile:
        """An open file. fsspec's own buffers are left out: they read 5 MiB ahead of every request."""
        raw, name = self._client.raw, self._client.name(path)
        with reaching(path):
            if raw is not None and raw.async_impl and self._client.lists:
                return RangedFile(path, raw.info(name)["size"], fetching(path, partial(_part, raw, name)))
            if raw is not None:
                file = raw.open(name, "rb", cache_type="none")
                return RangedFile(path, file.size, fetching(path, partial(_read_at, file)), file.close)
            file = self._fs.open_input_file(name)
            return RangedFile(path, file.size(), fetching(path, partial(_native_at, file)), file.close)

    def _ranges(self, path: str) -> bool:
        """Whether the server gives parts of a file: a web server may not, and then may send all of it each time."""
        if self._client.lists:
            return True
        with reaching(path):
            info = self._client.raw.info(self._client.name(path))
            if info.get("size") is None or info.get("partial") is False:
                return False
            return info["size"] == 0 or _gives_parts(self._client.raw, self._client.name(path))

    def nearby(self, path: str) -> str:
        """A copy on this machine, made once per process and removed at its end."""
        return _copied(path, self._version(path)[1])

    def fetch_to(self, path: str, out: BinaryIO) -> None:
        """Copy a whole file; InputRefused if fewer bytes come than the server promised."""
        with reaching(path):
            if self._client.lists:
                source: Any = self._opened(path)
                with source:
                    shutil.copyfileobj(source, out, 8 * COPY_BYTES)
            else:
                self._client.raw.get_file(self._client.name(path), out)

    # Writing

    def put(self, path: str, data: Any) -> None:
        """Upload an object from memory (or a memory map): whole, or not visible. OutputRefused if it cannot be."""
        self._writable(path)
        with creating(path):
            if self._client.raw is not None:
                self._client.raw.pipe_file(self._client.name(path), bytes(data))
            else:
                # One write and then close: a signal cannot come in between, and a failed write never completes.
                stream = self._fs.open_output_stream(self._client.name(path), compression=None)
                stream.write(data)
                stream.close()
        self._check(path, memoryview(data))

    def upload(self, path: str, spooled: BinaryIO, size: int) -> None:
        """Upload a spooled file: whole, or not visible."""
        import pyarrow as pa

        if size == 0:
            self.put(path, b"")
            return
        name = f"/dev/fd/{spooled.fileno()}"
        if self._client.raw is None:
            with pa.memory_map(name) as mapped:
                self.put(path, mapped.read_buffer())
            return
        self._writable(path)
        with creating(path):
            self._client.raw.put_file(name, self._client.name(path))
        self._check_size(path, size)

    def _check(self, path: str, data: memoryview) -> None:
        """Compare what the store says it has: the size, and the MD5 where it tells one."""
        if self._client.raw is not None:
            self._check_size(path, data.nbytes)
            return
        with reaching(path, writing=True), self._fs.open_input_file(self._client.name(path)) as file:
            tag = _digest(_facts(file))
            same = file.size() == data.nbytes
            # An encrypted object's ETag looks like an MD5 and is none: then only reading it back can tell.
            if same and MD5.fullmatch(tag) and hashlib.md5(data, usedforsecurity=False).hexdigest() != tag:
                same = file.read() == data
        if not same:
            raise _altered(path)

    def _check_size(self, path: str, size: int) -> None:
        with reaching(path, writing=True):
            there = self._client.raw.info(self._client.name(path)).get("size")
        if there != size:
            raise _altered(path)

    def _writable(self, path: str) -> None:
        if self._client.writes:
            return
        hub = path.startswith("hf://")
        raise UsageError(
            f"{mask_secrets(path)}: can be read, not written",
            "write to a folder here, then: hf upload REPO FOLDER"
            if hub
            else "write to a file here, or to s3://, gs:// or az://",
        )

    # Folders and removal

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError), reaching(path, writing=True):
            self._fs.delete_file(self._client.name(path))

    def make_folder(self, path: str, *, parents: bool = True) -> None:
        """Folders are only names here: nothing to make, but the address must be one that can be written to."""
        self._writable(path)

    def remove_folder(self, path: str) -> None:
        """Remove all that lies under a folder."""
        with suppress(FileNotFoundError), reaching(path, writing=True):
            if family(path) != "gs":
                self._fs.delete_dir(self._client.name(path))
                return
            # pyarrow's client of gs:// calls a folder missing that has no object of its own name.
            for info in self._listed(path, recursive=True):
                self._fs.delete_file(info.path)

    # Locks

    def lock(self, path: str) -> Callable[[], None]:
        """Take a lease, see storage.lease. Raises Taken."""
        self._writable(path)
        return lease_lock.take(self, path)

    def lock_shared(self, path: str) -> Callable[[], None]:
        """Take a lease beside others that share it, see storage.lease. Raises Taken."""
        self._writable(path)
        return lease_lock.take_shared(self, path)

    def small(self, path: str) -> tuple[bytes, float] | None:
        """A small object whole, and its age in seconds by this machine's clock; None if it is not there."""
        try:
            with reaching(path):
                if self._client.raw is not None:
                    name = self._client.name(path)
                    written = self._client.raw.modified(name)
                    return bytes(self._client.raw.cat_file(name)), time.time() - written.timestamp()
                info = self._fs.get_file_info(self._client.name(path))
                with self._fs.open_input_file(self._client.name(path)) as file:
                    return bytes(file.read()), time.time() - (info.mtime.timestamp() if info.mtime else 0.0)
        except FileNotFoundError:
            return None


def files_at(path: str) -> RemoteFiles:
    """The files of an address. UsageError for one that nobody serves."""
    return RemoteFiles(client_of(path))


def fetching(path: str, ask: Fetch) -> Fetch:
    """The same request, whose errors become StoreRefused."""

    def fetch(start: int, count: int) -> bytes:
        with reaching(path):
            return bytes(ask(start, count))

    return fetch


def _part(raw: Any, name: str, start: int, count: int) -> bytes:
    return bytes(raw.cat_file(name, start=start, end=start + count))


def _read_at(file: Any, start: int, count: int) -> bytes:
    file.seek(start)
    return bytes(file.read(count))


def _native_at(file: Any, start: int, count: int) -> bytes:
    return bytes(file.read_at(count, start))


def _version_in(facts: Mapping[str, Any]) -> str:
    """The first of VERSION_KEYS that a store tells; empty if it tells none."""
    return next((str(facts[key]) for key in VERSION_KEYS if facts.get(key)), "")


def _digest(facts: dict[str, str]) -> str:
    """The MD5 that a store tells, in hexadecimal; else its tag."""
    return base64.b64decode(facts["md5Hash"]).hex() if facts.get("md5Hash") else facts.get("ETag", "").strip('"')


def _facts(file: Any) -> dict[str, str]:
    """What the store tells of an object beside its bytes."""
    return {_text(key): _text(value) for key, value in (file.metadata() or {}).items()}


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def _altered(path: str) -> OutputError:
    return OutputRefused(
        f"{mask_secrets(path)}: the store does not hold what was written to it",
        "run the same command again, once no other program writes there",
    )


def _gives_parts(raw: Any, name: str) -> bool:
    """Ask for one byte and look no further than the answer's status: 206 is a part."""
    import asyncio

    async def status() -> int:
        session = await raw.set_session()
        async with session.get(name, headers={"Range": "bytes=0-0", "Accept-Encoding": "identity"}) as answer:
            return int(answer.status)

    return asyncio.run_coroutine_threadsafe(status(), raw.loop).result() == 206


@lru_cache(maxsize=1024)
def _copied(path: str, version: str) -> str:
    files, folder = files_at(path), _scratch()
    descriptor, name = tempfile.mkstemp(dir=folder.name)
    with open(descriptor, "wb") as out:
        files.fetch_to(path, out)
    return name


@lru_cache(maxsize=1)
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="embedcli-")
