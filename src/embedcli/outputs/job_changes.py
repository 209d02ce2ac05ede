"""Tell in which settings a job differs from the one that made or began an output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from embedcli.core.errors import ResumeError
from embedcli.core.job import Job
from embedcli.outputs.target import OutputTarget, update_hint

# Longer values are shown by their beginning.
MAX_VALUE_CHARACTERS = 60
# Parts of a job's identity that follow from others, and are named only if nothing else differs.
DERIVED_KEYS = frozenset({"id_type", "fingerprint"})
# The options of parts that have another name in the identity.
OPTION_NAMES = {"task": "--as", "to": "--to"}


def check_job_unchanged(
    old: Mapping[str, Any], new: Mapping[str, Any], state: Literal["made", "begun"], target: OutputTarget
) -> None:
    """Raise ResumeError, naming the settings that differ, if an output belongs to another job.

    Args:
        old: The identity of the job that the output belongs to.
        new: The identity of this job.
        state: Whether the output is finished ("made") or not ("begun").
        target: The output.
    """
    if differing_keys(old, new):
        raise ResumeError(
            f"{target.output} was {state} with other settings: {describe_changes(old, new)}",
            f"use --overwrite to start again, {update_hint(target)}or another output",
        )


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys in which the identities of two jobs differ, sorted."""
    return [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The settings that differ with their values, as `--keep (none, now lang), --dtype (float32, now half)`."""
    changed = differing_keys(old, new)
    named = [key for key in changed if key not in DERIVED_KEYS] or changed
    return ", ".join(f"{_option(key)} ({_show(old.get(key))}, now {_show(new.get(key))})" for key in named)


def _option(key: str) -> str:
    """The option that sets a part of the identity; what has no option of its own, in words."""
    if key in OPTION_NAMES:
        return OPTION_NAMES[key]
    if key in {field.name for field in fields(Job)} - {"inputs"}:
        return f"--{key.removesuffix('_').replace('_', '-')}"
    return key.replace("_", " ")


def _show(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, str):
        text = value if value == value.strip() else json.dumps(value, ensure_ascii=False)
    elif isinstance(value, dict | list):
        text = " ".join(str(item) for item in value)
    else:
        text = json.dumps(value)
    return text if len(text) <= MAX_VALUE_CHARACTERS else text[: MAX_VALUE_CHARACTERS - 3] + "..."
