"""The --template option, such as "title: {title} body: {body?}": one text from several columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedcli.core.errors import UsageError
from embedcli.readers.row_batch import EMPTY_TEXT_REASON, MISSING_FIELD_REASON, NOT_FIELD_REASON, RejectReasons

TEMPLATE_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
TEMPLATE_HINT = (
    'write it like --template "title: {title} body: {body?}"; ? allows a missing value, {{ is a literal brace'
)


@dataclass(frozen=True)
class TextTemplate:
    """A parsed template.

    Attributes:
        format_string: `format_string % values` is the text.
        names: The column of each value.
        is_optional: Whether a missing value is replaced by an empty string instead of rejecting the row.
    """

    format_string: str
    names: tuple[str, ...]
    is_optional: tuple[bool, ...]

    @property
    def required_names(self) -> tuple[str, ...]:
        """The columns that must have a value in every row."""
        return tuple(name for name, optional in zip(self.names, self.is_optional, strict=True) if not optional)

    def render(self, values: Mapping[str, list[Any]], reasons: RejectReasons) -> list[str]:
        """Return the text of each row, and add a reason for each row that has no usable text.

        Args:
            values: The values of each column in `names`.
            reasons: Reasons to reject rows; new ones are added.
        """
        parts = [
            values_as_strings(values[name], name, reasons, optional=optional)
            for name, optional in zip(self.names, self.is_optional, strict=True)
        ]
        texts = []
        for i, row in enumerate(zip(*parts, strict=True)):
            if not "".join(row).strip():
                reasons.setdefault(i, EMPTY_TEXT_REASON)
            texts.append(self.format_string % row)
        return texts


def values_as_strings(column: list[Any], name: str, reasons: RejectReasons, *, optional: bool) -> list[str]:
    """Convert values to strings: whole numbers are written out, other values that are not strings are rejected."""
    if set(map(type, column)) == {str}:
        return column
    texts = []
    for i, value in enumerate(column):
        text = value if type(value) is str else ""
        if type(value) is int:
            text = str(value)
        elif value is None and not optional:
            reasons.setdefault(i, f"{MISSING_FIELD_REASON}: {name}")
        elif value is not None and type(value) is not str:
            reasons.setdefault(i, f"{NOT_FIELD_REASON}: {name}")
        texts.append(text)
    return texts


def parse_template(template: str) -> TextTemplate:
    """Parse a template.

    Args:
        template: Text with `{name}`, `{name?}`, and `{{` or `}}` for literal braces.

    Raises:
        UsageError: There is another brace, or no name.
    """
    parts: list[str] = []
    names: list[str] = []
    end = 0
    for token in TEMPLATE_TOKEN.finditer(template):
        parts.append(template[end : token.start()].replace("%", "%%"))
        end = token.end()
        if token[0] in ("{{", "}}"):
            parts.append(token[0][0])
        elif token[1]:
            names.append(token[1])
            parts.append("%s")
        else:
            raise UsageError(
                f"--template {template!r}: expected a column name in braces at character {token.start() + 1}",
                TEMPLATE_HINT,
            )
    parts.append(template[end:].replace("%", "%%"))
    if not names:
        raise UsageError(f"--template {template!r} names no column", TEMPLATE_HINT)
    plain = tuple(name.removesuffix("?") for name in names)
    if not all(plain):
        raise UsageError(f"--template {template!r}: {{?}} names no column", TEMPLATE_HINT)
    return TextTemplate("".join(parts), plain, tuple(name.endswith("?") for name in names))
