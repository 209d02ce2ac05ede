"""Tell what was decided about the text of the inputs from their beginnings, and how to decide otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedcli.storage import format_location

if TYPE_CHECKING:
    from embedcli.readers.preview import InputPreview


def describe_dialects(previews: Sequence[InputPreview]) -> list[str]:
    """One sentence for each decision, which names the first input that it holds for and counts the others."""
    paths_by_sentence: defaultdict[str, list[str]] = defaultdict(list)
    for preview in previews:
        if preview.delimiter:
            sentence = f"The fields of {{}} are separated by {preview.delimiter!r} (seen in its header)."
            paths_by_sentence[sentence].append(preview.path)
        if preview.quotes == "in header":
            sentence = "The header of {} is quoted, so its fields are read as quoted; use --quote none if they are not."
            paths_by_sentence[sentence].append(preview.path)
        if preview.quotes == "in fields":
            sentence = "The fields of {} look quoted, but TSV is read without quotes; use --quote '\"' if they are."
            paths_by_sentence[sentence].append(preview.path)
        if preview.marked_encoding is not None:
            sentence = f"{{}} is read as {preview.marked_encoding.upper()}, as its byte order mark shows."
            paths_by_sentence[sentence].append(preview.path)
        if preview.has_undecodable_bytes:
            sentence = (
                "The beginning of {} has bytes that do not fit its encoding: their rows are rejected; "
                "use --encoding latin-1 or another if it is not right."
            )
            paths_by_sentence[sentence].append(preview.path)
    return [sentence.replace("{}", _name_first(paths), 1) for sentence, paths in paths_by_sentence.items()]


def _name_first(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} other inputs" if paths[1:] else ""
    return f"{format_location(paths[0])}{more}"
