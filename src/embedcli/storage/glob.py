"""Patterns of names in a store: * and ? within a name, ** across folders."""

from __future__ import annotations

import glob
import re


def halves(pattern: str) -> tuple[str, str]:
    """A pattern as the folder before its first * ? or [, and the rest."""
    scheme, _, rest = pattern.partition("://")
    names = rest.split("/")
    first = next(i for i, name in enumerate(names) if glob.has_magic(name))
    return f"{scheme}://{'/'.join(names[:first])}", "/".join(names[first:])


def expression(pattern: str) -> str:
    """A shell pattern as a regular expression, by the rules of `glob`: names that begin with a dot are not matched."""
    found = []
    for name in pattern.split("/"):
        if name == "**":
            found.append(r"(?:[^./][^/]*/)*")
            continue
        hidden = "" if name.startswith(".") else r"(?!\.)"
        pieces = re.findall(r"\[!?\]?[^\]]*\]|\*+|\?|[^*?\[]+|\[", name)
        found.append(hidden + "".join(map(_piece, pieces)) + "/")
    made = "".join(found)
    return made.removesuffix("/") if not pattern.endswith("**") else made + r"(?!\.)[^/]*"


def _piece(text: str) -> str:
    if text.startswith("*"):
        return "[^/]*"
    if text == "?":
        return "[^/]"
    if text.startswith("[") and len(text) > 1:
        return text.replace("\\", "\\\\").replace("[!", "[^", 1)
    return re.escape(text)
