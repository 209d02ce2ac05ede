"""Say what to try when an input shows no column of texts: another dialect, or other rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcli.readers.preview import InputPreview

NAME_HINT = "name it with --text-column NAME, or join several columns with --template"
# Separators that a header contains only if they separate its fields.
OTHER_DELIMITERS = {";": ";", "\t": "tab", "|": "|"}


def suggest_text_column(preview: InputPreview, rows: Sequence[Mapping[str, Any]]) -> str:
    """The hint for an input whose column of texts cannot be guessed.

    Args:
        preview: The input.
        rows: The first JSON rows of all inputs.
    """
    if preview.format in ("csv", "tsv"):
        return _suggest_dialect(preview) or NAME_HINT
    if preview.format == "jsonl" and len(rows) == 1:
        field = next((name for name, value in rows[0].items() if _is_list_of_objects(value)), None)
        if field is not None:
            return (
                f"make it JSONL if the rows are in {json.dumps(field)}: "
                f"jq -c '.[{json.dumps(field)}][]' FILE | embedcli encode - OUTPUT"
            )
    return NAME_HINT


def _suggest_dialect(preview: InputPreview) -> str:
    names = list(preview.column_types)
    delimiter = next((mark for mark in OTHER_DELIMITERS if any(mark in name for name in names)), None)
    if delimiter is not None:
        return f"use --delimiter {OTHER_DELIMITERS[delimiter]!r} if it separates the fields; otherwise {NAME_HINT}"
    if any(name.strip().isdigit() for name in names):
        return f"use --no-header if the file has no header; otherwise {NAME_HINT}"
    return ""


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)
