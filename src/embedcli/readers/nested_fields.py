"""Fields of nested objects as columns: `_source.title` is the field `title` of the column `_source`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import pyarrow as pa

V = TypeVar("V")
# Returns the fields of an object by name; None if the value is not an object.
GetFields = Callable[[V], Mapping[str, V] | None]


def nested_value(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column of a JSON row, or of a field of an object in it; None if it does not exist."""
    return _find_field(row, name, _json_fields)


def nested_type(types: Mapping[str, pa.DataType], name: str) -> pa.DataType | None:
    """The type of a column, or of a field of a struct column; None if it does not exist."""
    return _find_field(types, name, _struct_field_types)


def nested_array(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    """A column, or a field of a struct column, null where the struct is null; None if it does not exist."""
    return _find_field(dict(zip(batch.schema.names, batch.columns, strict=True)), name, _struct_field_arrays)


def flatten_types(types: Mapping[str, pa.DataType]) -> Iterator[tuple[str, pa.DataType]]:
    """Yield each column and its type; for a struct, its fields instead."""
    for name, data_type in types.items():
        fields = _struct_field_types(data_type)
        if fields:
            yield from ((f"{name}.{field}", field_type) for field, field_type in flatten_types(fields))
        else:
            yield name, data_type


def duplicate_names(fields: Iterable[pa.Field]) -> Iterator[str]:
    """Yield the names of columns, and of fields of structs, that their table or struct has more than once."""
    fields = list(fields)
    yield from (name for name, count in Counter(field.name for field in fields).items() if count > 1)
    for field in fields:
        if pa.types.is_struct(field.type):
            yield from (f"{field.name}.{name}" for name in duplicate_names(field.type))


def _json_fields(value: Any) -> Mapping[str, Any] | None:
    return value if type(value) is dict else None


def _struct_field_types(data_type: pa.DataType) -> Mapping[str, pa.DataType] | None:
    return {field.name: field.type for field in data_type} if pa.types.is_struct(data_type) else None


def _struct_field_arrays(array: pa.Array) -> Mapping[str, pa.Array] | None:
    if not pa.types.is_struct(array.type):
        return None
    return dict(zip((field.name for field in array.type), array.flatten(), strict=True))


def _find_field(fields: Mapping[str, V], name: str, get_fields: GetFields[V]) -> V | None:
    """The field of exactly this name, or the nested one. Field names may contain dots: the shortest is tried first."""
    if name in fields:
        return fields[name]
    for i, character in enumerate(name):
        if character == "." and (parent := fields.get(name[:i])) is not None:
            nested = get_fields(parent)
            value = None if nested is None else _find_field(nested, name[i + 1 :], get_fields)
            if value is not None:
                return value
    return None
