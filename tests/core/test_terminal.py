"""What is shown of text that would steer a terminal."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcli.core.terminal import EscapingStream, escape_for_terminal, escape_in_json, escape_json_line, unescaped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Grüße 日本 🙂", "plain Grüße 日本 🙂"),
        ("\x1b]52;c;aGk=\x07", "\\x1b]52;c;aGk=\\x07"),
        ("\x9b31m\x7f\x00", "\\x9b31m\\x7f\\x00"),
        ("\u202eabc\u2069", "\\u202eabc\\u2069"),
        ("one\ntwo\r\nthree\u2028four\tfive", "one two  three four five"),
        ("\udcff", "\\udcff"),
    ],
)
def test_text_becomes_one_harmless_line(text: str, shown: str) -> None:
    assert escape_for_terminal(text) == shown
    assert escape_for_terminal(shown) == shown


def test_line_feeds_can_be_kept() -> None:
    assert escape_for_terminal("one\n\x1btwo\n", keep_line_breaks=True) == "one\n\\x1btwo\n"


@given(st.dictionaries(st.text(), st.text()))
def test_escaped_json_has_the_same_value(value: dict[str, str]) -> None:
    text = escape_in_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == value


def test_lines_of_json_stay_bytes() -> None:
    assert escape_json_line(b'{"a":"\xc2\x9b\x7f\xc3\xa9"}\n') == b'{"a":"\\u009b\\u007f\xc3\xa9"}\n'
    plain = b'{"a":1}\n'
    assert escape_json_line(plain) is plain


def test_a_stream_escapes_all_but_line_feeds() -> None:
    binary = io.BytesIO()
    stream = EscapingStream(io.TextIOWrapper(binary, "utf-8", "backslashreplace"), "stdout")
    print("a\x1b[31m", "b", file=stream, flush=True)
    stream.buffer.write(b"\x1b")
    unescaped(stream).write("\x1b\udcff")
    stream.flush()
    assert binary.getvalue() == b"a\\x1b[31m b\n\x1b\x1b\\udcff"
