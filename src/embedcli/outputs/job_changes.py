"""Tell in which settings a job differs from the one that made or began an output, and whether vectors can be reused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from embedcli.core.errors import ResumeError
from embedcli.core.job import Job
from embedcli.outputs.target import UPDATE_HINT, OutputTarget

# The keys of the job that must be equal in two outputs for their vectors to be interchangeable.
COMPARED_SPACE_KEYS = (
    "fingerprint", "pooling", "prompt", "task", "max_seq_length", "normalize", "truncate_dim", "dtype", "precision",
    "overflow", "heads", "top_k_terms", "min_weight", "pool_factor",
)  # fmt: skip
# Longer values are shown by their beginning.
MAX_VALUE_CHARACTERS = 60
# Parts of a job's identity that follow from others, and are named only if nothing else differs.
DERIVED_KEYS = frozenset({"id_type", "fingerprint", "pooling"})
# What follows from --heads unless it is the only change.
DERIVED_FROM_HEADS = frozenset({"normalize"})
# A model with heads has these vectors without --heads.
OWN_HEADS = ("dense",)
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
    if not differing_keys(old, new):
        return
    hint = "use --overwrite to start again, or another output"
    if state == "begun":
        hint = "use the earlier settings to go on, --overwrite to start again, or another output"
    elif is_update_possible(old, new, target):
        hint = f"use --overwrite to start again, {UPDATE_HINT}or another output"
    raise ResumeError(f"{target.output} was {state} with other settings: {describe_changes(old, new)}", hint)


def is_update_possible(old: Mapping[str, Any], new: Mapping[str, Any], target: OutputTarget) -> bool:
    """Whether --update can take over vectors of a finished output, made by a job with the identity `old`."""
    if target.format == "jsonl" or "ranges_from" in differing_keys(old, new):
        return False
    try:
        check_same_vector_space(target.output, old, new)
    except ResumeError:
        return False
    return True


def check_same_vector_space(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ResumeError, naming the first key that differs, if the vectors of two jobs are not interchangeable."""
    for key in COMPARED_SPACE_KEYS:
        if old.get(key) != new.get(key):
            raise ResumeError(
                f"the vectors in {path} are in another space: {describe_space_change(key, old, new)}",
                "use the settings of that output, or encode all rows again: "
                "--overwrite in place of --update, or no --reuse",
            )
    # The overlap changes vectors with --overflow pool only, which averages the windows of a text.
    was, now = old.get("split_overlap") or 0, new.get("split_overlap") or 0
    if new.get("overflow") == "pool" and was != now:
        raise ResumeError(
            f"the vectors in {path} are pooled from other windows: --split-overlap was {was}, now {now}",
            f"use --split-overlap {was}, or encode all rows again: --overwrite in place of --update, or no --reuse",
        )
    if new.get("overflow") == "split":
        raise ResumeError(
            f"{path} holds windows (--overflow split), which cannot be reused",
            "use --overwrite to encode all rows again",
        )


def describe_space_change(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """How two jobs differ in a key of COMPARED_SPACE_KEYS, as half a sentence."""
    was, now = old.get(key), new.get(key)
    if key == "fingerprint" and old.get("model") != new.get("model"):
        return f"they are those of the model {old.get('model')}, and this job uses {new.get('model')}"
    if key == "fingerprint":
        return f"another version of {new.get('model')} computed them, with the fingerprint {str(was)[:12]}"
    if key == "heads":
        asked = ", ".join(now or OWN_HEADS)
        return f"they are those of the heads {', '.join(was or OWN_HEADS)}, and this job asks for {asked}"
    return f"{key} was {was!r}, now {now!r}"


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys in which the identities of two jobs differ, sorted."""
    return [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The settings that differ with their values, as `--keep (none, now lang), --dtype (float32, now half)`."""
    changed = differing_keys(old, new)
    derived = DERIVED_KEYS | (DERIVED_FROM_HEADS if "heads" in changed else set())
    if "heads" in changed:
        old, new = ({**job, "heads": job.get("heads") or OWN_HEADS} for job in (old, new))
    named = [key for key in changed if key not in derived] or changed
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
    elif isinstance(value, dict | list | tuple):
        text = " ".join(str(item) for item in value)
    else:
        text = json.dumps(value)
    return text if len(text) <= MAX_VALUE_CHARACTERS else text[: MAX_VALUE_CHARACTERS - 3] + "..."
