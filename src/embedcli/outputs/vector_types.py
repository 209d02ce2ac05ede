"""The Arrow types of columns of vectors: dense, sparse, or a vector for each token."""

from __future__ import annotations

import pyarrow as pa


def sparse_type(value: pa.DataType) -> pa.DataType:
    """The Arrow type of a sparse vector: its dimensions, ascending, and a number of type `value` for each."""
    indices = pa.list_(pa.field("element", pa.int32(), nullable=False))
    values = pa.list_(pa.field("element", value, nullable=False))
    return pa.struct([pa.field("indices", indices, nullable=False), pa.field("values", values, nullable=False)])


def is_vector_type(kind: pa.DataType) -> bool:
    """Whether a type is a list of numbers."""
    if not (pa.types.is_fixed_size_list(kind) or is_list_type(kind)):
        return False
    return is_stored_number(kind.value_type)


def is_stored_number(kind: pa.DataType) -> bool:
    """Whether a type is that of the numbers of a vector: floats, or integers of one byte."""
    return bool(pa.types.is_floating(kind) or pa.types.is_int8(kind) or pa.types.is_uint8(kind))


def is_multi_vector_type(kind: pa.DataType) -> bool:
    """Whether a type is a list of vectors."""
    return bool(is_list_type(kind) and is_vector_type(kind.value_type))


def is_sparse_type(kind: pa.DataType) -> bool:
    """Whether a type is a struct of a list of integers, `indices`, and a list of numbers, `values`."""
    if not pa.types.is_struct(kind) or {field.name for field in kind} != {"indices", "values"}:
        return False
    indices, values = kind.field("indices").type, kind.field("values").type
    if not (is_list_type(indices) and is_list_type(values)):
        return False
    return bool(pa.types.is_integer(indices.value_type) and is_stored_number(values.value_type))


def is_list_type(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
