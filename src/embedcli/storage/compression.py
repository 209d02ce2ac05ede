"""Streaming decompression of gzip, bz2, xz and zstd, with the codec detected from magic bytes.

Concatenated members and frames are supported. Output comes in blocks of bounded size whatever the compression ratio,
and corrupt or truncated data is always an error.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

ReadBytes = Callable[[int], bytes]

RAW_BYTES = 1 << 20
OUT_BYTES = 256 << 10
# One zstd byte can expand to 32 KiB, and its decoder has no output limit: 1 KiB gives 32 MiB at worst. Smaller portions
# are slower: 0.34 s for 40 MB of zstd with 1 or 4 KiB, 0.56 s with 256 bytes.
FEED_BYTES = 1 << 10
MAX_MAGIC_BYTES = 6


class CorruptStreamError(Exception):
    """A compressed stream is corrupt or truncated.

    Attributes:
        reason: What is wrong.
        offset: The byte of the compressed file where it was noticed.
    """

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset


class StreamDecoder(Protocol):
    """Decoder of one gzip member, zstd frame, or bz2 or xz stream."""

    @property
    def needs_input(self) -> bool: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decode(self, data: bytes) -> bytes: ...


class _Bounded:
    """bz2 and xz: their decoders keep input that exceeds the output limit."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    @property
    def needs_input(self) -> bool:
        return bool(self._decoder.needs_input)

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._decoder.unused_data)

    def decode(self, data: bytes) -> bytes:
        return bytes(self._decoder.decompress(data, OUT_BYTES))


class _Gzip(_Bounded):
    """gzip; zlib verifies the size and checksum at the end of a member."""

    def __init__(self) -> None:
        super().__init__(zlib.decompressobj(wbits=31))

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    def decode(self, data: bytes) -> bytes:
        return bytes(self._decoder.decompress(self._decoder.unconsumed_tail + data, OUT_BYTES))


class _Zstd(_Bounded):
    """zstd, including frames with the largest window (`zstd --long=31`)."""

    def __init__(self) -> None:
        import zstandard

        super().__init__(zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj())

    @property
    def needs_input(self) -> bool:
        return True

    def decode(self, data: bytes) -> bytes:
        import zstandard

        try:
            return self._decoder.decompress(data)  # type: ignore[no-any-return]
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error


DECODERS: dict[str, Callable[[], StreamDecoder]] = {
    "gzip": _Gzip,
    "bz2": lambda: _Bounded(bz2.BZ2Decompressor()),
    "xz": lambda: _Bounded(lzma.LZMADecompressor(lzma.FORMAT_XZ)),
    "zstd": _Zstd,
}


def detect_codec(head: bytes) -> str | None:
    """Return the codec whose magic bytes `head` starts with; None if the data is not compressed."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"BZh") and head[3:4].isdigit():
        return "bz2"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    # The second form is a skippable frame: parallel compressors write one first.
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return "zstd"
    return None


def decompress_stream(read: ReadBytes) -> tuple[str | None, Iterator[bytes]]:
    """Detect the codec of a stream and decompress it.

    Args:
        read: Returns at most the requested number of bytes; no bytes at the end of the stream.

    Returns:
        The codec (None if the data is not compressed) and an iterator over the decompressed blocks, which raises
        CorruptStreamError.
    """
    head = _read_magic(b"", read)
    codec = detect_codec(head)
    if codec is None:
        return None, _iterate_uncompressed(head, read)
    return codec, _resize_blocks(_decompress_members(codec, head, read))


def _read_magic(head: bytes, read: ReadBytes) -> bytes:
    while len(head) < MAX_MAGIC_BYTES and (more := read(RAW_BYTES)):
        head += more
    return head


def _iterate_uncompressed(head: bytes, read: ReadBytes) -> Iterator[bytes]:
    while head:
        yield head
        head = read(RAW_BYTES)


def _resize_blocks(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in blocks of OUT_BYTES to twice as much: joined if they are small, cut if they are large."""
    held, size = [], 0
    for block in blocks:
        held.append(block)
        size += len(block)
        if size < OUT_BYTES:
            continue
        joined, position = b"".join(held), 0
        held, size = [], 0
        while len(joined) - position >= 2 * OUT_BYTES:
            yield joined[position : position + OUT_BYTES]
            position += OUT_BYTES
        yield joined[position:]
    if size:
        yield b"".join(held)


def _decompress_members(codec: str, rest: bytes, read: ReadBytes) -> Iterator[bytes]:
    offset = position = 0
    while rest:
        if detect_codec(rest) != codec:
            raise CorruptStreamError(f"the {codec} data is followed by other data", offset)
        decoder = DECODERS[codec]()
        while not decoder.eof:
            data = b""
            if decoder.needs_input:
                if position == len(rest):
                    rest, position = read(RAW_BYTES), 0
                data = rest[position : position + FEED_BYTES]
                if not data:
                    raise CorruptStreamError(f"the {codec} data is cut off: the file ends too early", offset)
            yield _decode(codec, decoder, data, offset)
            position += len(data)
            offset += len(data)
        offset -= len(decoder.unused_data)
        rest, padding = _skip_padding(decoder.unused_data + rest[position:], read)
        offset += padding
        position = 0


def _decode(codec: str, decoder: StreamDecoder, data: bytes, offset: int) -> bytes:
    try:
        return decoder.decode(data)
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
        raise CorruptStreamError(f"the {codec} data is damaged ({error})", offset) from error


def _skip_padding(rest: bytes, read: ReadBytes) -> tuple[bytes, int]:
    """Return the data after the zero bytes that may pad a member, and the number of those bytes."""
    padding = 0
    while True:
        data = rest.lstrip(b"\0")
        padding += len(rest) - len(data)
        if data:
            return _read_magic(data, read), padding
        rest = read(RAW_BYTES)
        if not rest:
            return b"", padding
