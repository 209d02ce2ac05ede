"""Counts of things as people read them."""

from __future__ import annotations


def format_count(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 row", "2,000 rows".

    Args:
        count: The number.
        noun: The noun in the singular.
        plural: The noun in the plural; by default with an "s".
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
