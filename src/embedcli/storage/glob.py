"""Glob patterns for object stores: * and ? match within a name, ** across folders."""

from __future__ import annotations

import glob
import re


def split_pattern(pattern: str) -> tuple[str, str]:
    """Split a pattern into the folder before its first * ? or [, and the rest."""
    scheme, _, rest = pattern.partition("://")
    names = rest.split("/")
    first = next(i for i, name in enumerate(names) if glob.has_magic(name))
    return f"{scheme}://{'/'.join(names[:first])}", "/".join(names[first:])


def glob_to_regex(pattern: str) -> str:
    """Translate a pattern into a regular expression by the rules of `glob`: hidden names (.NAME) are not matched."""
    parts = []
    for name in pattern.split("/"):
        if name == "**":
            parts.append(r"(?:[^./][^/]*/)*")
            continue
        hidden = "" if name.startswith(".") else r"(?!\.)"
        tokens = re.findall(r"\[!?\]?[^\]]*\]|\*+|\?|[^*?\[]+|\[", name)
        parts.append(hidden + "".join(map(_translate_token, tokens)) + "/")
    regex = "".join(parts)
    return regex.removesuffix("/") if not pattern.endswith("**") else regex + r"(?!\.)[^/]*"


def _translate_token(text: str) -> str:
    if text.startswith("*"):
        return "[^/]*"
    if text == "?":
        return "[^/]"
    if text.startswith("[") and len(text) > 1:
        return text.replace("\\", "\\\\").replace("[!", "[^", 1)
    return re.escape(text)
