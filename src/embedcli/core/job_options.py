"""The one validation of a job's options: for the command line, configuration files and the Python API."""

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
    "limit": 1, "stop_after": 1, "batch_tokens": 1, "chunk_rows": 1, "threads": 1, "truncate_dim": 1,
    "top_k_terms": 1, "pool_factor": 2,
    "max_seq_length": 1, "workers": 1, "rpm": 1, "tpm": 1, "max_concurrency": 1, "part_size": 1, "split_overlap": 0,
    "skip_lines": 0, "retry_cap": 0, "patience": 0, "num_cpus": 0, "num_gpus": 0,
}  # fmt: skip
# Options that must be above zero, with the hint for other values.
POSITIVE_OPTIONS = {
    "max_seconds": "give a number of seconds above 0",
    "request_timeout": "give a number of seconds above 0",
    "min_weight": "give a weight above 0, such as 0.1, or leave --min-weight out",
}
# Hints for values that people give for a reason, though they are none of the choices.
VALUE_HINTS = {
    ("dtype", "int8"): "use --dtype bfloat16 for speed, if the processor has it, or --precision int8 to store vectors "
    "in 8 bits; docs/concepts/speed.md says why nothing is computed in int8",
}
# The largest integer that float64, and so every JSON reader, holds exactly.
MAX_INTEGER = 2**53


def validate_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Validate options of a job.

    Args:
        options: Values by field name of `Job`, as a person or a program wrote them.

    Returns:
        The values in the types of the fields.

    Raises:
        UsageError: An option has no valid value; the first such option is named.
    """
    return {name: validate_option(name, value) for name, value in options.items()}


def validate_option(name: str, value: Any) -> Any:
    """Validate one option of a job.

    Args:
        name: A field name of `Job`.
        value: The value as written: "256MB" for a size and a list for a tuple are fine.

    Returns:
        The value in the type of the field.

    Raises:
        UsageError: The value is not valid.
    """
    if name in TEXT_PARSERS and value is not None:
        value = TEXT_PARSERS[name]("/".join(map(str, value)) if isinstance(value, tuple) else str(value))
    if name == "heads" and isinstance(value, str):
        value = [head.strip() for head in value.split(",")]
    field_type = job_field_types()[name]
    types = get_args(field_type) if NoneType in get_args(field_type) else (field_type,)
    if value is None and NoneType in types:
        return None
    converted = _convert(name, types[0], value)
    _check_bounds(name, converted)
    return converted


def _convert(name: str, field_type: Any, value: Any) -> Any:
    """The value in the type of its field."""
    if get_origin(field_type) is Literal:
        if value not in get_args(field_type):
            close = get_close_matches(str(value), get_args(field_type), 1)
            choices = f"choose from {', '.join(get_args(field_type))}"
            hint = f"did you mean {close[0]}?" if close else choices
            raise UsageError(
                f"--{option_name(name)} {value!r} is not a valid choice", VALUE_HINTS.get((name, str(value)), hint)
            )
        return value
    if get_origin(field_type) is tuple and isinstance(value, str | os.PathLike | Iterable):
        items = [value] if isinstance(value, str | os.PathLike) else value
        return tuple(_convert(name, get_args(field_type)[0], item) for item in items)
    if field_type is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool):
        if field_type is bool:
            return value
    elif field_type is int and isinstance(value, Integral):
        return int(value)
    elif field_type is float and isinstance(value, Real) and math.isfinite(value):
        return float(value)
    type_names = {str: "a string", bool: "True or False", int: "a whole number", float: "a number"}
    expected = type_names.get(field_type, "a list")
    raise UsageError(f"--{option_name(name)} {value!r} is not {expected}", f"give {expected}")


def _check_bounds(name: str, value: Any) -> None:
    if name in MINIMUM_VALUES and value < MINIMUM_VALUES[name]:
        raise UsageError(f"--{option_name(name)} {value:g} is too small", f"give {MINIMUM_VALUES[name]} or more")
    if isinstance(value, int) and value > MAX_INTEGER:
        raise UsageError(f"--{option_name(name)} {value} is too large", f"give {MAX_INTEGER} or less")
    if name in POSITIVE_OPTIONS and value <= 0:
        raise UsageError(f"--{option_name(name)} {value:g} is not above zero", POSITIVE_OPTIONS[name])
    if name == "heads" and not 0 < len(value) == len(set(value)):
        raise UsageError(f"--heads {','.join(value)!r} does not name each head once", "use e.g. --heads dense,sparse")


def option_name(name: str) -> str:
    """The long name of the option for a field of `Job`, without the leading dashes."""
    return name.strip("_").replace("_", "-")


@cache
def job_field_types() -> dict[str, Any]:
    """The types of the fields of `Job`, by name."""
    return get_type_hints(Job)


def parse_shard(text: str) -> tuple[int, int]:
    """Parse the K/N of --shard: "3/16" is (3, 16). UsageError if it is not valid."""
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= count:
        raise UsageError(f"--shard {text} is not K/N with K from 1 to N", "use e.g. --shard 3/16")
    return number, count


def parse_max_rejects(text: str) -> str:
    """Normalize --max-rejects, a number of rows or a percentage: " 0.1 % " is "0.1%". UsageError if it is neither."""
    return _parse_row_limit("--max-rejects", text)


def parse_max_removed(text: str) -> str:
    """Normalize --max-removed, a number of rows or a percentage, as `parse_max_rejects` does."""
    return _parse_row_limit("--max-removed", text)


def _parse_row_limit(option: str, text: str) -> str:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if not found or (found[2] and float(found[1]) > 100) or (not found[2] and "." in found[1]):
        raise UsageError(f"{option} {text!r} is neither a number nor a percentage", "use e.g. 100 or 0.1%")
    return found[1] + found[2]


def parse_delimiter(text: str) -> str:
    """Parse --delimiter: one character, or the name of one such as tab. UsageError if it is neither."""
    return _parse_character("--delimiter", text, "use one character, or tab, comma, semicolon, pipe or space")


def parse_quote(text: str) -> str:
    """Parse --quote: one character, or none. UsageError if it is neither."""
    return text if text == "none" else _parse_character("--quote", text, "use one character, or none")


def parse_escape(text: str) -> str:
    """Parse --escape: one character, or backslash. UsageError if it is neither."""
    return _parse_character("--escape", text, "use one character, or backslash")


def _parse_character(option: str, text: str, hint: str) -> str:
    character = CHARACTER_NAMES.get(text, text)
    if len(character) != 1 or character in "\r\n\0\ufeff" or "\ud800" <= character <= "\udfff":
        raise UsageError(f"{option} {text!r} is not one character within a line", hint)
    return character


def parse_byte_size(text: str) -> int:
    """Parse a size such as 256MB, 1GiB or a plain number of bytes. UsageError if it is not a size above zero."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    size = 0
    if found:
        power = " kmgt".index(found[2].lower() or " ")
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if size < 1:
        raise UsageError(f"--part-size {text} is not a size", "use e.g. 256MB, 1GiB or a number of bytes")
    return size


CHARACTER_NAMES = {
    "tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " ", "backslash": "\\",
    "\\\\": "\\",
}  # fmt: skip
TEXT_PARSERS = {
    "delimiter": parse_delimiter,
    "quote": parse_quote,
    "escape": parse_escape,
    "part_size": parse_byte_size,
    "shard": parse_shard,
    "max_rejects": parse_max_rejects,
    "max_removed": parse_max_removed,
}
