"""Counts in the singular and the plural."""

from __future__ import annotations

import pytest

from embedcli.core.counts import format_count


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, "row"), "0 rows"),
        ((1, "row"), "1 row"),
        ((2000, "row"), "2,000 rows"),
        ((1, "id is", "ids are"), "1 id is"),
        ((2, "id is", "ids are"), "2 ids are"),
    ],
)
def test_a_count_has_its_noun(arguments: tuple[int, str] | tuple[int, str, str], text: str) -> None:
    assert format_count(*arguments) == text
