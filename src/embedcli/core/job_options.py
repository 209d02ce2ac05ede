"""What the flags of a job may be: the same on the command line, in a file of settings and from Python."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from embedcli.core.errors import UsageError
from embedcli.core.job import Job

MINIMUM_VALUES = {
    "limit": 1, "batch_tokens": 1, "chunk_rows": 1, "threads": 1, "truncate_dim": 1, "max_seq_length": 1, "workers": 1,
    "rpm": 1, "tpm": 1, "max_concurrency": 1, "part_size": 1, "split_overlap": 0, "retry_cap": 0, "patience": 0,
    "num_cpus": 0, "num_gpus": 0,
}  # fmt: skip
POSITIVE_OPTIONS = ("max_seconds", "request_timeout")
# What JSON, numpy and Arrow all hold exactly.
MAX_INTEGER = 2**53


def validate_options(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Values by field of Job, as Job has them. UsageError for the first that cannot be right."""
    return {name: validate_option(name, value) for name, value in flags.items()}


def validate_option(name: str, value: Any) -> Any:
    """One flag's value as Job has it: `256MB` as a number, a list as a tuple. UsageError if it cannot be right."""
    if name in TEXT_PARSERS and value is not None:
        value = TEXT_PARSERS[name]("/".join(map(str, value)) if isinstance(value, tuple) else str(value))
    kinds = (
        get_args(job_field_types()[name])
        if NoneType in get_args(job_field_types()[name])
        else (job_field_types()[name],)
    )
    if value is None and NoneType in kinds:
        return None
    made = convert_to_type(name, kinds[0], value)
    if name in MINIMUM_VALUES and made < MINIMUM_VALUES[name]:
        raise UsageError(f"--{option_name(name)} {made:g} is too small", f"give {MINIMUM_VALUES[name]} or more")
    if isinstance(made, int) and made > MAX_INTEGER:
        raise UsageError(f"--{option_name(name)} {made} is too large", f"give {MAX_INTEGER} or less")
    if name in POSITIVE_OPTIONS and made <= 0:
        raise UsageError(f"--{option_name(name)} {made:g} is not above zero", "give a number of seconds")
    return made


def convert_to_type(name: str, kind: Any, value: Any) -> Any:
    """The value in the type of the field. UsageError where it has none of its values."""
    wrong = f"--{option_name(name)} {value!r} "
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            near = get_close_matches(str(value), get_args(kind), 1)
            choices = f"choose from {', '.join(get_args(kind))}"
            raise UsageError(wrong + "is no choice", f"did you mean {near[0]}?" if near else choices)
        return value
    if get_origin(kind) is tuple and isinstance(value, str | os.PathLike | Iterable):
        several = [value] if isinstance(value, str | os.PathLike) else value
        return tuple(convert_to_type(name, get_args(kind)[0], one) for one in several)
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool):
        if kind is bool:
            return value
    elif kind is int and isinstance(value, Integral):
        return int(value)
    elif kind is float and isinstance(value, Real) and math.isfinite(value):
        return float(value)
    wanted = {str: "a string", bool: "True or False", int: "a whole number", float: "a number"}.get(kind, "a list")
    raise UsageError(wrong + f"is not {wanted}", f"give {wanted}")


def option_name(name: str) -> str:
    """The flag's long spelling without dashes."""
    return name.strip("_").replace("_", "-")


@cache
def job_field_types() -> dict[str, Any]:
    """The types of Job's fields."""
    return get_type_hints(Job)


def parse_shard(text: str) -> tuple[int, int]:
    """3/16 as (3, 16). UsageError for what is no share of a whole."""
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise UsageError(f"--shard {text} is not a share K/N with K from 1 to N", "use e.g. --shard 3/16")
    return number, of


def parse_max_rejects(text: str) -> str:
    """--max-rejects as a number or a share. UsageError for what is neither."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not found or (found[2] and float(found[1]) > 100) or (not found[2] and "." in found[1]):
        raise UsageError(f"--max-rejects {text!r} is neither a number nor a share", "use e.g. 100 or 0.1%")
    return found[1] + found[2]


def parse_byte_size(text: str) -> int:
    """256MB, 1GiB or a plain number as bytes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    size = 0
    if found:
        power = " kmgt".index(found[2].lower() or " ")
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if size < 1:
        raise UsageError(f"--part-size {text} is not a size", "use e.g. 256MB, 1GiB or a number of bytes")
    return size


TEXT_PARSERS = {"part_size": parse_byte_size, "shard": parse_shard, "max_rejects": parse_max_rejects}
