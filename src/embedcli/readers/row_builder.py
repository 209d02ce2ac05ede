"""From the columns of some rows to texts, ids and kept values: the same judgement for every format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from embedcli.core.types import Columns
from embedcli.readers import arrow_types as scalars
from embedcli.readers.decoding import encodable, printable
from embedcli.readers.row_batch import (
    EMPTY_TEXT,
    MISSING_TEXT,
    NOT_TEXT,
    SURROGATE,
    Fault,
    Faults,
    Rows,
    good_positions,
    picked,
)
from embedcli.readers.template import Template, parse

Values = Mapping[str, list[Any]]


@dataclass(frozen=True)
class Fields:
    """What is read of each row. `names` are all columns that are needed, each once."""

    columns: Columns
    template: Template | None
    names: tuple[str, ...]

    @classmethod
    def of(cls, columns: Columns) -> Fields:
        template = parse(columns.template) if columns.template is not None else None
        texts = template.names if template else (str(columns.text_column),)
        ids = () if columns.id_column is None else (columns.id_column,)
        return cls(columns, template, tuple(dict.fromkeys((*texts, *ids, *columns.keep_types))))

    @property
    def text_names(self) -> tuple[str, ...]:
        """The columns that make the text."""
        return self.template.names if self.template else (str(self.columns.text_column),)

    def schema(self) -> pa.Schema:
        """The kept columns."""
        return pa.schema(list(self.columns.keep_types.items()))

    def texts(self, values: Values, faults: Faults, *, clean: bool) -> list[str]:
        """One text per row, and a fault for each row without a usable one."""
        texts = self.template.render(values, faults) if self.template else values[str(self.columns.text_column)]
        check_texts(texts, faults, clean=clean)
        return texts


def check_texts(texts: list[Any], faults: Faults, *, clean: bool) -> None:
    """Faults for texts that are missing, not strings, blank, or hold lone surrogates (never if `clean`)."""
    usable = set(map(type, texts)) == {str} and all(texts) and not any(map(str.isspace, texts))
    if usable and (clean or encodable("".join(texts))):
        return
    for i, text in enumerate(texts):
        reason = text_reason(text)
        if reason is not None:
            faults.setdefault(i, reason)


def text_reason(text: Any) -> str | None:
    """Why a value cannot be embedded; None if it can."""
    if text is None:
        return MISSING_TEXT
    if type(text) is not str:
        return f"{NOT_TEXT}: {scalars.NAMES.get(type(text), type(text).__name__)}"
    if not text or text.isspace():
        return EMPTY_TEXT
    return None if encodable(text) else SURROGATE


def assembled(
    fields: Fields,
    values: Values,
    faults: Faults,
    raw: Callable[[int], str],
    *,
    lines: Any,
    span: int,
    done: int,
    odd: Collection[int] = (),
) -> Rows:
    """Rows from plain values, one list per column.

    `faults` holds what is known already, `raw` shows a bad row, `odd` are the positions of rows whose values may
    hold NaN or lone surrogates.
    """
    texts = fields.texts(values, faults, clean=not odd)
    columns = fields.columns
    id_values = None if columns.id_column is None else values[columns.id_column]
    ids = None if id_values is None else scalars.id_array(id_values, columns.id_type, faults)
    kept_values = {
        name: scalars.json_texts(values[name], odd) if name in columns.json_columns else values[name]
        for name in columns.keep_types
    }
    kept = {
        name: scalars.kept_array(kept_values[name], name, kind, faults) for name, kind in columns.keep_types.items()
    }
    good = good_positions(len(lines), faults)
    strings = [picked(kept_values[name], good) for name, kind in columns.keep_types.items() if scalars.is_string(kind)]
    if faults:
        texts = picked(texts, good)
        if id_values is not None:
            ids = pa.array(picked(id_values, good), columns.id_type)
        kept = {name: pa.array(picked(kept_values[name], good), kind) for name, kind in columns.keep_types.items()}
    return Rows(
        texts=texts,
        ids=ids,
        kept=pa.table(kept, schema=fields.schema()),
        good=good,
        lines=lines,
        weights=weights([texts, *strings]),
        faults=[Fault(i, faults[i], known_id(id_values, i), raw(i)) for i in sorted(faults)],
        span=span,
        done=done,
    )


def weights(strings: Sequence[Sequence[str | None]]) -> Any:
    """[rows]: the characters in each row's text and kept strings. They depend on nothing but the row."""
    lengths = [np.fromiter((len(value or "") for value in column), np.int64, len(column)) for column in strings]
    return sum(lengths[1:], start=lengths[0])


def known_id(ids: list[Any] | None, i: int) -> Any:
    """The id of a bad row, if it has one."""
    value = None if ids is None or type(ids[i]) not in (int, str) else ids[i]
    return (printable(value) or None) if type(value) is str else value
