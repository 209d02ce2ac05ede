"""Digests of outputs: computed while files are written, and compared with every byte before vectors are trusted.

A digest is part of the file with the metadata of an output: the footer of a Parquet or Arrow file, `NAME.ids.parquet`,
`NAME.space.json`, `_manifest.json`. It is the JSON object `{"self": "<SHA-256>"}` under the key `embedcli.sha256`, with
`data` for the digest of a second file. `self` is the digest of the file that holds it, its own 64 digits read as zeros.
A Lance dataset has a file `SHA256SUMS`, which `sha256sum --check` reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.storage.atomic_write import AppendOnlyWriter

if TYPE_CHECKING:
    import pyarrow.parquet as pq

DIGEST_KEY = "embedcli.sha256"
FOLDER_DIGESTS = "SHA256SUMS"
# Lance rewrites this file with each version, and finds the versions without it.
CHANGING_FILE = "latest_version_hint.json"
UNKNOWN_DIGEST = "0" * 64
SELF_FIELD = b'"self": "%s"'
# A record of which one bit was changed is still found, by its form or by its key and half of its digits.
RECORD_PATTERN = re.compile(rb'\{\s*(?:"data": "(?P<data>[0-9a-f]{64})",\s*)?"self": "(?P<own>[0-9a-f]{64})"\s*\}')
DIGITS = rb"[0-9a-f]{31}"
KEY = rb"embedcli\.sha256"
KEY_PATTERN = re.compile(KEY + rb".{0,160}" + DIGITS + rb"|" + DIGITS + rb".{0,160}" + KEY, re.DOTALL)
# The magic number of a file, the same at both ends, and the bytes behind its footer: the footer's length and the magic.
FOOTER_LENGTH_BYTES = 4
MAGIC_NUMBERS = (b"PAR1", b"ARROW1")
# Read at least this much, so that a damaged length does not hide the digest.
LEAST_FOOTER_BYTES = 1 << 20
BLOCK_BYTES = 8 << 20
DAMAGE_HINT = "restore the output from a copy, or encode the rows again"


class DigestWriter(AppendOnlyWriter):
    """An append-only file that hashes what it passes on, and can hold back the bytes that contain the digest."""

    def __init__(self, out: BinaryIO) -> None:
        super().__init__()
        self._out = out
        self._state = hashlib.sha256()
        self._held: bytearray | None = None

    def _append(self, view: memoryview) -> None:
        if self._held is None:
            self._state.update(view)
            self._out.write(view)
        else:
            self._held += view

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was written so far."""
        return self._state.hexdigest()

    def hold(self) -> None:
        """Keep what is written from now on in memory, until `seal`: the footer of a file."""
        self._held = bytearray()

    def seal(self) -> None:
        """Write what was held back, with the digest in the place of UNKNOWN_DIGEST."""
        held, self._held = bytes(self._held or b""), None
        self._state.update(held)
        self._out.write(_set_digest(held, UNKNOWN_DIGEST, self._state.hexdigest()))


def digest_record(data_digest: str | None = None) -> dict[str, str]:
    """Return the value of DIGEST_KEY before the file's own digest is known."""
    return ({} if data_digest is None else {"data": data_digest}) | {"self": UNKNOWN_DIGEST}


def hold_parquet_footer(writer: pq.ParquetWriter, out: DigestWriter, data_digest: str | None = None) -> None:
    """Add a digest to a Parquet file that has all its rows; once the writer is closed, `out` must be sealed."""
    out.hold()
    writer.add_key_value_metadata({DIGEST_KEY: json.dumps(digest_record(data_digest))})


def arrow_footer_metadata() -> dict[bytes, bytes]:
    """The metadata for the footer of an Arrow file; `hold` before the writer is closed, and `seal` afterwards."""
    return {DIGEST_KEY.encode(): json.dumps(digest_record()).encode()}


def seal_text(text: str) -> bytes:
    """Return a JSON document that contains `digest_record()` with the digest of its bytes."""
    data = text.encode()
    return _set_digest(data, UNKNOWN_DIGEST, hashlib.sha256(data).hexdigest())


def _set_digest(data: bytes, old: str, new: str) -> bytes:
    """Replace a file's own digest; columns and statistics, which come from the input, are before it."""
    head, found, tail = data.rpartition(SELF_FIELD % old.encode())
    if not found:
        raise AssertionError("the digest record is missing")
    return head + SELF_FIELD % new.encode() + tail


# Folders


def write_folder_digests(folder: str) -> None:
    """Write the digest of every file of a folder to a file in it."""
    lines = [f"{_hash_file(os.path.join(folder, name))}  {name}\n" for name in _list_tree(folder)]
    Path(folder, FOLDER_DIGESTS).write_text("".join(lines), "utf-8")


def check_folder_digests(folder: str) -> bool:
    """Compare the files of a folder with their digests; see `check_digests`."""
    path = os.path.join(folder, FOLDER_DIGESTS)
    if not os.path.exists(path):
        return False
    for line in Path(path).read_bytes().splitlines():
        digest, separator, name = line.partition(b"  ")
        file = os.path.join(folder, os.fsdecode(name))
        if not separator or not os.path.isfile(file):
            raise _damage_error(path, f"{storage.format_path(file)} is missing")
        if _hash_file(file).encode() != digest:
            raise _damage_error(file)
    return True


def _list_tree(folder: str) -> list[str]:
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != CHANGING_FILE)
    return sorted(path.relative_to(folder).as_posix() for path in files)


# Comparing


def check_digests(path: str, data_path: str | None = None) -> bool:
    """Read all bytes of an output and compare them with the digests that it records.

    Args:
        path: The file with the digest record.
        data_path: The second file that the record is about.

    Returns:
        Whether there is a digest record; outputs of other programs and of earlier versions have none.

    Raises:
        InputError: A file is damaged.
    """
    record = _read_record(path)
    if record is None:
        return False
    data, own = record["data"], record["own"]
    if _hash_file(path, own) != own.decode():
        raise _damage_error(path)
    if data_path is not None and (data is None or _hash_file(data_path) != data.decode()):
        raise _damage_error(data_path)
    return True


def _read_record(path: str) -> re.Match[bytes] | None:
    """Find the digest record of a file; InputError if it is there but cannot be read."""
    metadata = _read_metadata_bytes(path)
    records = list(RECORD_PATTERN.finditer(metadata))
    if records:
        return records[-1]
    if KEY_PATTERN.search(metadata):
        raise _damage_error(path, "its digest cannot be read")
    return None


def _read_metadata_bytes(path: str) -> bytes:
    """Read the footer of a Parquet or Arrow file, or all of a JSON file."""
    with storage.open_seekable(path) as source:
        size = source.size()
        beginning = source.read(max(map(len, MAGIC_NUMBERS)))
        magic = next((magic for magic in MAGIC_NUMBERS if beginning.startswith(magic)), None)
        if magic is None:
            source.seek(0)
            return bytes(source.read())
        behind = FOOTER_LENGTH_BYTES + len(magic)
        source.seek(max(0, size - behind))
        end = source.read(behind)
        length = int.from_bytes(end[:FOOTER_LENGTH_BYTES], "little")
        if not end.endswith(magic) or length > size - behind:
            raise _damage_error(path, "its end is not that of a complete file")
        start = max(0, size - behind - max(length, LEAST_FOOTER_BYTES))
        source.seek(start)
        return bytes(source.read(size - behind - start))


def _hash_file(path: str, own: bytes | None = None) -> str:
    """Hash a file, with its own digest `own` read as UNKNOWN_DIGEST."""
    state = hashlib.sha256()
    for block in _read_blocks(path) if own is None else _without_digest(_read_blocks(path), own):
        state.update(block)
    return state.hexdigest()


def _read_blocks(path: str) -> Iterator[bytes]:
    with storage.open_seekable(path) as source:
        while block := source.read(BLOCK_BYTES):
            yield block


def _without_digest(blocks: Iterator[bytes], own: bytes) -> Iterator[bytes]:
    """Yield the same bytes with the digest `own` replaced by UNKNOWN_DIGEST, also where a block ends within it."""
    wanted, replacement = SELF_FIELD % own, SELF_FIELD % UNKNOWN_DIGEST.encode()
    held = b""
    for block in blocks:
        joined = (held + block).replace(wanted, replacement)
        cut = max(0, len(joined) - len(wanted) + 1)
        held = joined[cut:]
        yield joined[:cut]
    yield held


def _damage_error(path: str, reason: str = "its bytes differ from the recorded SHA-256") -> InputError:
    return InputError(f"{storage.format_location(path)}: the file is damaged: {reason}", DAMAGE_HINT)
