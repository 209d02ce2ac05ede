"""Decompression told by magic bytes: members and frames may follow each other, and damage never passes silently.

Output comes in bounded portions whatever the ratio, and a stream that ends early is an error.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

Pull = Callable[[int], bytes]

RAW_BYTES = 1 << 20
OUT_BYTES = 256 << 10
# One zstd byte can stand for 32 KiB, and its decoder takes no bound on output: 4 KiB give 128 MiB at worst.
FEED_BYTES = 4 << 10
LONGEST_MAGIC = 6


class Damaged(Exception):
    """What is wrong with a compressed stream, and at which byte of the file."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset


class Member(Protocol):
    """One gzip member, zstd frame, or bz2 or xz stream. `hungry`: needs input to go on."""

    @property
    def hungry(self) -> bool: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused(self) -> bytes: ...

    def decode(self, data: bytes) -> bytes: ...


class _Bounded:
    """bz2 and xz: their decoders keep what they cannot put out yet."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    @property
    def hungry(self) -> bool:
        return bool(self._decoder.needs_input)

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)

    @property
    def unused(self) -> bytes:
        return bytes(self._decoder.unused_data)

    def decode(self, data: bytes) -> bytes:
        return bytes(self._decoder.decompress(data, OUT_BYTES))


class _Gzip(_Bounded):
    """Size and checksum at the end of the member are verified by zlib."""

    def __init__(self) -> None:
        super().__init__(zlib.decompressobj(wbits=31))

    @property
    def hungry(self) -> bool:
        return not self._decoder.unconsumed_tail

    def decode(self, data: bytes) -> bytes:
        return bytes(self._decoder.decompress(self._decoder.unconsumed_tail + data, OUT_BYTES))


class _Zstd(_Bounded):
    """Frames with the longest windows too (`zstd --long=31`)."""

    def __init__(self) -> None:
        import zstandard

        super().__init__(zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj())

    @property
    def hungry(self) -> bool:
        return True

    def decode(self, data: bytes) -> bytes:
        import zstandard

        try:
            return self._decoder.decompress(data)  # type: ignore[no-any-return]
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error


CODECS: dict[str, Callable[[], Member]] = {
    "gzip": _Gzip,
    "bz2": lambda: _Bounded(bz2.BZ2Decompressor()),
    "xz": lambda: _Bounded(lzma.LZMADecompressor(lzma.FORMAT_XZ)),
    "zstd": _Zstd,
}


def codec_of(head: bytes) -> str | None:
    """The codec whose magic bytes `head` begins with; None if it is not compressed."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"BZh") and head[3:4].isdigit():
        return "bz2"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    # The second form is a frame to skip: parallel compressors begin with one.
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return "zstd"
    return None


def decompressed(pull: Pull) -> tuple[str | None, Iterator[bytes]]:
    """The codec of a stream, and its decompressed bytes. The iterator raises Damaged."""
    head = _filled(b"", pull)
    codec = codec_of(head)
    if codec is None:
        return None, _plain(head, pull)
    return codec, _gathered(_members(codec, head, pull))


def _filled(head: bytes, pull: Pull) -> bytes:
    while len(head) < LONGEST_MAGIC and (more := pull(RAW_BYTES)):
        head += more
    return head


def _plain(head: bytes, pull: Pull) -> Iterator[bytes]:
    while head:
        yield head
        head = pull(RAW_BYTES)


def _gathered(portions: Iterator[bytes]) -> Iterator[bytes]:
    held, size = [], 0
    for portion in portions:
        held.append(portion)
        size += len(portion)
        if size >= OUT_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if size:
        yield b"".join(held)


def _members(codec: str, rest: bytes, pull: Pull) -> Iterator[bytes]:
    offset = at = 0
    while rest:
        if codec_of(rest) != codec:
            raise Damaged(f"the {codec} data is followed by something else", offset)
        member = CODECS[codec]()
        while not member.eof:
            data = b""
            if member.hungry:
                if at == len(rest):
                    rest, at = pull(RAW_BYTES), 0
                data = rest[at : at + FEED_BYTES]
                if not data:
                    raise Damaged(f"the {codec} data is cut off: the file ends too early", offset)
            yield _decoded(codec, member, data, offset)
            at += len(data)
            offset += len(data)
        offset -= len(member.unused)
        rest, padding = _unpadded(member.unused + rest[at:], pull)
        offset += padding
        at = 0


def _decoded(codec: str, member: Member, data: bytes, offset: int) -> bytes:
    try:
        return member.decode(data)
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
        raise Damaged(f"the {codec} data is damaged ({error})", offset) from error


def _unpadded(rest: bytes, pull: Pull) -> tuple[bytes, int]:
    """What follows the zero bytes that may pad a member, and how many these are."""
    padding = 0
    while True:
        data = rest.lstrip(b"\0")
        padding += len(rest) - len(data)
        if data:
            return _filled(data, pull), padding
        rest = pull(RAW_BYTES)
        if not rest:
            return b"", padding
