"""Which columns hold the text, the id and what is kept: as the user says, or guessed and said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import InputColumns
from embedcli.readers import arrow_types as scalars
from embedcli.readers import parquet as parquet_reader
from embedcli.readers.nested_fields import nested_value
from embedcli.readers.preview import InputPreview
from embedcli.readers.template import parse_template
from embedcli.storage import format_location

# In this order, without regard to upper and lower case.
TEXT_COLUMN_NAMES = (
    "text", "content", "contents", "body", "sentence", "document", "passage", "abstract", "chunk", "paragraph",
    "description", "query", "question", "title",
)  # fmt: skip
ID_COLUMN_NAMES = ("id", "_id", "doc_id", "docid", "document_id", "uuid", "guid", "pid", "qid")
RESERVED_COLUMNS = frozenset(
    {"embedding", "n_tokens", "truncated", "text_hash", "row", "window", "char_start", "char_end"}
)
MAX_LISTED_COLUMNS = 20


def resolve_columns(
    job: Job, looks: Sequence[InputPreview], rows: Sequence[dict[str, Any]], keep_option: str = "--keep"
) -> InputColumns:
    """The columns of the job. `rows` are the first JSONL rows of all inputs together.

    `keep_option` is the option that named the columns in `job.keep`, for error messages.

    Raises UsageError, naming the columns there are, for a column that is missing from an input, or whose type
    cannot be a text or an id, or if the text column is not given and cannot be guessed.
    """
    if job.template is not None and job.text_column is not None:
        raise UsageError(
            "--template and --text-column are both given", "the template names the columns: drop the other"
        )
    check_kept_columns(job, keep_option)
    seen = [look for look in looks if look.column_types]
    seen = [look for look in seen if look.total_rows != 0] or seen
    several = len(looks) > 1
    return (
        ColumnChooser(job, seen, rows, keep_option).choose(several)
        if seen
        else columns_without_rows(job, looks, several)
    )


def check_kept_columns(job: Job, keep_option: str) -> None:
    """UsageError if a column to keep has a name that the output gives to one of its own."""
    for name in job.keep:
        if name in RESERVED_COLUMNS:
            raise UsageError(
                f"{keep_option} {name}: the output has a column {name!r} of its own", "rename the column in the input"
            )


def columns_without_rows(job: Job, looks: Sequence[InputPreview], several: bool) -> InputColumns:
    """The columns of inputs in which no row could be seen: as named, else `text`. InputError if rows are all bad."""
    bad = next((look for look in looks if look.problem), None)
    if bad is not None and job.text_column is None and job.template is None:
        raise InputError(
            f"{format_location(bad.path, 1)}: {bad.problem}",
            "one JSON object a line is needed (jq -c . FILE makes it so), or --format names another format",
        )
    id_column = job.id_column or None
    keep = {name: pa.string() for name in job.keep if name != id_column}
    return InputColumns(
        text_column=None if job.template is not None else job.text_column or "text",
        template=job.template,
        id_column=id_column,
        id_type=pa.int64() if id_column is None else pa.string(),
        kept_types=keep,
        has_source_column=several and "source" not in keep,
        notes=("The input has no rows." if bad is None else "None of the first rows can be read.",),
        json_columns=frozenset(keep),
    )


class ColumnChooser:
    """Chooses columns for the inputs in which rows were seen, and notes what it guessed."""

    def __init__(
        self, job: Job, looks: Sequence[InputPreview], rows: Sequence[dict[str, Any]], keep_option: str
    ) -> None:
        self.job = job
        self.keep_option = keep_option
        self.previews = looks
        self.rows = rows
        self.notes: list[str] = []
        # Values of these formats come as Python objects, which only some Arrow types take.
        self._plain = any(look.format != "parquet" for look in looks)
        self.common_types = [name for name in looks[0].column_types if all(name in look.column_types for look in looks)]

    def choose(self, several: bool) -> InputColumns:
        job = self.job
        self._note_delimiters()
        id_column = self._id_column()
        text_column = None if job.template is not None else self._text_column(id_column)
        self._check_template()
        id_type = pa.int64() if id_column is None else self._id_type(id_column)
        keep, json_columns = self._kept(id_column)
        if several and "source" in keep:
            self.notes.append("The kept column source is the rows' own, so the names of the inputs are not written.")
        return InputColumns(
            text_column=text_column,
            template=job.template,
            id_column=id_column,
            id_type=id_type,
            kept_types=keep,
            has_source_column=several and "source" not in keep,
            notes=tuple(self.notes),
            json_columns=json_columns,
        )

    def _note_delimiters(self) -> None:
        unusual = [look for look in self.previews if look.delimiter]
        if unusual:
            first, more = unusual[0], f" and {len(unusual) - 1} other inputs" if unusual[1:] else ""
            self.notes.append(
                f"The fields of {format_location(first.path)}{more} are separated by {first.delimiter!r} (seen in its header)."
            )

    # Ids

    def _id_column(self) -> str | None:
        """As named, or guessed; None, for generated numbers, if the name is empty or there is nothing to guess."""
        if self.job.id_column == "":
            return None
        if self.job.id_column is not None:
            self._require(self.job.id_column, "--id-column")
            return self.job.id_column
        name = self._guess(ID_COLUMN_NAMES, lambda kind: scalars.is_string(kind) or pa.types.is_integer(kind))
        if name is None:
            odd = self._guess(ID_COLUMN_NAMES, lambda kind: True)
            held = f" ({odd!r} holds {self.previews[0].column_types[odd]})" if odd is not None else ""
            self.notes.append(f"No id column was found{held}: rows are numbered from 0 in the column row.")
        else:
            self.notes.append(f"Ids are taken from the column {name!r} (guessed; --id-column names another).")
        return name

    def _id_type(self, name: str) -> pa.DataType:
        kinds: list[tuple[str, pa.DataType]] = []
        for look in self.previews:
            kind = look.column_type(name)
            if look.format == "jsonl":
                kind = scalars.infer_id_type([nested_value(row, name) for row in self.rows])
            if kind is None or pa.types.is_null(kind) or pa.types.is_nested(kind):
                held = "neither whole numbers nor strings" if look.format == "jsonl" else f"{kind}, and no ids"
                raise UsageError(
                    f"{format_location(look.path)}: column {name!r} holds {held}",
                    f"name another with --id-column; {self._names(look)}",
                )
            kinds.append((look.path, kind))
        return self._unified(name, kinds)

    # Texts

    def _text_column(self, id_column: str | None) -> str:
        name = self.job.text_column
        if name is not None:
            self._require(name, "--text-column")
            self._check_text(name, scalars.may_hold_text, "no text")
            return name
        others = [n for n in self.common_types if n != id_column]
        name = self._guess(TEXT_COLUMN_NAMES, scalars.may_hold_text, others) or self._lone_string(id_column)
        if name is None:
            odd = self._without_text()
            raise UsageError(
                f"{format_location(odd.path)}: which column holds the text? {self._names(odd)}",
                "name it with --text-column NAME, or put several together with --template",
            )
        self.notes.append(f"Texts are taken from the column {name!r} (guessed; --text-column names another).")
        return name

    def _lone_string(self, id_column: str | None) -> str | None:
        """The only column or field that holds strings in every input; None if there are others, or none."""
        strings = [
            name
            for name, kind in self.previews[0].flat_column_types.items()
            if name != id_column
            and scalars.is_string(kind)
            and all(scalars.is_string(look.flat_column_types.get(name, pa.null())) for look in self.previews[1:])
        ]
        return strings[0] if len(strings) == 1 else None

    def _check_template(self) -> None:
        if self.job.template is None:
            return
        template = parse_template(self.job.template)
        for name in template.required_names:
            self._require(name, "--template")
        for name in template.names:
            self._require_somewhere(name, "--template")
            self._check_text(
                name, lambda k: scalars.may_hold_text(k) or pa.types.is_integer(k), "no text or whole numbers"
            )

    def _check_text(self, name: str, usable: Callable[[pa.DataType], bool], lack: str) -> None:
        """Parquet says what a column holds; of JSONL only the first rows are known, and others may follow."""
        for look in self.previews:
            kind = look.column_type(name)
            if kind is None or usable(kind):
                continue
            if look.format != "jsonl":
                raise UsageError(
                    f"{format_location(look.path)}: column {name!r} holds {kind}, and {lack}",
                    f"name another with --text-column; {self._names(look)}",
                )
            self.notes.append(f"The first rows of {format_location(look.path)} have {lack} in the column {name!r}.")

    # Kept columns

    def _kept(self, id_column: str | None) -> tuple[dict[str, pa.DataType], frozenset[str]]:
        keep: dict[str, pa.DataType] = {}
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
            keep[name], is_json = self._kept_type(name)
            if is_json:
                json_columns.add(name)
        return keep, frozenset(json_columns)

    def _kept_type(self, name: str) -> tuple[pa.DataType, bool]:
        values = [nested_value(row, name) for row in self.rows]
        from_json = scalars.infer_kept_type(values)
        lines = [look for look in self.previews if look.format == "jsonl"]
        others = [look for look in self.previews if look.format != "jsonl"]
        for look in others:
            self._require(name, self.keep_option, [look])
        kinds = [(look.path, kind) for look in others if (kind := look.column_type(name)) is not None]
        kinds += [(look.path, from_json or pa.string()) for look in lines[:1]]
        if lines and from_json is None:
            seen = "only null" if set(map(type, values)) <= {type(None)} else "nested or mixed values"
            self.notes.append(f"The kept column {name!r} has {seen} in the first rows: it is stored as JSON text.")
        kind = self._unified(name, kinds)
        if not parquet_reader.can_keep_type(kind):
            raise UsageError(
                f"{self.keep_option} {name}: columns of type {kind} cannot be kept",
                f"leave {self.keep_option} {name} out",
            )
        return kind, bool(lines) and from_json is None

    # What there is

    def _without_text(self) -> InputPreview:
        """The input that keeps the text column of others from being found, else the first."""
        known = [
            {name.lower() for name, kind in look.column_types.items() if scalars.may_hold_text(kind)}
            for look in self.previews
        ]
        wanted = next((name for name in TEXT_COLUMN_NAMES if any(name in names for names in known)), None)
        return next(
            (look for look, names in zip(self.previews, known, strict=True) if wanted not in names), self.previews[0]
        )

    def _all(self, name: str, usable: Callable[[pa.DataType], bool]) -> bool:
        return all(usable(look.column_types[name]) for look in self.previews)

    def _guess(
        self, names: Sequence[str], usable: Callable[[pa.DataType], bool], among: Sequence[str] | None = None
    ) -> str | None:
        """The first of the well-known names that every input has, with a usable type."""
        known = {}
        for name in reversed(self.common_types if among is None else among):
            known[name.lower()] = name
        found = (known[name] for name in names if name in known)
        return next((name for name in found if self._all(name, usable)), None)

    def _require(self, name: str, flag: str, looks: Sequence[InputPreview] | None = None) -> None:
        for look in self.previews if looks is None else looks:
            if look.column_type(name) is None:
                raise self._no_column(name, flag, look)
            if name in look.duplicate_names:
                raise UsageError(
                    f"{format_location(look.path)}: has more than one column {name!r}", "rename one of them"
                )

    def _require_somewhere(self, name: str, flag: str) -> None:
        if all(look.column_type(name) is None for look in self.previews):
            raise self._no_column(name, flag, self.previews[0])

    def _no_column(self, name: str, flag: str, look: InputPreview) -> UsageError:
        lower = {known.lower(): known for known in look.flat_column_types}
        close = get_close_matches(name.lower(), lower, n=1)
        hint = f"did you mean {lower[close[0]]!r}? {flag} takes a name as it stands there" if close else ""
        return UsageError(
            f"{format_location(look.path)}: {flag}: there is no column {name!r}; {self._names(look)}",
            hint or f"give {flag} one of these",
        )

    def _names(self, look: InputPreview) -> str:
        names = [repr(name) for name in look.flat_column_types]
        more = f" and {len(names) - MAX_LISTED_COLUMNS} more" if len(names) > MAX_LISTED_COLUMNS else ""
        return f"its columns are {', '.join(names[:MAX_LISTED_COLUMNS])}{more}"

    def _unified(self, name: str, kinds: Sequence[tuple[str, pa.DataType]]) -> pa.DataType:
        """The one type that the column's types in all inputs fit into; UsageError if there is none."""
        first: dict[pa.DataType, str] = {}
        for path, kind in kinds:
            first.setdefault(kind, path)
        found, *others = first
        for other in others:
            both = [pa.schema([(name, kind)]) for kind in (found, other)]
            try:
                unified = pa.unify_schemas(both, promote_options="permissive").field(0).type
            except pa.ArrowTypeError:
                unified = None
            if unified is None or (self._plain and not scalars.accepted_python_types(unified)):
                raise UsageError(
                    f"column {name!r} is {found} in {format_location(kinds[0][0])} and {other} in {format_location(first[other])}",
                    "make their types equal, or embed these inputs one by one",
                )
            found = unified
        return found
