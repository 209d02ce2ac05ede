"""Resolve the columns of the text, the id and the kept values: named by the user, or guessed and reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from embedcli.core.constants import RESERVED_COLUMNS
from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import InputColumns
from embedcli.readers import arrow_types, record_batches
from embedcli.readers.column_hints import suggest_text_column
from embedcli.readers.common_types import common_type
from embedcli.readers.dialect_notes import describe_dialects
from embedcli.readers.nested_fields import nested_value
from embedcli.readers.partition_columns import note_columns_of_files
from embedcli.readers.preview import InputPreview
from embedcli.readers.template import parse_template
from embedcli.storage import format_location

# Names that are guessed, in this order, in any case.
TEXT_COLUMN_NAMES = (
    "text", "content", "contents", "body", "sentence", "document", "passage", "abstract", "chunk", "paragraph",
    "description", "query", "question", "title",
)  # fmt: skip
ID_COLUMN_NAMES = ("id", "_id", "doc_id", "docid", "document_id", "uuid", "guid", "pid", "qid")
MAX_LISTED_COLUMNS = 20
# Names that are at least so similar (see difflib) are taken for typing errors.
TYPING_ERROR_SIMILARITY = 0.8


def resolve_columns(
    job: Job, previews: Sequence[InputPreview], rows: Sequence[dict[str, Any]], keep_option: str = "--keep"
) -> InputColumns:
    """Resolve the columns of a job.

    Args:
        job: The job.
        previews: The preview of each input.
        rows: The first JSONL rows of all inputs together.
        keep_option: The option that named the columns in `job.keep`, for error messages.

    Raises:
        UsageError: A column is missing from an input or has an unsuitable type, or the text column is not given and
            cannot be guessed. The message lists the columns of the input.
        InputError: No row of JSONL can be read, so there are no columns to guess from.
    """
    if job.template is not None and job.text_column is not None:
        raise UsageError(
            "--template and --text-column cannot be used together", "drop --text-column: the template names the columns"
        )
    check_kept_columns(job, keep_option)
    with_columns = [preview for preview in previews if preview.column_types]
    with_rows = [preview for preview in with_columns if preview.total_rows != 0] or with_columns
    has_several_inputs = len(previews) > 1
    if not with_rows:
        return columns_without_rows(job, previews, has_several_inputs)
    return ColumnResolver(job, with_rows, rows, keep_option).resolve(has_several_inputs)


def check_kept_columns(job: Job, keep_option: str) -> None:
    """UsageError if a column to keep has a name that embedcli gives to a column of its own."""
    for name in job.keep:
        if name in RESERVED_COLUMNS:
            raise UsageError(
                f"{keep_option} {name}: the output has its own column {name!r}", "rename the column in the input"
            )


def columns_without_rows(job: Job, previews: Sequence[InputPreview], has_several_inputs: bool) -> InputColumns:
    """The columns of inputs without a valid row: those that the job names, and `text` by default.

    Raises:
        InputError: The first rows are all bad, and the job does not name the text column.
    """
    bad = next((preview for preview in previews if preview.problem), None)
    if bad is not None and job.text_column is None and job.template is None:
        hint = "write one JSON object per line (jq -c . FILE does that), or use --format for another format"
        if bad.has_undecodable_bytes:
            hint = "use --encoding latin-1 or another"
        raise InputError(f"{format_location(bad.path, 1)}: {bad.problem}", hint)
    id_column = job.id_column or None
    partition_types = {name: kind for preview in previews for name, kind in preview.partition_types.items()}
    kept_types = {name: partition_types.get(name, pa.string()) for name in job.keep if name != id_column}
    return InputColumns(
        text_column=None if job.template is not None else job.text_column or "text",
        template=job.template,
        id_column=id_column,
        id_type=pa.int64() if id_column is None else partition_types.get(id_column, pa.string()),
        kept_types=kept_types,
        has_source_column=has_several_inputs and "source" not in kept_types,
        notes=(
            *describe_dialects(previews),
            "The input has no rows." if bad is None else "None of the first rows can be read.",
        ),
        json_columns=frozenset(kept_types.keys() - partition_types),
        partition_types=partition_types,
    )


class ColumnResolver:
    """Resolves the columns of inputs that have rows, and collects notes about what it guessed."""

    def __init__(
        self, job: Job, previews: Sequence[InputPreview], rows: Sequence[dict[str, Any]], keep_option: str
    ) -> None:
        self.job = job
        self.keep_option = keep_option
        self.previews = previews
        self.rows = rows
        self.notes = describe_dialects(previews)
        # The values of text formats are Python objects, which fit only some Arrow types.
        self._has_python_values = not all(preview.has_arrow_types for preview in previews)
        self._partition_types = {
            name: data_type for preview in previews for name, data_type in preview.partition_types.items()
        }
        self._common_names = [
            name for name in previews[0].column_types if all(name in other.column_types for other in previews)
        ]

    def resolve(self, has_several_inputs: bool) -> InputColumns:
        """Resolve all columns. With several inputs, their names become a kept column."""
        job = self.job
        self.notes += [preview.note for preview in self.previews if preview.note]
        id_column = self._resolve_id_column()
        text_column = None if job.template is not None else self._resolve_text_column(id_column)
        self._check_template()
        id_type = pa.int64() if id_column is None else self._id_type(id_column)
        kept_types, json_columns = self._resolve_kept_columns(id_column)
        if has_several_inputs and "source" in kept_types:
            self.notes.append("The input has a column source, so the names of the input files are not written.")
        text_names = [text_column] if text_column is not None else parse_template(job.template or "").names
        names = dict.fromkeys((*text_names, *([id_column] if id_column is not None else []), *kept_types))
        self.notes += note_columns_of_files(self.previews, names)
        return InputColumns(
            text_column=text_column,
            template=job.template,
            id_column=id_column,
            id_type=id_type,
            kept_types=kept_types,
            has_source_column=has_several_inputs and "source" not in kept_types,
            notes=tuple(self.notes),
            json_columns=json_columns,
            partition_types={name: kind for name, kind in self._partition_types.items() if name in names},
        )

    # Ids

    def _resolve_id_column(self) -> str | None:
        """The named or guessed column. None, for row numbers, if the name is empty or no column can be guessed."""
        if self.job.id_column == "":
            return None
        if self.job.id_column is not None:
            self._require(self.job.id_column, "--id-column")
            return self.job.id_column
        name = self._guess(
            ID_COLUMN_NAMES, lambda data_type: arrow_types.is_string(data_type) or pa.types.is_integer(data_type)
        )
        if name is None:
            unsuitable = self._guess(ID_COLUMN_NAMES, lambda data_type: True)
            held = f" ({unsuitable!r} holds {self.previews[0].column_types[unsuitable]})" if unsuitable else ""
            self.notes.append(f"No id column was found{held}: rows are numbered from 0 in the column row.")
        else:
            self.notes.append(f"Ids are taken from the column {name!r} (guessed; --id-column names another).")
        return name

    def _id_type(self, name: str) -> pa.DataType:
        if name in self._partition_types:
            return self._partition_types[name]
        types: list[tuple[InputPreview, pa.DataType]] = []
        for preview in self.previews:
            data_type = preview.column_type(name)
            if data_type is None and not preview.shows_all_rows:
                continue
            if preview.has_inferred_types:
                data_type = arrow_types.infer_id_type([nested_value(row, name) for row in self.rows])
            if data_type is None or pa.types.is_null(data_type) or pa.types.is_nested(data_type):
                content = "neither whole numbers nor strings" if preview.has_inferred_types else f"{data_type}, not ids"
                raise UsageError(
                    f"{format_location(preview.path)}: column {name!r} holds {content}",
                    f"name another with --id-column; {self._list_columns(preview)}",
                )
            types.append((preview, data_type))
        return common_type(name, types) if types else pa.string()

    # Texts

    def _resolve_text_column(self, id_column: str | None) -> str:
        name = self.job.text_column
        if name is not None:
            self._require(name, "--text-column")
            self._check_text(name, arrow_types.may_hold_text, "text")
            return name
        candidates = [other for other in self._common_names if other != id_column]
        name = self._guess(TEXT_COLUMN_NAMES, arrow_types.may_hold_text, candidates)
        if name is None and not self._has_python_values:
            name = self._guess(TEXT_COLUMN_NAMES, arrow_types.may_hold_text_or_nulls, candidates)
        name = name or self._only_string_column(id_column)
        if name is None:
            preview = self._find_input_without_text()
            raise UsageError(
                f"{format_location(preview.path)}: which column holds the text? {self._list_columns(preview)}",
                suggest_text_column(preview, self.rows),
            )
        self.notes.append(f"Texts are taken from the column {name!r} (guessed; --text-column names another).")
        return name

    def _only_string_column(self, id_column: str | None) -> str | None:
        """The column or field that holds strings in every input, if there is exactly one."""
        strings = [
            name
            for name, data_type in self.previews[0].flat_column_types.items()
            if name != id_column
            and arrow_types.is_string(data_type)
            and all(arrow_types.is_string(other.flat_column_types.get(name, pa.null())) for other in self.previews[1:])
        ]
        if len(strings) != 1:
            return None
        self._refuse_duplicates(strings[0])
        return strings[0]

    def _check_template(self) -> None:
        if self.job.template is None:
            return
        template = parse_template(self.job.template)
        for name in template.required_names:
            self._require(name, "--template")
        for name in template.names:
            self._require_somewhere(name, "--template")
            self._check_text(
                name, lambda t: arrow_types.may_hold_text(t) or pa.types.is_integer(t), "text or whole numbers"
            )

    def _check_text(self, name: str, is_usable: Callable[[pa.DataType], bool], expected: str) -> None:
        """UsageError for a column of the wrong type; only a note for JSONL, where later rows may have other types."""
        for preview in self.previews:
            data_type = preview.column_type(name)
            is_empty = preview.has_arrow_types and data_type is not None and pa.types.is_null(data_type)
            if data_type is None or is_empty or is_usable(data_type):
                continue
            if not preview.has_inferred_types:
                raise UsageError(
                    f"{format_location(preview.path)}: column {name!r} holds {data_type}, not {expected}",
                    f"name another with --text-column; {self._list_columns(preview)}",
                )
            self.notes.append(
                f"The first rows of {format_location(preview.path)} have no {expected} in the column {name!r}."
            )

    # Kept columns

    def _resolve_kept_columns(self, id_column: str | None) -> tuple[dict[str, pa.DataType], frozenset[str]]:
        kept_types: dict[str, pa.DataType] = {}
        json_columns = set()
        for name in self.job.keep:
            self._require_somewhere(name, self.keep_option)
            if name == "id" and id_column == "id":
                continue
            if name == "id" and id_column is not None:
                raise UsageError(
                    f"{self.keep_option} id: the output's id is taken from {id_column!r}",
                    "use --id-column id, or do not keep it",
                )
            kept_types[name], is_json = self._kept_type(name)
            if is_json:
                json_columns.add(name)
        return kept_types, frozenset(json_columns)

    def _kept_type(self, name: str) -> tuple[pa.DataType, bool]:
        if name in self._partition_types:
            self._require(name, self.keep_option)
            return self._partition_types[name], False
        values = [nested_value(row, name) for row in self.rows]
        json_type = arrow_types.infer_kept_type(values)
        jsonl = [preview for preview in self.previews if preview.has_inferred_types]
        others = [preview for preview in self.previews if not preview.has_inferred_types]
        self._require(name, self.keep_option, others)
        has_only_nulls = set(map(type, values)) <= {type(None)}
        if others and has_only_nulls:
            json_type = pa.null()  # the other inputs show the type
        types = [
            (preview, (json_type or pa.string()) if preview.has_inferred_types else data_type)
            for preview in self.previews
            if preview.has_inferred_types or (data_type := preview.column_type(name)) is not None
        ]
        if jsonl and json_type is None:
            content = "only null" if has_only_nulls else "nested or mixed values"
            self.notes.append(f"The kept column {name!r} has {content} in the first rows: it is stored as JSON text.")
        data_type = common_type(name, types)
        if not record_batches.can_keep_type(data_type):
            raise UsageError(
                f"{self.keep_option} {name}: columns of type {data_type} cannot be kept",
                f"leave {self.keep_option} {name} out",
            )
        return data_type, bool(jsonl) and json_type is None

    # Columns of the inputs

    def _find_input_without_text(self) -> InputPreview:
        """The input that lacks a text column that others have; otherwise the first."""
        names_by_input = [
            {name.lower() for name, data_type in preview.column_types.items() if arrow_types.may_hold_text(data_type)}
            for preview in self.previews
        ]
        expected = next((name for name in TEXT_COLUMN_NAMES if any(name in names for names in names_by_input)), None)
        pairs = zip(self.previews, names_by_input, strict=True)
        return next((preview for preview, names in pairs if expected not in names), self.previews[0])

    def _guess(
        self, names: Sequence[str], is_usable: Callable[[pa.DataType], bool], candidates: Sequence[str] | None = None
    ) -> str | None:
        """The first of the well-known names that every input has with a usable type."""
        by_lower_name = {}
        for name in reversed(self._common_names if candidates is None else candidates):
            by_lower_name[name.lower()] = name
        for name in (by_lower_name[name] for name in names if name in by_lower_name):
            if all(is_usable(preview.column_types[name]) for preview in self.previews):
                self._refuse_duplicates(name)
                return name
        return None

    def _require(self, name: str, option: str, previews: Sequence[InputPreview] | None = None) -> None:
        """UsageError unless every input has the column once."""
        for preview in self.previews if previews is None else previews:
            if preview.column_type(name) is None:
                self._refuse_or_note_unseen(name, option, preview)
        self._refuse_duplicates(name)

    def _refuse_duplicates(self, name: str) -> None:
        """UsageError if an input has the column, or a column that it is a field of, more than once."""
        for preview in self.previews:
            repeated = next((other for other in preview.duplicate_names if f"{name}.".startswith(f"{other}.")), None)
            if repeated is not None:
                raise UsageError(
                    f"{format_location(preview.path)}: has more than one column {repeated!r}", "rename one of them"
                )

    def _require_somewhere(self, name: str, option: str) -> None:
        """UsageError unless at least one input has the column."""
        if all(preview.column_type(name) is None for preview in self.previews):
            unseen = next((preview for preview in self.previews if not preview.shows_all_rows), self.previews[0])
            self._refuse_or_note_unseen(name, option, unseen)
        self._refuse_duplicates(name)

    def _refuse_or_note_unseen(self, name: str, option: str, preview: InputPreview) -> None:
        """UsageError for a column that an input does not have; only a note if its later rows may have it.

        A name that no input has is refused all the same if one has a column of almost that name.
        """
        is_known = any(other.column_type(name) is not None for other in self.previews)
        columns = {column.lower() for other in self.previews for column in other.flat_column_types}
        is_mistyped = not is_known and get_close_matches(name.lower(), columns, n=1, cutoff=TYPING_ERROR_SIMILARITY)
        if preview.shows_all_rows or is_mistyped:
            raise self._no_column_error(name, option, preview)
        effect = "stored with null where they lack it" if option == self.keep_option else "rejected where they lack it"
        note = f"The first rows of {format_location(preview.path)} have no column {name!r}: rows are {effect}."
        if note not in self.notes:
            self.notes.append(note)

    def _no_column_error(self, name: str, option: str, preview: InputPreview) -> UsageError:
        by_lower_name = {column.lower(): column for column in (*preview.flat_column_types, *preview.partition_types)}
        close = get_close_matches(name.lower(), by_lower_name, n=1)
        several = name.split(",")
        if option == "--keep" and several[1:] and {*several} <= {*by_lower_name.values()}:
            return UsageError(
                f"{format_location(preview.path)}: {option}: there is no column {name!r}, but there are "
                f"{' and '.join(map(repr, several))}",
                f"give one {option} for each: {' '.join(f'{option} {column}' for column in several)}",
            )
        hint = f"did you mean {by_lower_name[close[0]]!r}? {option} needs the exact column name" if close else ""
        return UsageError(
            f"{format_location(preview.path)}: {option}: there is no column {name!r}; {self._list_columns(preview)}",
            hint or f"use one of these with {option}",
        )

    def _list_columns(self, preview: InputPreview) -> str:
        names = [repr(name) for name in (*preview.flat_column_types, *preview.partition_types)]
        more = f" and {len(names) - MAX_LISTED_COLUMNS} more" if len(names) > MAX_LISTED_COLUMNS else ""
        return f"its columns are {', '.join(names[:MAX_LISTED_COLUMNS])}{more}"
