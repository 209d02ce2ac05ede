"""Convert Python values to Arrow columns: infer the type of a column, and reject values of another type."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
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

# Integers that float64 represents exactly.
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


def is_string(data_type: pa.DataType) -> bool:
    """Whether a type is string, large_string or string_view."""
    return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or data_type == pa.string_view())


def may_hold_text(data_type: pa.DataType) -> bool:
    """Whether a column of the type may hold texts: strings, or bytes, which older programs write for strings."""
    return is_string(data_type) or data_type in BINARY_TO_STRING_TYPES


def may_hold_text_or_nulls(data_type: pa.DataType) -> bool:
    """The same, or a column of nulls: a Parquet file without any text has one, and its rows are rejected one by one."""
    return may_hold_text(data_type) or pa.types.is_null(data_type)


def keeps_values(data_type: pa.DataType, unified: pa.DataType) -> bool:
    """Whether every value of a type fits the type that it has been unified to, also inside lists, structs and maps.

    Not so for 64-bit integers as floating-point numbers or as integers of the other sign, for integers as decimals with
    too few digits, for decimals as floating-point numbers, and for times in a finer unit, which has a smaller range.
    """
    if pa.types.is_nested(data_type):
        return _keeps_nested_values(data_type, unified)
    if pa.types.is_floating(unified):
        # A floating-point number of n bits holds all integers of n / 2 bits.
        fits = pa.types.is_integer(data_type) and data_type.bit_width * 2 <= unified.bit_width
        return bool(fits or pa.types.is_floating(data_type) or pa.types.is_null(data_type))
    if pa.types.is_integer(data_type) and pa.types.is_decimal(unified):
        digits = len(str(1 << (data_type.bit_width - pa.types.is_signed_integer(data_type))))
        return bool(digits <= unified.precision - unified.scale)
    if pa.types.is_unsigned_integer(data_type) and pa.types.is_signed_integer(unified):
        return bool(data_type.bit_width < unified.bit_width)
    if pa.types.is_timestamp(data_type) or pa.types.is_duration(data_type):
        return bool(data_type.unit == unified.unit)
    return True


def _keeps_nested_values(data_type: pa.DataType, unified: pa.DataType) -> bool:
    fields = [data_type.field(i) for i in range(data_type.num_fields)]
    if pa.types.is_struct(data_type):
        return all(keeps_values(field.type, unified.field(field.name).type) for field in fields)
    return all(keeps_values(field.type, unified.field(i).type) for i, field in enumerate(fields))


def unify_types(types: Sequence[pa.DataType]) -> pa.DataType | None:
    """The type that Arrow promotes several types to; None if there is none."""
    try:
        schemas = [pa.schema([("column", data_type)]) for data_type in types]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):  # also for decimals with more digits than their type has
        return None


def widen_for_python(data_type: pa.DataType) -> pa.DataType | None:
    """The type in which values of a column and Python values fit together; None if there is none."""
    if pa.types.is_integer(data_type):
        return pa.uint64() if data_type == pa.uint64() else pa.int64()
    if pa.types.is_floating(data_type):
        return pa.float64()
    return data_type if accepted_python_types(data_type) else None


def accepted_python_types(data_type: pa.DataType) -> frozenset[type]:
    """The Python types of JSON values that fit a column of this type, besides null; empty if none fit."""
    if data_type in INTEGER_TYPES:
        return frozenset({int})
    if pa.types.is_float64(data_type):
        return frozenset({int, float})
    if pa.types.is_boolean(data_type):
        return frozenset({bool})
    return frozenset({str}) if is_string(data_type) else frozenset()


def infer_id_type(values: Iterable[Any]) -> pa.DataType | None:
    """The type of the majority of ids: int64, uint64 if needed, or string; None without integers and strings."""
    values = list(values)
    counts = Counter(value_type for value_type in map(type, values) if value_type in (int, str))
    if not counts:
        return None
    if counts.most_common(1)[0][0] is str:
        return pa.string()
    return integer_type([value for value in values if type(value) is int]) or pa.int64()


def infer_kept_type(values: Iterable[Any]) -> pa.DataType | None:
    """The Arrow type that fits all values of a column; None for nested or mixed values and for only nulls."""
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
    """int64 or uint64, the first that fits all numbers; None if neither does."""
    return next(
        (data_type for data_type, limits in INTEGER_TYPES.items() if min(values) in limits and max(values) in limits),
        None,
    )


def build_id_array(values: list[Any], data_type: pa.DataType, reasons: RejectReasons) -> pa.Array | None:
    """Convert ids to an Arrow array; None, with reasons added, if some are missing, null, empty or of another type."""

    def reject_reason(value: Any) -> str | None:
        if value is None or value == "":
            return MISSING_ID_REASON
        return _type_mismatch_reason(value, data_type, WRONG_ID_REASON)

    allowed_types = set() if is_string(data_type) and "" in values else {*accepted_python_types(data_type)}
    return _to_array(values, data_type, allowed_types, reject_reason, reasons)


def build_kept_array(values: list[Any], name: str, data_type: pa.DataType, reasons: RejectReasons) -> pa.Array | None:
    """Convert a kept column to an Arrow array; None, with reasons added, if some values do not fit the type."""

    def reject_reason(value: Any) -> str | None:
        return None if value is None else _type_mismatch_reason(value, data_type, f"{WRONG_KEPT_REASON}: {name}")

    return _to_array(values, data_type, {*accepted_python_types(data_type), type(None)}, reject_reason, reasons)


def _to_array(
    values: list[Any],
    data_type: pa.DataType,
    allowed_types: set[type],
    reject_reason: TypeCheck,
    reasons: RejectReasons,
) -> pa.Array | None:
    if set(map(type, values)) <= allowed_types:
        try:
            return pa.array(values, data_type)
        except (OverflowError, pa.ArrowInvalid, UnicodeEncodeError):
            pass  # checked one by one below
    for i, value in enumerate(values):
        reason = reject_reason(value)
        if reason is not None:
            reasons.setdefault(i, reason)
    return None


def _type_mismatch_reason(value: Any, data_type: pa.DataType, reason: str) -> str | None:
    if type(value) not in accepted_python_types(data_type):
        return f"{reason}: {PYTHON_TYPE_NAMES.get(type(value), 'null')} instead of {data_type}"
    if type(value) is int and value not in INTEGER_TYPES.get(data_type, EXACT_FLOAT_INTEGERS):
        return f"{reason}: a whole number too large for {data_type}"
    return SURROGATE_REASON if type(value) is str and not is_encodable(value) else None


def to_json_texts(values: list[Any], unusual_positions: Collection[int]) -> list[str | None]:
    """Convert values to JSON text, null to null; values at unusual positions may contain NaN or lone surrogates."""
    return [
        None if value is None else to_json_text(value) if i in unusual_positions else orjson.dumps(value).decode()
        for i, value in enumerate(values)
    ]


def to_json_text(value: Any) -> str:
    """Convert a value to JSON text in the format of orjson, with NaN and Infinity as in Python."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
