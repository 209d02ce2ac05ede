"""Build texts, ids and kept columns from the values of rows; the rules are the same for every format."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from embedcli.core.types import InputColumns
from embedcli.readers import arrow_types
from embedcli.readers.decoding import MAX_REJECT_CHARACTERS, escape_for_reject, is_encodable
from embedcli.readers.partition_columns import PartitionValue, partition_constants
from embedcli.readers.row_batch import (
    EMPTY_TEXT_REASON,
    MISSING_TEXT_REASON,
    NOT_TEXT_REASON,
    SURROGATE_REASON,
    BadRow,
    RawRow,
    RejectReasons,
    RowBatch,
    accepted_positions,
    take_positions,
)
from embedcli.readers.template import TextTemplate, parse_template

ColumnValues = Mapping[str, list[Any]]


@dataclass(frozen=True)
class RowBuilder:
    """Builds row batches for the columns of a job.

    Attributes:
        columns: The resolved columns.
        template: The parsed template; None if one column holds the text.
        column_names: All columns to read from the file, each once.
        constants: The values of columns that are the same in all rows of the file.
        kept_raw_length: How many bytes of each line are kept until it is encoded, for a reject of the encoder.
    """

    columns: InputColumns
    template: TextTemplate | None
    column_names: tuple[str, ...]
    constants: Mapping[str, PartitionValue] = field(default_factory=dict)
    kept_raw_length: int = MAX_REJECT_CHARACTERS

    @classmethod
    def from_columns(cls, columns: InputColumns) -> RowBuilder:
        """Make the row builder for resolved columns."""
        template = parse_template(columns.template) if columns.template is not None else None
        texts = template.names if template else (str(columns.text_column),)
        ids = () if columns.id_column is None else (columns.id_column,)
        names = dict.fromkeys((*texts, *ids, *columns.kept_types))
        return cls(columns, template, tuple(name for name in names if name not in columns.partition_types))

    def for_path(self, path: str) -> RowBuilder:
        """The row builder for a file, with the values that its path names."""
        types = self.columns.partition_types
        return replace(self, constants=partition_constants(path, types)) if types else self

    def add_constants(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Add the columns that are the same in all rows to a batch."""
        for name, value in self.constants.items():
            scalar = pa.scalar(value, self.columns.partition_types[name])
            batch = batch.append_column(name, pa.repeat(scalar, batch.num_rows))
        return batch

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that the text is made of."""
        return self.template.names if self.template else (str(self.columns.text_column),)

    def schema(self) -> pa.Schema:
        """The schema of the kept columns."""
        return pa.schema(list(self.columns.kept_types.items()))

    def build_texts(self, values: ColumnValues, reasons: RejectReasons, *, known_valid: bool) -> list[str]:
        """Return one text per row, and add a reason for each row without a usable text.

        Args:
            values: The values of each text column.
            reasons: Reasons to reject rows; new ones are added.
            known_valid: Whether the texts are valid Unicode, so that lone surrogates need not be searched for.
        """
        texts = self.template.render(values, reasons) if self.template else values[str(self.columns.text_column)]
        reject_unusable_texts(texts, reasons, known_valid=known_valid)
        return texts


def reject_unusable_texts(texts: list[Any], reasons: RejectReasons, *, known_valid: bool) -> None:
    """Add reasons for texts that are missing, not strings, blank, or contain lone surrogates."""
    are_usable = set(map(type, texts)) == {str} and all(texts) and not any(map(str.isspace, texts))
    if are_usable and (known_valid or is_encodable("".join(texts))):
        return
    for i, text in enumerate(texts):
        reason = text_reject_reason(text)
        if reason is not None:
            reasons.setdefault(i, reason)


def text_reject_reason(text: Any) -> str | None:
    """Why a value cannot be embedded; None if it can be."""
    if text is None:
        return MISSING_TEXT_REASON
    if type(text) is not str:
        return f"{NOT_TEXT_REASON}: {arrow_types.PYTHON_TYPE_NAMES.get(type(text), type(text).__name__)}"
    if not text or text.isspace():
        return EMPTY_TEXT_REASON
    return None if is_encodable(text) else SURROGATE_REASON


def build_row_batch(
    row_builder: RowBuilder,
    values: ColumnValues,
    reasons: RejectReasons,
    raw_row: RawRow,
    *,
    lines: Any,
    line_count: int,
    bytes_read: int,
    unusual_positions: Collection[int] = (),
) -> RowBatch:
    """Build a row batch from Python values.

    Args:
        row_builder: The columns.
        values: One list of values per column.
        reasons: Reasons to reject rows that are known already, by position; new ones are added.
        raw_row: Returns the beginning of a row as it is in the file, by position.
        lines: The line of each row, from 1 at the beginning of the split.
        line_count: How many lines of the file the rows cover.
        bytes_read: How many bytes of the split have been read so far.
        unusual_positions: Rows whose values may contain NaN or lone surrogates.
    """
    columns = row_builder.columns
    values = {**values, **{name: [value] * len(lines) for name, value in row_builder.constants.items()}}
    texts = row_builder.build_texts(values, reasons, known_valid=not unusual_positions)
    id_values = None if columns.id_column is None else values[columns.id_column]
    ids = None if id_values is None else arrow_types.build_id_array(id_values, columns.id_type, reasons)
    kept_values = {name: values[name] for name in columns.kept_types}
    for name in columns.json_columns:
        kept_values[name] = arrow_types.to_json_texts(values[name], unusual_positions)
    kept = {
        name: arrow_types.build_kept_array(kept_values[name], name, data_type, reasons)
        for name, data_type in columns.kept_types.items()
    }
    accepted = accepted_positions(len(lines), reasons)
    if reasons:
        texts = take_positions(texts, accepted)
        if id_values is not None:
            ids = pa.array(take_positions(id_values, accepted), columns.id_type)
        kept_values = {name: take_positions(column, accepted) for name, column in kept_values.items()}
        kept = {name: pa.array(kept_values[name], data_type) for name, data_type in columns.kept_types.items()}
    kept_strings = [kept_values[name] for name, type_ in columns.kept_types.items() if arrow_types.is_string(type_)]
    return RowBatch(
        texts=texts,
        ids=ids,
        kept=pa.table(kept, schema=row_builder.schema()),
        accepted=accepted,
        lines=lines,
        text_characters=count_characters([texts, *kept_strings]),
        bad_rows=[BadRow(i, reasons[i], id_or_none(id_values, i), raw_row(i)) for i in sorted(reasons)],
        line_count=line_count,
        bytes_read=bytes_read,
        raw_row=raw_row,
    )


def count_characters(strings: Sequence[Sequence[str | None]]) -> Any:
    """Count the characters of each row.

    They decide where a chunk closes, so they must not depend on how the file was read.

    Args:
        strings: One or more columns of equal length.

    Returns:
        int64 [rows].
    """
    lengths = [np.fromiter((len(value or "") for value in column), np.int64, len(column)) for column in strings]
    return sum(lengths[1:], start=lengths[0])


def id_or_none(ids: list[Any] | None, i: int) -> Any:
    """The id of a bad row, if it has one."""
    value = None if ids is None or type(ids[i]) not in (int, str) else ids[i]
    return (escape_for_reject(value) or None) if type(value) is str else value
