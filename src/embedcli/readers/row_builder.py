"""From the columns of some rows to texts, ids and kept values: the same judgement for every format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from embedcli.core.types import InputColumns
from embedcli.readers import arrow_types as scalars
from embedcli.readers.decoding import escape_for_reject, is_encodable
from embedcli.readers.row_batch import (
    EMPTY_TEXT_REASON,
    MISSING_TEXT_REASON,
    NOT_TEXT_REASON,
    SURROGATE_REASON,
    BadRow,
    RejectReasons,
    RowBatch,
    accepted_positions,
    take_positions,
)
from embedcli.readers.template import TextTemplate, parse_template

ColumnValues = Mapping[str, list[Any]]


@dataclass(frozen=True)
class RowBuilder:
    """What is read of each row. `names` are all columns that are needed, each once."""

    columns: InputColumns
    template: TextTemplate | None
    column_names: tuple[str, ...]

    @classmethod
    def from_columns(cls, columns: InputColumns) -> RowBuilder:
        template = parse_template(columns.template) if columns.template is not None else None
        texts = template.names if template else (str(columns.text_column),)
        ids = () if columns.id_column is None else (columns.id_column,)
        return cls(columns, template, tuple(dict.fromkeys((*texts, *ids, *columns.kept_types))))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that make the text."""
        return self.template.names if self.template else (str(self.columns.text_column),)

    def schema(self) -> pa.Schema:
        """The kept columns."""
        return pa.schema(list(self.columns.kept_types.items()))

    def build_texts(self, values: ColumnValues, faults: RejectReasons, *, clean: bool) -> list[str]:
        """One text per row, and a fault for each row without a usable one."""
        texts = self.template.render(values, faults) if self.template else values[str(self.columns.text_column)]
        reject_unusable_texts(texts, faults, clean=clean)
        return texts


def reject_unusable_texts(texts: list[Any], faults: RejectReasons, *, clean: bool) -> None:
    """Faults for texts that are missing, not strings, blank, or hold lone surrogates (never if `clean`)."""
    usable = set(map(type, texts)) == {str} and all(texts) and not any(map(str.isspace, texts))
    if usable and (clean or is_encodable("".join(texts))):
        return
    for i, text in enumerate(texts):
        reason = text_reject_reason(text)
        if reason is not None:
            faults.setdefault(i, reason)


def text_reject_reason(text: Any) -> str | None:
    """Why a value cannot be embedded; None if it can."""
    if text is None:
        return MISSING_TEXT_REASON
    if type(text) is not str:
        return f"{NOT_TEXT_REASON}: {scalars.PYTHON_TYPE_NAMES.get(type(text), type(text).__name__)}"
    if not text or text.isspace():
        return EMPTY_TEXT_REASON
    return None if is_encodable(text) else SURROGATE_REASON


def build_row_batch(
    fields: RowBuilder,
    values: ColumnValues,
    faults: RejectReasons,
    raw: Callable[[int], str],
    *,
    lines: Any,
    span: int,
    done: int,
    odd: Collection[int] = (),
) -> RowBatch:
    """Rows from plain values, one list per column.

    `faults` holds what is known already, `raw` shows a bad row, `odd` are the positions of rows whose values may
    hold NaN or lone surrogates.
    """
    texts = fields.build_texts(values, faults, clean=not odd)
    columns = fields.columns
    id_values = None if columns.id_column is None else values[columns.id_column]
    ids = None if id_values is None else scalars.build_id_array(id_values, columns.id_type, faults)
    kept_values = {
        name: scalars.to_json_texts(values[name], odd) if name in columns.json_columns else values[name]
        for name in columns.kept_types
    }
    kept = {
        name: scalars.build_kept_array(kept_values[name], name, kind, faults)
        for name, kind in columns.kept_types.items()
    }
    good = accepted_positions(len(lines), faults)
    strings = [
        take_positions(kept_values[name], good) for name, kind in columns.kept_types.items() if scalars.is_string(kind)
    ]
    if faults:
        texts = take_positions(texts, good)
        if id_values is not None:
            ids = pa.array(take_positions(id_values, good), columns.id_type)
        kept = {
            name: pa.array(take_positions(kept_values[name], good), kind) for name, kind in columns.kept_types.items()
        }
    return RowBatch(
        texts=texts,
        ids=ids,
        kept=pa.table(kept, schema=fields.schema()),
        accepted=good,
        lines=lines,
        text_characters=text_weights([texts, *strings]),
        bad_rows=[BadRow(i, faults[i], id_or_none(id_values, i), raw(i)) for i in sorted(faults)],
        line_count=span,
        bytes_read=done,
    )


def text_weights(strings: Sequence[Sequence[str | None]]) -> Any:
    """[rows]: the characters in each row's text and kept strings. They depend on nothing but the row."""
    lengths = [np.fromiter((len(value or "") for value in column), np.int64, len(column)) for column in strings]
    return sum(lengths[1:], start=lengths[0])


def id_or_none(ids: list[Any] | None, i: int) -> Any:
    """The id of a bad row, if it has one."""
    value = None if ids is None or type(ids[i]) not in (int, str) else ids[i]
    return (escape_for_reject(value) or None) if type(value) is str else value
