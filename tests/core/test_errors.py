"""Errors of libraries are quoted by one line."""

from __future__ import annotations

import pytest

from embedcli.core.errors import first_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("no such file", "no such file"),
        ("\n  first \nsecond", "first"),
        ("", "ValueError"),
        (" \n", "ValueError"),
        ("Exception from src/a.cpp:12:\nCheck failed at src/b.cpp:3:\nshapes differ\n", "shapes differ"),
        ("x" * 400, "x" * 300),
    ],
)
def test_an_error_is_quoted_by_its_first_line_with_text(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line
