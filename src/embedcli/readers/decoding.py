"""Decode bytes to text and split it into lines, for any encoding; undecodable bytes are marked, not dropped."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, AnyStr

from embedcli.core.errors import InputError, UsageError
from embedcli.readers.row_batch import BAD_ENCODING_REASON
from embedcli.storage import format_location

# A longer row is an error: the file probably has no line breaks.
MAX_ROW_BYTES = 256 << 20
# Characters of a bad row that its reject contains.
MAX_REJECT_CHARACTERS = 2000
BYTE_ORDER_MARK = "\ufeff"
# The marks of UTF-32 first: in little-endian order it begins with the mark of UTF-16.
MARKED_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
MAX_MARK_BYTES = 4


def normalize_encoding_name(encoding: str) -> str:
    """The canonical name of a text encoding, "utf-8" for UTF-8 with a byte order mark. UsageError if it is unknown."""
    try:
        info = codecs.lookup(encoding)
        "".encode(info.name)
    except (LookupError, ValueError, UnicodeError):
        raise UsageError(
            f"--encoding {encoding!r} is not a known text encoding", "use a name such as utf-8, latin-1, utf-16, gbk"
        ) from None
    return "utf-8" if info.name == "utf-8-sig" else info.name


def detect_encoding(blocks: Iterable[bytes], encoding: str) -> tuple[str | None, Iterator[bytes]]:
    """Look for the byte order mark of UTF-16 or UTF-32 at the beginning of a file.

    Args:
        blocks: Successive parts of the file.
        encoding: Its encoding as far as is known; only for UTF-8, the default, a mark shows another one.

    Returns:
        The encoding that the mark shows, None without one, and the same bytes as in `blocks`.
    """
    head, rest = b"", iter(blocks)
    if encoding != "utf-8":
        return None, rest
    for block in rest:
        head += block
        if len(head) >= MAX_MARK_BYTES:
            break
    marked = next((name for mark, name in MARKED_ENCODINGS.items() if head.startswith(mark)), None)
    return marked, chain([head], rest)


def refuse_unmarked_utf16(head: bytes, encoding: str, path: str) -> None:
    """InputError if a file that should be UTF-8 begins with ASCII text in UTF-16 without a byte order mark."""
    beginning = head[:16]
    if encoding != "utf-8" or len(beginning) < 8:
        return
    for name, zeros, others in (
        ("utf-16-le", beginning[1::2], beginning[::2]),
        ("utf-16-be", beginning[::2], beginning[1::2]),
    ):
        if not any(zeros) and all(others):
            raise InputError(
                f"{format_location(path)}: looks like {name.upper()} without a byte order mark",
                f"use --encoding {name}",
            )


def _mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    """Replace each undecodable byte by a lone surrogate, like "surrogateescape" but for every encoding."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


DECODE_ERROR_HANDLER = "embedcli.mark"
codecs.register_error(DECODE_ERROR_HANDLER, _mark_undecodable)


class TextDecoder:
    """Decodes a stream of bytes; undecodable bytes become lone surrogates U+DC00 to U+DCFF.

    Attributes:
        has_undecodable_bytes: Whether there was such a byte so far.
    """

    def __init__(self, encoding: str, path: str) -> None:
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._encoding = encoding
        self._path = path
        self.has_undecodable_bytes = False

    def decode(self, blocks: Iterable[bytes]) -> Iterator[str]:
        """Yield the text of successive blocks, without a byte order mark at the beginning."""
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
                return self._decode_with_marks(state, block, final)
        except UnicodeError as error:
            raise InputError(
                f"{format_location(self._path)}: not {self._encoding}: {error}", "try another --encoding"
            ) from error

    def _decode_with_marks(self, state: tuple[bytes, int], block: bytes, final: bool) -> str:
        self._decoder.setstate(state)
        self._decoder.errors = DECODE_ERROR_HANDLER
        try:
            return self._decoder.decode(block, final)
        finally:
            self._decoder.errors = "strict"


def is_encodable(text: str) -> bool:
    """Whether a text can be encoded: False if it contains a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_undecodable_lines(lines: Sequence[Any]) -> bool:
    """Whether some lines, as bytes in UTF-8 or as decoded text, have bytes that do not fit their encoding."""
    try:
        for line in lines:
            line.decode() if isinstance(line, bytes) else line.encode()
    except UnicodeError:
        return True
    return False


def find_undecodable_byte(text: str) -> tuple[int, int] | None:
    """The first undecodable byte of a decoded text and its position in characters; None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ord(text[error.start]) & 0xFF, error.start
    return None


def undecodable_reason(text: str, encoding: str, place: str) -> str | None:
    """Why a decoded text is rejected if it has an undecodable byte, with the byte's offset in `place`; else None."""
    found = find_undecodable_byte(text)
    if found is None:
        return None
    byte, position = found
    offset = len(text[:position].encode(encoding, "replace"))
    return f"{BAD_ENCODING_REASON}: byte 0x{byte:02x} at byte {offset} of {place}"


def escape_for_reject(text: str) -> str:
    """The beginning of a text for a reject, MAX_REJECT_CHARACTERS long, with escapes for undecodable bytes."""
    text = text[:MAX_REJECT_CHARACTERS]
    if is_encodable(text):
        return text
    return (
        "".join(f"\\x{ord(char) & 0xFF:02x}" if 0xDC00 <= ord(char) <= 0xDCFF else char for char in text)
        .encode("utf-8", "backslashreplace")
        .decode()
    )


def strip_byte_order_mark(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes without a UTF-8 byte order mark at the beginning."""
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
    """Yield lists of lines, without newlines, as blocks arrive.

    Args:
        blocks: Successive parts of the file, all bytes or all text.
        newline: The line separator, in the same type.
        path: The file, for errors.

    Raises:
        InputError: A line is longer than MAX_ROW_BYTES.
    """
    parts: list[AnyStr] = []
    pending_length = count = 0
    for block in blocks:
        end = block.rfind(newline)
        if end < 0:
            parts.append(block)
            pending_length += len(block)
            if pending_length > MAX_ROW_BYTES:
                raise line_too_long_error(path, count + 1)
            continue
        parts.append(block[:end])
        lines = newline[:0].join(parts).split(newline)
        yield lines
        count += len(lines)
        rest = block[end + 1 :]
        parts, pending_length = [rest], len(rest)
    last = newline[:0].join(parts)
    if last:
        yield [last]


def line_too_long_error(path: str, line: int) -> InputError:
    """The error for a line that is longer than MAX_ROW_BYTES."""
    return InputError(
        f"{format_location(path, line)}: this row is longer than {MAX_ROW_BYTES >> 20} MiB",
        "check that the file has one row per line",
    )


def split_at_line_ends(blocks: Iterable[str], line_end: str, path: str) -> Iterator[str]:
    """Yield the same text in portions that end at a line end, but for the last one.

    Raises:
        InputError: A line is longer than MAX_ROW_BYTES.
    """
    parts: list[str] = []
    pending_length = 0
    for block in blocks:
        end = block.rfind(line_end) + 1
        if end:
            yield "".join([*parts, block[:end]])
            parts, pending_length = [], 0
        parts.append(block[end:])
        pending_length += len(block) - end
        if pending_length > MAX_ROW_BYTES:
            raise InputError(
                f"{format_location(path)}: a line is longer than {MAX_ROW_BYTES >> 20} MiB",
                "check that the file is a table with one row per line",
            )
    yield "".join(parts)
