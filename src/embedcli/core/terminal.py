"""Text that is safe to print: nothing in it moves the cursor, starts an escape sequence or reverses the line."""

from __future__ import annotations

import json


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


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode() if not char.isspace() else " "
