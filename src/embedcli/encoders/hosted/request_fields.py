"""Fields of a request beside model and input: those of the server, of --request-field and of --omit-field."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.encoders.hosted.known_hosts import HostDialect

FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
FIXED_FIELDS = ("model", "input")
# Fields are recorded with the vectors, so nothing that looks like a key may be among them.
SECRET_NAME = re.compile(
    r"(^|[_.-])(authorization|api[_-]?key|key|secret|password|passwd|bearer|credentials?|token)$", re.IGNORECASE
)
ENCODING_FIELD = "encoding_format"


@dataclass(frozen=True)
class RequestFields:
    """The fields that are sent with every request of a job.

    Attributes:
        extra: Fields by name, as JSON values: those of --as for a known server, and those of --request-field.
        omitted: Names of fields that are never sent.
        dimensions_field: The name of the field that shortens vectors; None if embedcli must not send it.
        may_ask_base64: Whether embedcli may choose `encoding_format`.
    """

    extra: dict[str, Any] = field(default_factory=dict)
    omitted: tuple[str, ...] = ()
    dimensions_field: str | None = "dimensions"
    may_ask_base64: bool = True

    def identity(self) -> dict[str, Any]:
        """The part of the vector space metadata; empty if the job asks for nothing special."""
        extra = {"request_fields": self.extra} if self.extra else {}
        omitted = [name for name in self.omitted if name != ENCODING_FIELD]
        return extra | ({"omitted_fields": omitted} if omitted else {})


def resolve_request_fields(job: Job, dialect: HostDialect) -> RequestFields:
    """Collect the fields of a job's requests.

    Args:
        job: The job.
        dialect: The dialect of its server.

    Returns:
        The fields; those of --request-field win over that of --as.

    Raises:
        UsageError: An option names no field, one that embedcli sends itself, or one that looks like a key.
    """
    given = dict(_parse_request_field(text) for text in job.request_field)
    omitted = tuple(sorted({_check_name("omit-field", name) for name in job.omit_field}))
    both = sorted(set(given) & set(omitted))
    if both:
        raise UsageError(f"--request-field and --omit-field both name {both[0]!r}", "leave one of them out")
    extra = {name: value for name, value in dialect.role_fields(job.as_).items() if name not in omitted} | given
    fixed = {*given, *omitted}
    return RequestFields(
        extra,
        omitted,
        None if dialect.dimensions_field in fixed else dialect.dimensions_field,
        ENCODING_FIELD not in fixed,
    )


def build_body(model: str, texts: str | Sequence[str], fields: Mapping[str, Any]) -> bytes:
    """Serialize a request; lone surrogates are escaped."""
    body: dict[str, Any] = {"model": model, "input": texts, **fields}
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        return json.dumps(body).encode()


def format_request_fields(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The values for --request-field that stand for recorded fields."""
    return tuple(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())


def _parse_request_field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals:
        raise UsageError("--request-field needs NAME=VALUE", "use e.g. --request-field input_type=passage")
    _check_name("request-field", name)
    try:
        parsed = json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        parsed = value
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if any(SECRET_NAME.search(inner) for inner in _list_names(parsed)) or (key and key in value):
        raise UsageError(
            f"--request-field {name} holds what looks like a key, and would be recorded with the vectors",
            "export OPENAI_API_KEY=... instead",
        )
    return name, parsed


def _check_name(option: str, name: str) -> str:
    if not FIELD_NAME.fullmatch(name):
        raise UsageError(f"--{option} does not begin with the name of a field", "use letters, digits and underscores")
    if name in FIXED_FIELDS:
        raise UsageError(f"--{option} cannot change {name!r}", "use --model for the model; the rows are the input")
    if SECRET_NAME.search(name):
        raise UsageError(
            f"--{option} {name} looks like a key, and would be recorded with the vectors",
            "export OPENAI_API_KEY=... instead",
        )
    return name


def _refuse_constant(name: str) -> Any:
    # NaN and Infinity are words of Python's JSON only.
    raise ValueError(name)


def _list_names(value: Any) -> Iterator[str]:
    """The names of all fields inside a JSON value."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _list_names(inner)
