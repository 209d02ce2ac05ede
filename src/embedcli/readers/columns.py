"""Which columns hold the text, the id and what is kept: as the user says, or guessed and said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import Columns
from embedcli.readers import arrow_types as scalars
from embedcli.readers import parquet as parquet_reader
from embedcli.readers.nested_fields import value_in
from embedcli.readers.preview import Look
from embedcli.readers.template import parse
from embedcli.storage import where

# In this order, without regard to upper and lower case.
TEXT_NAMES = (
    "text", "content", "contents", "body", "sentence", "document", "passage", "abstract", "chunk", "paragraph",
    "description", "query", "question", "title",
)  # fmt: skip
ID_NAMES = ("id", "_id", "doc_id", "docid", "document_id", "uuid", "guid", "pid", "qid")
RESERVED = frozenset({"embedding", "n_tokens", "truncated", "text_hash", "row", "window", "char_start", "char_end"})
SHOWN_NAMES = 20


def resolve(job: Job, looks: Sequence[Look], rows: Sequence[dict[str, Any]]) -> Columns:
    """The columns of the job. `rows` are the first JSONL rows of all inputs together.

    Raises UsageError, naming the columns there are, for a column that is missing from an input, or whose type
    cannot be a text or an id, or if the text column is not given and cannot be guessed.
    """
    if job.template is not None and job.text_column is not None:
        raise UsageError(
            "--template and --text-column are both given", "the template names the columns: drop the other"
        )
    check_keep(job)
    seen = [look for look in looks if look.kinds]
    seen = [look for look in seen if look.total != 0] or seen
    several = len(looks) > 1
    return Chooser(job, seen, rows).columns(several) if seen else unseen(job, looks, several)


def check_keep(job: Job) -> None:
    """UsageError if a column to keep has a name that the output gives to one of its own."""
    for name in job.keep:
        if name in RESERVED:
            raise UsageError(
                f"--keep {name}: the output has a column {name!r} of its own", "rename the column in the input"
            )


def unseen(job: Job, looks: Sequence[Look], several: bool) -> Columns:
    """The columns of inputs in which no row could be seen: as named, else `text`. InputError if rows are all bad."""
    bad = next((look for look in looks if look.trouble), None)
    if bad is not None and job.text_column is None and job.template is None:
        raise InputError(
            f"{where(bad.path, 1)}: {bad.trouble}",
            "one JSON object a line is needed (jq -c . FILE makes it so), or --format names another format",
        )
    id_column = job.id_column or None
    keep = {name: pa.string() for name in job.keep if name != id_column}
    return Columns(
        text_column=None if job.template is not None else job.text_column or "text",
        template=job.template,
        id_column=id_column,
        id_type=pa.int64() if id_column is None else pa.string(),
        keep_types=keep,
        source_column=several and "source" not in keep,
        notes=("The input has no rows." if bad is None else "None of the first rows can be read.",),
        json_columns=frozenset(keep),
    )


class Chooser:
    """Chooses columns for the inputs in which rows were seen, and notes what it guessed."""

    def __init__(self, job: Job, looks: Sequence[Look], rows: Sequence[dict[str, Any]]) -> None:
        self.job = job
        self.looks = looks
        self.rows = rows
        self.notes: list[str] = []
        # Values of these formats come as Python objects, which only some Arrow types take.
        self._plain = any(look.format != "parquet" for look in looks)
        self.common = [name for name in looks[0].kinds if all(name in look.kinds for look in looks)]

    def columns(self, several: bool) -> Columns:
        job = self.job
        self._note_delimiters()
        id_column = self._id_column()
        text_column = None if job.template is not None else self._text_column(id_column)
        self._check_template()
        id_type = pa.int64() if id_column is None else self._id_type(id_column)
        keep, json_columns = self._kept(id_column)
        if several and "source" in keep:
            self.notes.append("The kept column source is the rows' own, so the names of the inputs are not written.")
        return Columns(
            text_column=text_column,
            template=job.template,
            id_column=id_column,
            id_type=id_type,
            keep_types=keep,
            source_column=several and "source" not in keep,
            notes=tuple(self.notes),
            json_columns=json_columns,
        )

    def _note_delimiters(self) -> None:
        unusual = [look for look in self.looks if look.delimiter]
        if unusual:
            first, more = unusual[0], f" and {len(unusual) - 1} other inputs" if unusual[1:] else ""
            self.notes.append(
                f"The fields of {where(first.path)}{more} are separated by {first.delimiter!r} (seen in its header)."
            )

    # Ids

    def _id_column(self) -> str | None:
        """As named, or guessed; None, for generated numbers, if the name is empty or there is nothing to guess."""
        if self.job.id_column == "":
            return None
        if self.job.id_column is not None:
            self._require(self.job.id_column, "--id-column")
            return self.job.id_column
        name = self._guess(ID_NAMES, lambda kind: scalars.is_string(kind) or pa.types.is_integer(kind))
        if name is None:
            odd = self._guess(ID_NAMES, lambda kind: True)
            held = f" ({odd!r} holds {self.looks[0].kinds[odd]})" if odd is not None else ""
            self.notes.append(f"No id column was found{held}: rows are numbered from 0 in the column row.")
        else:
            self.notes.append(f"Ids are taken from the column {name!r} (guessed; --id-column names another).")
        return name

    def _id_type(self, name: str) -> pa.DataType:
        kinds: list[tuple[str, pa.DataType]] = []
        for look in self.looks:
            kind = look.kind(name)
            if look.format == "jsonl":
                kind = scalars.id_type([value_in(row, name) for row in self.rows])
            if kind is None or pa.types.is_null(kind) or pa.types.is_nested(kind):
                held = "neither whole numbers nor strings" if look.format == "jsonl" else f"{kind}, and no ids"
                raise UsageError(
                    f"{where(look.path)}: column {name!r} holds {held}",
                    f"name another with --id-column; {self._names(look)}",
                )
            kinds.append((look.path, kind))
        return self._unified(name, kinds)

    # Texts

    def _text_column(self, id_column: str | None) -> str:
        name = self.job.text_column
        if name is not None:
            self._require(name, "--text-column")
            self._check_text(name, scalars.is_text, "no text")
            return name
        others = [n for n in self.common if n != id_column]
        name = self._guess(TEXT_NAMES, scalars.is_text, others) or self._lone_string(id_column)
        if name is None:
            odd = self._without_text()
            raise UsageError(
                f"{where(odd.path)}: which column holds the text? {self._names(odd)}",
                "name it with --text-column NAME, or put several together with --template",
            )
        self.notes.append(f"Texts are taken from the column {name!r} (guessed; --text-column names another).")
        return name

    def _lone_string(self, id_column: str | None) -> str | None:
        """The only column or field that holds strings in every input; None if there are others, or none."""
        strings = [
            name
            for name, kind in self.looks[0].leaves.items()
            if name != id_column
            and scalars.is_string(kind)
            and all(scalars.is_string(look.leaves.get(name, pa.null())) for look in self.looks[1:])
        ]
        return strings[0] if len(strings) == 1 else None

    def _check_template(self) -> None:
        if self.job.template is None:
            return
        template = parse(self.job.template)
        for name in template.required:
            self._require(name, "--template")
        for name in template.names:
            self._require_somewhere(name, "--template")
            self._check_text(name, lambda k: scalars.is_text(k) or pa.types.is_integer(k), "no text or whole numbers")

    def _check_text(self, name: str, usable: Callable[[pa.DataType], bool], lack: str) -> None:
        """Parquet says what a column holds; of JSONL only the first rows are known, and others may follow."""
        for look in self.looks:
            kind = look.kind(name)
            if kind is None or usable(kind):
                continue
            if look.format != "jsonl":
                raise UsageError(
                    f"{where(look.path)}: column {name!r} holds {kind}, and {lack}",
                    f"name another with --text-column; {self._names(look)}",
                )
            self.notes.append(f"The first rows of {where(look.path)} have {lack} in the column {name!r}.")

    # Kept columns

    def _kept(self, id_column: str | None) -> tuple[dict[str, pa.DataType], frozenset[str]]:
        keep: dict[str, pa.DataType] = {}
        json_columns = set()
        for name in self.job.keep:
            self._require_somewhere(name, "--keep")
            if name == "id" and id_column == "id":
                continue
            if name == "id" and id_column is not None:
                raise UsageError(
                    f"--keep id: the output's id is taken from {id_column!r}", "use --id-column id, or do not keep it"
                )
            keep[name], is_json = self._kept_type(name)
            if is_json:
                json_columns.add(name)
        return keep, frozenset(json_columns)

    def _kept_type(self, name: str) -> tuple[pa.DataType, bool]:
        values = [value_in(row, name) for row in self.rows]
        from_json = scalars.kept_type(values)
        lines = [look for look in self.looks if look.format == "jsonl"]
        others = [look for look in self.looks if look.format != "jsonl"]
        for look in others:
            self._require(name, "--keep", [look])
        kinds = [(look.path, kind) for look in others if (kind := look.kind(name)) is not None]
        kinds += [(look.path, from_json or pa.string()) for look in lines[:1]]
        if lines and from_json is None:
            seen = "only null" if set(map(type, values)) <= {type(None)} else "nested or mixed values"
            self.notes.append(f"The kept column {name!r} has {seen} in the first rows: it is stored as JSON text.")
        kind = self._unified(name, kinds)
        if not parquet_reader.keepable(kind):
            raise UsageError(f"--keep {name}: columns of type {kind} cannot be kept", f"leave --keep {name} out")
        return kind, bool(lines) and from_json is None

    # What there is

    def _without_text(self) -> Look:
        """The input that keeps the text column of others from being found, else the first."""
        known = [{name.lower() for name, kind in look.kinds.items() if scalars.is_text(kind)} for look in self.looks]
        wanted = next((name for name in TEXT_NAMES if any(name in names for names in known)), None)
        return next((look for look, names in zip(self.looks, known, strict=True) if wanted not in names), self.looks[0])

    def _all(self, name: str, usable: Callable[[pa.DataType], bool]) -> bool:
        return all(usable(look.kinds[name]) for look in self.looks)

    def _guess(
        self, names: Sequence[str], usable: Callable[[pa.DataType], bool], among: Sequence[str] | None = None
    ) -> str | None:
        """The first of the well-known names that every input has, with a usable type."""
        known = {}
        for name in reversed(self.common if among is None else among):
            known[name.lower()] = name
        found = (known[name] for name in names if name in known)
        return next((name for name in found if self._all(name, usable)), None)

    def _require(self, name: str, flag: str, looks: Sequence[Look] | None = None) -> None:
        for look in self.looks if looks is None else looks:
            if look.kind(name) is None:
                raise self._no_column(name, flag, look)
            if name in look.twice:
                raise UsageError(f"{where(look.path)}: has more than one column {name!r}", "rename one of them")

    def _require_somewhere(self, name: str, flag: str) -> None:
        if all(look.kind(name) is None for look in self.looks):
            raise self._no_column(name, flag, self.looks[0])

    def _no_column(self, name: str, flag: str, look: Look) -> UsageError:
        lower = {known.lower(): known for known in look.leaves}
        close = get_close_matches(name.lower(), lower, n=1)
        hint = f"did you mean {lower[close[0]]!r}? {flag} takes a name as it stands there" if close else ""
        return UsageError(
            f"{where(look.path)}: {flag}: there is no column {name!r}; {self._names(look)}",
            hint or f"give {flag} one of these",
        )

    def _names(self, look: Look) -> str:
        names = [repr(name) for name in look.leaves]
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        return f"its columns are {', '.join(names[:SHOWN_NAMES])}{more}"

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
            if unified is None or (self._plain and not scalars.python_types(unified)):
                raise UsageError(
                    f"column {name!r} is {found} in {where(kinds[0][0])} and {other} in {where(first[other])}",
                    "make their types equal, or embed these inputs one by one",
                )
            found = unified
        return found
