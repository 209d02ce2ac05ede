"""Plain values as Arrow columns: which type a column has, and which values do not fit it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import orjson
import pyarrow as pa

from embedcli.readers.decoding import is_encodable
from embedcli.readers.row_batch import (
    MISSING_ID_REASON,
    SURROGATE_REASON,
    WRONG_ID_REASON,
    WRONG_KEPT_REASON,
    RejectReasons,
)

TypeCheck = Callable[[Any], str | None]

# Whole numbers in this range are exact as float64.
EXACT_FLOAT_INTEGERS = range(-(1 << 53), (1 << 53) + 1)
INTEGER_TYPES = {pa.int64(): range(-(1 << 63), 1 << 63), pa.uint64(): range(1 << 64)}
BINARY_TO_STRING_TYPES = {pa.binary(): pa.string(), pa.large_binary(): pa.large_string()}
PYTHON_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    dict: "an object",
    list: "a list",
}


def is_string(kind: pa.DataType) -> bool:
    """Whether an Arrow type holds text: string, large_string or string_view."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view())


def may_hold_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type may hold text: strings, and bytes, as older programs write strings into Parquet."""
    return is_string(kind) or kind in BINARY_TO_STRING_TYPES


def accepted_python_types(kind: pa.DataType) -> frozenset[type]:
    """The Python types of the JSON values a column of this type takes, null aside; empty if it takes none."""
    if kind in INTEGER_TYPES:
        return frozenset({int})
    if pa.types.is_float64(kind):
        return frozenset({int, float})
    if pa.types.is_boolean(kind):
        return frozenset({bool})
    return frozenset({str}) if is_string(kind) else frozenset()


def infer_id_type(values: Iterable[Any]) -> pa.DataType | None:
    """The type of most ids: int64 (uint64 if they need it) or string; None if there are none of these."""
    values = list(values)
    counts = Counter(kind for kind in map(type, values) if kind in (int, str))
    if not counts:
        return None
    if counts.most_common(1)[0][0] is str:
        return pa.string()
    return integer_type([value for value in values if type(value) is int]) or pa.int64()


def infer_kept_type(values: Iterable[Any]) -> pa.DataType | None:
    """The Arrow type that holds all of a column's values; None if there is none: nested, mixed, or only null."""
    values = [value for value in values if value is not None]
    kinds = set(map(type, values))
    if kinds == {int}:
        return integer_type(values)
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {str}:
        return pa.string()
    numbers = bool(kinds) and kinds <= {int, float} and all(v in EXACT_FLOAT_INTEGERS for v in values if type(v) is int)
    return pa.float64() if numbers else None


def integer_type(values: list[int]) -> pa.DataType | None:
    """int64 or uint64, the first that holds all of the numbers."""
    return next((kind for kind, span in INTEGER_TYPES.items() if min(values) in span and max(values) in span), None)


def build_id_array(values: list[Any], kind: pa.DataType, faults: RejectReasons) -> pa.Array | None:
    """The ids as an Arrow array; None, and faults, if some are missing, null, empty or of another type."""

    def judge(value: Any) -> str | None:
        if value is None or value == "":
            return MISSING_ID_REASON
        return _misfit(value, kind, WRONG_ID_REASON)

    allowed = set() if is_string(kind) and "" in values else {*accepted_python_types(kind)}
    return _array(values, kind, allowed, judge, faults)


def build_kept_array(values: list[Any], name: str, kind: pa.DataType, faults: RejectReasons) -> pa.Array | None:
    """A kept column as an Arrow array; None, and faults, if some values are neither null nor of the type."""

    def judge(value: Any) -> str | None:
        return None if value is None else _misfit(value, kind, f"{WRONG_KEPT_REASON}: {name}")

    return _array(values, kind, {*accepted_python_types(kind), type(None)}, judge, faults)


def _array(
    values: list[Any], kind: pa.DataType, allowed: set[type], judge: TypeCheck, faults: RejectReasons
) -> pa.Array | None:
    if set(map(type, values)) <= allowed:
        try:
            return pa.array(values, kind)
        except (OverflowError, pa.ArrowInvalid, UnicodeEncodeError):
            pass  # judged one by one below
    for i, value in enumerate(values):
        reason = judge(value)
        if reason is not None:
            faults.setdefault(i, reason)
    return None


def _misfit(value: Any, kind: pa.DataType, reason: str) -> str | None:
    if type(value) not in accepted_python_types(kind):
        return f"{reason}: {PYTHON_TYPE_NAMES.get(type(value), 'null')} instead of {kind}"
    if type(value) is int and value not in INTEGER_TYPES.get(kind, EXACT_FLOAT_INTEGERS):
        return f"{reason}: a whole number too large for {kind}"
    return SURROGATE_REASON if type(value) is str and not is_encodable(value) else None


def to_json_texts(values: list[Any], odd: Collection[int]) -> list[str | None]:
    """Each value as JSON text, null as null. The values at `odd` positions may hold NaN or lone surrogates."""
    return [
        None if value is None else to_json_text(value) if i in odd else orjson.dumps(value).decode()
        for i, value in enumerate(values)
    ]


def to_json_text(value: Any) -> str:
    """As orjson writes it, but NaN and Infinity stay what they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
