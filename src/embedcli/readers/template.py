"""`--template "title: {title} body: {body?}"`: one text from several columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedcli.core.errors import UsageError
from embedcli.readers.row_batch import EMPTY_TEXT_REASON, MISSING_FIELD_REASON, NOT_FIELD_REASON, RejectReasons

TEMPLATE_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
TEMPLATE_HINT = (
    'write it like --template "title: {title} body: {body?}", where ? allows a missing value and {{ is a brace'
)


@dataclass(frozen=True)
class TextTemplate:
    """`form % values` is the text. `names[i]` is the column of value i; a missing one is empty if `optional[i]`."""

    format_string: str
    names: tuple[str, ...]
    is_optional: tuple[bool, ...]

    @property
    def required_names(self) -> tuple[str, ...]:
        return tuple(name for name, optional in zip(self.names, self.is_optional, strict=True) if not optional)

    def render(self, values: Mapping[str, list[Any]], faults: RejectReasons) -> list[str]:
        """The text of each row. Rows whose values are missing, no text, or all blank get a fault."""
        parts = [
            values_as_strings(values[name], name, faults, optional=optional)
            for name, optional in zip(self.names, self.is_optional, strict=True)
        ]
        texts = []
        for i, row in enumerate(zip(*parts, strict=True)):
            if not "".join(row).strip():
                faults.setdefault(i, EMPTY_TEXT_REASON)
            texts.append(self.format_string % row)
        return texts


def values_as_strings(column: list[Any], name: str, faults: RejectReasons, *, optional: bool) -> list[str]:
    """A column's values as strings; whole numbers are written out, anything else is a fault."""
    if set(map(type, column)) == {str}:
        return column
    texts = []
    for i, value in enumerate(column):
        text = value if type(value) is str else ""
        if type(value) is int:
            text = str(value)
        elif value is None and not optional:
            faults.setdefault(i, f"{MISSING_FIELD_REASON}: {name}")
        elif value is not None and type(value) is not str:
            faults.setdefault(i, f"{NOT_FIELD_REASON}: {name}")
        texts.append(text)
    return texts


def parse_template(template: str) -> TextTemplate:
    """UsageError unless every brace belongs to a plain `{name}`, `{name?}`, `{{` or `}}`, and one name is there."""
    form: list[str] = []
    names: list[str] = []
    at = 0
    for token in TEMPLATE_TOKEN.finditer(template):
        form.append(template[at : token.start()].replace("%", "%%"))
        at = token.end()
        if token[0] in ("{{", "}}"):
            form.append(token[0][0])
        elif token[1]:
            names.append(token[1])
            form.append("%s")
        else:
            raise UsageError(
                f"--template {template!r}: no column is named at character {token.start() + 1}", TEMPLATE_HINT
            )
    form.append(template[at:].replace("%", "%%"))
    if not names:
        raise UsageError(f"--template {template!r} names no column", TEMPLATE_HINT)
    plain = tuple(name.removesuffix("?") for name in names)
    if not all(plain):
        raise UsageError(f"--template {template!r}: {{?}} names no column", TEMPLATE_HINT)
    return TextTemplate("".join(form), plain, tuple(name.endswith("?") for name in names))
