"""The types of PostgreSQL and pgvector for the columns of a table."""

from __future__ import annotations

import pyarrow as pa

from embedcli.databases.target import JSON_FIELD, VECTOR_COLUMN, TableLayout


def native_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the Arrow type of values that have a type of their own in PostgreSQL, apart from texts and numbers."""
    if pa.types.is_date(kind):
        return pa.date32()
    if pa.types.is_timestamp(kind) and kind.unit != "ns":
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_time(kind) and kind.unit != "ns":
        return pa.time64("us")
    if pa.types.is_duration(kind) and kind.unit != "ns":
        return pa.duration("us")
    if pa.types.is_decimal(kind):
        return kind
    return integer_type(kind) if pa.types.is_integer(kind) else None


def integer_type(kind: pa.DataType) -> pa.DataType:
    """The smallest type that holds an integer type: PostgreSQL has signed ones of 16, 32 and 64 bits, and decimals."""
    if kind == pa.uint64():
        return pa.decimal128(20, 0)
    if kind.bit_width == 8 or kind == pa.int16():
        return pa.int16()
    return pa.int32() if kind in (pa.int32(), pa.uint16()) else pa.int64()


def vector_type(layout: TableLayout) -> str:
    """The type of the column of vectors."""
    if layout.kind == "sparse":
        return f"sparsevec({layout.dim})"
    width = layout.schema.field(VECTOR_COLUMN).type.list_size
    types = {"float32": f"vector({width})", "float16": f"halfvec({width})", "ubinary": f"bit({width * 8})"}
    return types[layout.precision]


def column_type(field: pa.Field, layout: TableLayout) -> str:
    """The type of a column."""
    if field.name == VECTOR_COLUMN:
        return vector_type(layout)
    if field.metadata == JSON_FIELD:
        return "jsonb"
    kind = field.type
    if pa.types.is_decimal(kind):
        return f"numeric({kind.precision}, {kind.scale})"
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    if pa.types.is_fixed_size_binary(kind):
        return "bytea"
    types = {
        pa.string(): "text", pa.binary(): "bytea", pa.bool_(): "boolean", pa.int16(): "smallint", pa.int32(): "integer",
        pa.int64(): "bigint", pa.float32(): "real", pa.float64(): "double precision", pa.date32(): "date",
        pa.time64("us"): "time", pa.duration("us"): "interval",
    }  # fmt: skip
    return types[kind]


def operator_class(layout: TableLayout) -> str:
    if layout.kind == "sparse":
        return "sparsevec_ip_ops"
    return {"float32": "vector_cosine_ops", "float16": "halfvec_cosine_ops", "ubinary": "bit_hamming_ops"}[
        layout.precision
    ]
