"""Bytes to text to lines, for any encoding, with bad bytes kept in sight instead of dropped."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import AnyStr

from embedcli.core.errors import InputError, UsageError
from embedcli.storage import format_location

# A row of text longer than this is taken for a file that has no rows, not for a row.
MAX_ROW_BYTES = 256 << 20
# How much of a bad row is kept in its reject, in characters.
MAX_REJECT_CHARACTERS = 2000
BYTE_ORDER_MARK = "\ufeff"


def normalize_encoding_name(encoding: str) -> str:
    """The codec's own name; UsageError if there is no such text encoding. UTF-8 with a BOM is UTF-8."""
    try:
        info = codecs.lookup(encoding)
        "".encode(info.name)
    except (LookupError, ValueError, UnicodeError):
        raise UsageError(
            f"--encoding {encoding!r} is not a known text encoding", "use a name such as utf-8, latin-1, utf-16, gbk"
        ) from None
    return "utf-8" if info.name == "utf-8-sig" else info.name


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Each undecodable byte becomes one lone surrogate, which no valid text holds (as surrogateescape, for all)."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


DECODE_ERROR_HANDLER = "embedcli.mark"
codecs.register_error(DECODE_ERROR_HANDLER, _mark)


class TextDecoder:
    """Text of a stream of bytes. `dirty` once a byte could not be decoded; such bytes are marked in the text."""

    def __init__(self, encoding: str, path: str) -> None:
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._encoding = encoding
        self._path = path
        self.has_undecodable_bytes = False

    def decode(self, blocks: Iterable[bytes]) -> Iterator[str]:
        """The text of `blocks`, without a byte order mark at its beginning."""
        first = True
        for block in blocks:
            text = self._decode(block, final=False)
            if first and text:
                text, first = text.removeprefix(BYTE_ORDER_MARK), False
            yield text
        yield self._decode(b"", final=True)

    def _decode(self, block: bytes, *, final: bool) -> str:
        state = self._decoder.getstate()
        try:
            try:
                return self._decoder.decode(block, final)
            except UnicodeDecodeError:
                self.has_undecodable_bytes = True
                return self._marked(state, block, final)
        except UnicodeError as error:
            raise InputError(
                f"{format_location(self._path)}: not {self._encoding}: {error}", "try another --encoding"
            ) from error

    def _marked(self, state: tuple[bytes, int], block: bytes, final: bool) -> str:
        self._decoder.setstate(state)
        self._decoder.errors = DECODE_ERROR_HANDLER
        try:
            return self._decoder.decode(block, final)
        finally:
            self._decoder.errors = "strict"


def is_encodable(text: str) -> bool:
    """False if the text holds a lone surrogate, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_undecodable_byte(text: str) -> tuple[int, int] | None:
    """The first marked byte in a text and its place (in characters); None if all bytes could be decoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ord(text[error.start]) & 0xFF, error.start
    return None


def escape_for_reject(text: str) -> str:
    """A text for a reject: at most RAW_CHARS characters, marked bytes and lone surrogates as escapes."""
    text = text[:MAX_REJECT_CHARACTERS]
    if is_encodable(text):
        return text
    return (
        "".join(f"\\x{ord(char) & 0xFF:02x}" if 0xDC00 <= ord(char) <= 0xDCFF else char for char in text)
        .encode("utf-8", "backslashreplace")
        .decode()
    )


def strip_byte_order_mark(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes without a UTF-8 byte order mark at their beginning."""
    mark, head = BYTE_ORDER_MARK.encode(), b""
    for block in blocks:
        if len(head) >= len(mark):
            yield block
            continue
        head += block
        if len(head) >= len(mark):
            yield head.removeprefix(mark)
    if len(head) < len(mark):
        yield head


def split_lines(blocks: Iterable[AnyStr], newline: AnyStr, path: str) -> Iterator[list[AnyStr]]:
    """The lines of a stream, some at a time, without their newlines. The last line need not end in one."""
    parts: list[AnyStr] = []
    held = count = 0
    for block in blocks:
        end = block.rfind(newline)
        if end < 0:
            parts.append(block)
            held += len(block)
            if held > MAX_ROW_BYTES:
                raise line_too_long_error(path, count + 1)
            continue
        parts.append(block[:end])
        lines = newline[:0].join(parts).split(newline)
        yield lines
        count += len(lines)
        rest = block[end + 1 :]
        parts, held = [rest], len(rest)
    last = newline[:0].join(parts)
    if last:
        yield [last]


def line_too_long_error(path: str, line: int) -> InputError:
    return InputError(
        f"{format_location(path, line)}: this row is longer than {MAX_ROW_BYTES >> 20} MiB",
        "check that the file has one row a line",
    )


def split_at_newlines(blocks: Iterable[str], path: str) -> Iterator[str]:
    """The same text in portions that end where a line ends: at \\n, or at \\r in text that has no \\n."""
    parts: list[str] = []
    held = 0
    for block in blocks:
        end = block.rfind("\n") + 1 or block.rfind("\r", 0, -1) + 1
        if end:
            yield "".join([*parts, block[:end]])
            parts, held = [], 0
        parts.append(block[end:])
        held += len(block) - end
        if held > MAX_ROW_BYTES:
            raise InputError(
                f"{format_location(path)}: a line is longer than {MAX_ROW_BYTES >> 20} MiB",
                "check that the file is a table, with one row a line",
            )
    yield "".join(parts)
