"""Fields of objects: `_source.title` is `title` in the column `_source`, unless a column has that very name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pyarrow as pa

V = TypeVar("V")
# What is inside of a value: its fields by name; None if it has none.
OpenStruct = Callable[[V], Mapping[str, V] | None]


def nested_value(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column of a JSON row, or of a field of an object in it; None if there is none."""
    return _found(row, name, _json)


def nested_type(kinds: Mapping[str, pa.DataType], name: str) -> pa.DataType | None:
    """The type of a column, or of a field of a struct column; None if there is none."""
    return _found(kinds, name, _struct)


def nested_array(batch: pa.RecordBatch, name: str) -> pa.Array | None:
    """A column of the batch, or a field of a struct column, null where the struct is; None if there is none."""
    return _found(dict(zip(batch.schema.names, batch.columns, strict=True)), name, _flat)


def flatten_types(kinds: Mapping[str, pa.DataType]) -> Iterator[tuple[str, pa.DataType]]:
    """The columns and their types; of a struct its fields."""
    for name, kind in kinds.items():
        inner = _struct(kind)
        if inner:
            yield from ((f"{name}.{leaf}", held) for leaf, held in flatten_types(inner))
        else:
            yield name, kind


def _json(value: Any) -> Mapping[str, Any] | None:
    return value if type(value) is dict else None


def _struct(kind: pa.DataType) -> Mapping[str, pa.DataType] | None:
    return {field.name: field.type for field in kind} if pa.types.is_struct(kind) else None


def _flat(array: pa.Array) -> Mapping[str, pa.Array] | None:
    if not pa.types.is_struct(array.type):
        return None
    return dict(zip((field.name for field in array.type), array.flatten(), strict=True))


def _found(fields: Mapping[str, V], name: str, inside: OpenStruct[V]) -> V | None:
    """The field of that name, or the one it leads to; names may have dots of their own, the shortest is tried first."""
    if name in fields:
        return fields[name]
    for at, letter in enumerate(name):
        if letter == "." and (holder := fields.get(name[:at])) is not None:
            inner = inside(holder)
            found = None if inner is None else _found(inner, name[at + 1 :], inside)
            if found is not None:
                return found
    return None
