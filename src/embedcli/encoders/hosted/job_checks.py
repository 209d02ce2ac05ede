"""Checks of a job for a hosted model, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from embedcli.core.constants import HOSTED_PREFIX
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.encoders.hosted.client import ServerAddress
from embedcli.encoders.hosted.request_fields import ENCODING_FIELD, resolve_request_fields
from embedcli.models.config import resolve_prompt
from embedcli.models.registry import find_registered_model


class UnusedRoleNote(str):
    """The note that --as has no effect. Commands that choose a role themselves leave it out."""


def check_options(job: Job, where: ServerAddress) -> None:
    """Raise UsageError for an option that has no valid value for a hosted model."""
    if not job.model.removeprefix(HOSTED_PREFIX).strip():
        raise UsageError(f"--model {job.model} names no model", f"give --model {HOSTED_PREFIX}NAME")
    resolve_prompt(job, {}, None)
    resolve_request_fields(job, where.dialect)
    if job.offline and not where.is_loopback:
        raise UsageError(f"--offline forbids asking {where.place}", "leave it out, or use a local model or server")
    flags = {
        "rpm": job.rpm,
        "tpm": job.tpm,
        "max-concurrency": job.max_concurrency,
        "request-timeout": job.request_timeout,
        "patience": job.patience,
    }
    for flag, value in flags.items():
        if value is not None and value <= 0:
            raise UsageError(f"--{flag} {value} is not above 0", "give a positive number, or leave it out")


def check_window_limit(job: Job, limit: int | None) -> None:
    """Raise UsageError for --overflow split and pool if the limit of a window is unknown."""
    if job.overflow in ("split", "pool") and limit is None:
        raise UsageError(
            f"--overflow {job.overflow} requires the model's token limit, which servers do not report",
            "give --max-seq-length, with some reserve where token counts are estimates",
        )


def list_notes(job: Job, where: ServerAddress, key: str) -> Iterator[str]:
    """Yield what the user should know before the first request."""
    name = job.model.removeprefix(HOSTED_PREFIX)
    family = find_registered_model(name)
    if where.dialect.role_fields(job.as_):
        sent = ", ".join(f"{name}={value}" for name, value in where.dialect.role_fields(job.as_).items())
        yield f"--as {job.as_} is sent to {where.dialect.name} as {sent}"
    elif family and family.prompts and job.prompt is None and job.as_ != "none":
        wanted = " or ".join(f"--prompt {text!r} ({role})" for role, text in family.prompts.items())
        yield f"{name} was trained with prompts, which servers rarely add; pass {wanted}"
    elif job.as_ in ("query", "document") and job.prompt is None:
        note = f"--as {job.as_} changes nothing: a hosted model's prompts are not known here; give --prompt"
        yield UnusedRoleNote(note)
    if job.normalize is False:
        yield "--no-normalize changes nothing: vectors are stored as the server sends them"
    yield from _list_unused_options(job, where)
    if key and where.url.startswith("http://") and not where.is_loopback:
        yield f"the key travels unencrypted to {where.place}: use https:// where you can"


def _list_unused_options(job: Job, where: ServerAddress) -> Iterator[str]:
    """Yield a note for each option that has no effect on requests."""
    defaults = {field.name: field.default for field in fields(Job)}
    for name in ("device", "engine", "dtype"):
        value = getattr(job, name)
        if value != defaults[name]:
            yield f"--{name} {value} is not used: a hosted model is computed by its server"
    sent = {ENCODING_FIELD, where.dialect.dimensions_field, where.dialect.role_field}
    for name in job.omit_field:
        if name not in sent:
            yield f"--omit-field {name} changes nothing: embedcli does not send this field"
