"""Text that is safe to print: nothing in it moves the cursor, starts an escape sequence or reverses the line."""

from __future__ import annotations

import io
import json
from typing import BinaryIO, TextIO


def escape_for_terminal(text: str, keep_line_breaks: bool = False) -> str:
    """Return text with control characters, invisible characters and lone surrogates as escapes.

    Args:
        text: Any text, such as a file name, a model name or an answer of a server.
        keep_line_breaks: Keep line feeds. By default they become spaces, like all white space, so that the text stays
            on one line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or (keep_line_breaks and c == "\n") else _escape(c) for c in text)


def escape_in_json(text: str) -> str:
    r"""Return JSON with the characters that `escape_for_terminal` escapes as \u escapes; its value stays the same."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def escape_json_line(line: bytes) -> bytes:
    """Like `escape_in_json`, for a line of JSON in UTF-8."""
    if line.isascii() and b"\x7f" not in line:
        return line
    return escape_in_json(line.decode("utf-8")).encode("utf-8")


class EscapingStream(io.TextIOBase):
    """A text stream that escapes all that is written to it, but for line feeds.

    Errors name the stream. They include a failed flush of what was written before.

    Attributes:
        unescaped: The stream without escapes.
        buffer: The binary stream below.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self.unescaped = stream
        self.buffer: BinaryIO = stream.buffer
        self.name = name

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.unescaped.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.unescaped.errors

    def write(self, text: str) -> int:
        try:
            self.unescaped.write(escape_for_terminal(text, keep_line_breaks=True))
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None
        return len(text)

    def flush(self) -> None:
        try:
            self.unescaped.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.unescaped.fileno()

    def isatty(self) -> bool:
        return self.unescaped.isatty()


def unescaped(stream: TextIO | EscapingStream) -> TextIO:
    """Return a stream for text that is already escaped, and for progress bars, which move the cursor."""
    return stream.unescaped if isinstance(stream, EscapingStream) else stream


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode() if not char.isspace() else " "
