"""The binary formats of PostgreSQL and pgvector: rows for COPY, and vectors that a query returned.

Formats: https://www.postgresql.org/docs/current/sql-copy.html (binary format) and the `_recv` functions of the types in
the sources of PostgreSQL and pgvector. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli.databases.columns import combine_chunks, counts
from embedcli.databases.target import JSON_FIELD, VECTOR_COLUMN, TableLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
COPY_TRAILER = struct.pack("!h", -1)
NULL = struct.pack("!i", -1)
# PostgreSQL counts days and microseconds from 2000-01-01.
EPOCH_DAYS = 10_957
EPOCH_MICROSECONDS = EPOCH_DAYS * 86_400 * 1_000_000
# Numeric values are written in digits of base 10,000.
DECIMAL_DIGITS = 4
NEGATIVE = 0x4000


def encode_copy(rows: pa.Table, layout: TableLayout) -> bytes:
    """Return rows as the data of `COPY ... (FORMAT binary)`, with the columns in the order of the table."""
    fields = [layout.schema.field(name) for name in rows.column_names]
    columns = [
        encode_column(combine_chunks(column), field, layout) for column, field in zip(rows.columns, fields, strict=True)
    ]
    count = struct.pack("!h", len(columns))
    parts = [COPY_HEADER]
    for values in zip(*columns, strict=True):
        parts.append(count)
        parts.extend(values)
    return b"".join([*parts, COPY_TRAILER])


def encode_column(array: pa.Array, field: pa.Field, layout: TableLayout) -> Sequence[Any]:
    """Return each value of a column with its length before it."""
    if field.name == VECTOR_COLUMN:
        return encode_sparse(array, layout) if layout.kind == "sparse" else encode_dense(array, layout)
    numbers = to_numbers(array)
    if numbers is not None:
        return with_nulls(fixed_width(numbers), array)
    if pa.types.is_duration(array.type):
        # Microseconds, days, months.
        pack = struct.Struct("!qii").pack
        return with_lengths(None if count is None else pack(count, 0, 0) for count in counts(array))
    if pa.types.is_decimal(array.type):
        return with_lengths(encode_decimal(value) for value in array.to_pylist())
    prefix = b"\x01" if field.metadata == JSON_FIELD else b""  # the version of jsonb
    values = array.cast(pa.binary()).to_pylist()
    if not prefix:
        return with_lengths(values)
    return with_lengths(None if value is None else prefix + value for value in values)


def with_lengths(values: Any) -> list[bytes]:
    pack = struct.Struct("!i").pack
    return [NULL if value is None else pack(len(value)) + value for value in values]


def with_nulls(values: list[Any], array: pa.Array) -> list[Any]:
    if not array.null_count:
        return values
    valid = array.is_valid().to_pylist()
    return [value if is_valid else NULL for value, is_valid in zip(values, valid, strict=True)]


def fixed_width(numbers: NDArray[Any], head: bytes = b"") -> list[Any]:
    """Return the bytes of each row of numbers [n] or [n, width] in big-endian order, with `head` and the length first.

    Args:
        numbers: The numbers.
        head: Bytes of the value before its numbers.
    """
    table = numbers.reshape(len(numbers), -1)
    start, size = 4 + len(head), len(head) + table.shape[1] * table.itemsize
    rows = np.empty((len(table), 4 + size), np.uint8)
    rows[:, :start] = np.frombuffer(struct.pack("!i", size) + head, np.uint8)
    rows[:, start:].view(table.dtype.newbyteorder(">"))[:] = table
    return [row.data for row in rows]


def to_numbers(array: pa.Array) -> NDArray[Any] | None:
    """Return a column of numbers, truth values or times as the numbers that PostgreSQL stores; None for others."""
    kind = array.type
    if pa.types.is_boolean(kind):
        return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint8))
    if pa.types.is_date32(kind):
        return np.asarray(array.view(pa.int32()).fill_null(0).to_numpy(zero_copy_only=False) - np.int32(EPOCH_DAYS))
    if pa.types.is_timestamp(kind):
        return np.asarray(array.view(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False) - EPOCH_MICROSECONDS)
    if pa.types.is_time(kind):
        return np.asarray(array.view(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.asarray(array.fill_null(0).to_numpy(zero_copy_only=False))
    return None


def encode_decimal(value: Decimal | None) -> bytes | None:
    """Return a number as `numeric`: counts of digits, weight of the first one, sign, scale, digits of base 10,000."""
    if value is None:
        return None
    sign, digits, exponent = value.as_tuple()
    scale = max(0, -int(exponent))
    text = ("".join(map(str, digits)) + "0" * max(0, int(exponent))).rjust(scale, "0")
    whole, fraction = text[: len(text) - scale], text[len(text) - scale :]
    whole = whole.zfill(-(-len(whole) // DECIMAL_DIGITS) * DECIMAL_DIGITS)
    fraction = fraction.ljust(-(-len(fraction) // DECIMAL_DIGITS) * DECIMAL_DIGITS, "0")
    groups = [
        int((whole + fraction)[at : at + DECIMAL_DIGITS]) for at in range(0, len(whole + fraction), DECIMAL_DIGITS)
    ]
    weight = len(whole) // DECIMAL_DIGITS - 1
    return struct.pack(f"!hhHh{len(groups)}h", len(groups), weight, NEGATIVE if sign else 0, scale, *groups)


# Vectors


def encode_dense(array: pa.Array, layout: TableLayout) -> list[Any]:
    """Return vectors as vector, halfvec or bit."""
    width = array.type.list_size
    numbers = array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), width)
    head = struct.pack("!i", width * 8) if layout.precision == "ubinary" else struct.pack("!hh", width, 0)
    return fixed_width(numbers, head)


def encode_sparse(array: pa.Array, layout: TableLayout) -> list[bytes]:
    """Return vectors as sparsevec: dimensions, entries, 0, indices from 0, values."""
    lists = [array.field(name) for name in ("indices", "values")]
    offsets = lists[0].offsets.to_numpy()
    indices = lists[0].values.to_numpy(zero_copy_only=False).astype(">i4")
    values = lists[1].values.to_numpy(zero_copy_only=False).astype(">f4")
    return with_lengths(
        struct.pack("!iii", layout.dim, stop - start, 0) + indices[start:stop].tobytes() + values[start:stop].tobytes()
        for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    )


def decode_vectors(values: Sequence[bytes], layout: TableLayout) -> pa.Array:
    """Return vectors in the binary format as the column `embedding` of the layout."""
    kind = layout.schema.field(VECTOR_COLUMN).type
    if layout.kind == "sparse":
        return pa.array([decode_sparse(value) for value in values], kind)
    dtype = {"float32": ">f4", "float16": ">f2", "ubinary": "u1"}[layout.precision]
    # Before the numbers are four bytes: the dimensions of a vector, or the bits of a bit string.
    numbers = np.frombuffer(b"".join(bytes(value)[4:] for value in values), dtype)
    plain = np.ascontiguousarray(numbers.astype(numbers.dtype.newbyteorder("=")))
    return pa.FixedSizeListArray.from_arrays(pa.array(plain, kind.value_type), type=kind)


def decode_sparse(value: bytes) -> dict[str, Any]:
    _, entries, _ = struct.unpack_from("!iii", value)
    indices = np.frombuffer(value, ">i4", entries, 12)
    numbers = np.frombuffer(value, ">f4", entries, 12 + 4 * entries)
    return {"indices": indices.astype(np.int32), "values": numbers.astype(np.float32)}
