"""Rows as JSON objects with an id made from their key, for databases that store vectors with payloads."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping, Sequence
from hashlib import sha1
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli.core.arrow_values import column_to_python
from embedcli.core.errors import OutputError
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.databases.columns import combine_chunks, to_fast_list_type, to_json_text, view_rows
from embedcli.databases.target import DIGEST_BYTES, DIGEST_COLUMN, SWAP_HINT, VECTOR_COLUMN
from embedcli.outputs.schema import multi_to_arrow

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array
    from embedcli.databases.target import TableLayout

# The namespace of the ids that are made from keys. A promise: other programs compute them as well.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "embedcli")
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
INFINITIES = {math.inf: "Infinity", -math.inf: "-Infinity"}


def stored_payload_type(kind: pa.DataType) -> pa.DataType | None:
    """Return the Arrow type of a column in a payload; None: as JSON text. See `DatabaseTarget.stored_type`.

    Lists and objects of texts, booleans and integers stay what they are, so that the database can filter by them;
    bytes become hexadecimal digits.
    """
    types = pa.types
    if types.is_nested(kind):
        return kind if is_json_type(kind) else None
    if is_json_type(kind) or types.is_floating(kind):
        return kind
    return pa.string()


def is_json_type(kind: pa.DataType) -> bool:
    """Whether JSON has all values of a type, at any depth, and gives them back unchanged."""
    types = pa.types
    if types.is_list(kind):
        return is_json_type(kind.value_type)
    if types.is_struct(kind):
        names = {field.name for field in kind}
        return 0 < kind.num_fields == len(names) and all(is_json_type(field.type) for field in kind)
    return bool(types.is_string(kind) or types.is_boolean(kind) or (types.is_integer(kind) and kind != pa.uint64()))


def make_keys(rows: pa.Table, layout: TableLayout) -> list[str]:
    """Return a text for the key of each row: the id; with windows the JSON array of id and window."""
    columns = [rows.column(name).to_pylist() for name in layout.key]
    if len(columns) == 1:
        return [str(value) for value in columns[0]]
    return [to_json_text(list(values)) for values in zip(*columns, strict=True)]


def make_uuids(rows: pa.Table, layout: TableLayout) -> list[str]:
    """Return the UUID, version 5, of the key of each row."""
    return [make_uuid(key) for key in make_keys(rows, layout)]


def make_uuid(key: str) -> str:
    """Return `str(uuid.uuid5(NAMESPACE, key))` in a third of its time."""
    digest = bytearray(sha1(NAMESPACE.bytes + key.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50  # version 5
    digest[8] = digest[8] & 0x3F | 0x80  # the variant of RFC 9562
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def make_payloads(rows: pa.Table, layout: TableLayout) -> list[dict[str, Any]]:
    """Return the values of each row by column, without the vector and nulls.

    The digest is hexadecimal. JSON has no NaN, which is left out, and no infinity, which becomes a text.
    """
    names = [field.name for field in layout.plain_columns]
    columns = [to_json_values(rows.column(name)) for name in names]
    return [
        {name: value for name, value in zip(names, values, strict=True) if value is not None}
        for values in zip(*columns, strict=True)
    ]


def to_json_values(column: Any) -> list[Any]:
    array = to_fast_list_type(combine_chunks(column))
    values = column_to_python(array)
    if pa.types.is_floating(array.type):
        return [None if value is None or math.isnan(value) else INFINITIES.get(value, value) for value in values]
    if pa.types.is_binary(array.type):
        return [None if value is None else value.hex() for value in values]
    return values


def select_payload(names: Sequence[str]) -> list[str] | bool:
    """Return what to ask for to get some columns: their names, or everything if one of them is not a plain word.

    Databases read a name with points or brackets as a path into an object.
    """
    return list(names) if all(PLAIN_NAME.fullmatch(name) for name in names) else True


def payloads_to_table(
    payloads: Sequence[Mapping[str, Any]], fields: Sequence[pa.Field], hint: str = SWAP_HINT
) -> pa.Table:
    """Build the columns of some fields, none of them the vectors, from payloads.

    Raises:
        OutputError: A payload has no key, or a value of another type: another program has written it.
    """
    arrays = [from_json_values([payload.get(field.name) for payload in payloads], field, hint) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema([field.with_nullable(True) for field in fields]))


def from_json_values(values: list[Any], field: pa.Field, hint: str) -> pa.Array:
    try:
        array = convert_json_values(values, field)
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None or (array.null_count and not field.nullable):
        raise OutputError(
            f"the database has a row whose {field.name!r} is missing or not of the type {field.type}: another program "
            "has changed it",
            hint,
        )
    return array


def convert_json_values(values: list[Any], field: pa.Field) -> pa.Array:
    if pa.types.is_floating(field.type):
        values = [None if value is None else float(value) for value in values]
    elif field.name == DIGEST_COLUMN:
        values = [parse_digest(value) for value in values]
    return pa.array(values, field.type)


def parse_digest(value: Any) -> bytes | None:
    """Parse the digest of a payload; None for anything that another program has written."""
    try:
        digest = bytes.fromhex(value)
    except (TypeError, ValueError):
        return None
    return digest if len(digest) == DIGEST_BYTES else None


# Vectors


def dense_rows(vectors: Any) -> Float32Array:
    """Return the vectors of a fixed-size list column: float32 [n, dim]."""
    array = combine_chunks(vectors)
    numbers = array.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(numbers, np.float32).reshape(len(array), array.type.list_size)


def view_dense_rows(vectors: Any) -> list[memoryview]:
    """Return the vectors of a fixed-size list column one by one, as float32 numbers that are not copied."""
    return [row for chunk in vectors.chunks for row in view_rows(dense_rows(chunk))]


def multi_vector_rows(vectors: Any) -> list[list[list[float]]]:
    """Return the vectors of tokens of each row of a column of lists of vectors."""
    array = combine_chunks(vectors)
    numbers = dense_rows(array.flatten()).tolist()
    ends = np.cumsum(array.value_lengths().to_numpy()).tolist()
    return [numbers[start:end] for start, end in pairwise([0, *ends])]


def sparse_rows(vectors: Any) -> list[tuple[list[int], list[float]]]:
    """Return the indices and values of each vector of a sparse column."""
    array = combine_chunks(vectors)
    indices, values = array.field("indices").to_pylist(), array.field("values").cast(pa.list_(pa.float32())).to_pylist()
    return list(zip(indices, values, strict=True))


def points_to_table(points: Sequence[Any], layout: TableLayout, columns: Sequence[str]) -> pa.Table:
    """Build the named columns from points of Qdrant, which have a payload and a vector."""
    fields = [layout.schema.field(name) for name in columns if name != VECTOR_COLUMN]
    rows = payloads_to_table([point.payload or {} for point in points], fields)
    if VECTOR_COLUMN not in columns:
        return rows
    if layout.kind == "sparse":
        found = [point.vector[VECTOR_COLUMN] for point in points]
        vectors = sparse_column([(vector.indices, vector.values) for vector in found], layout)
    elif layout.kind == "multi_vector":
        vectors = multi_vector_column([point.vector for point in points], layout)
    else:
        vectors = dense_column([point.vector for point in points], layout)
    return join_vectors(rows, vectors, layout, columns)


def dense_column(vectors: Any, layout: TableLayout) -> pa.Array:
    """Build the column of vectors from lists of numbers, or an array of all numbers."""
    kind = layout.schema.field(VECTOR_COLUMN).type
    numbers = np.asarray(vectors, np.float32).reshape(-1).astype(kind.value_type.to_pandas_dtype())
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers, kind.value_type), type=kind)


def multi_vector_column(vectors: Sequence[Sequence[Any]], layout: TableLayout) -> pa.Array:
    """Build the column of vectors from a list of lists of numbers for each row."""
    kind = layout.schema.field(VECTOR_COLUMN).type
    dtype = kind.value_type.value_type.to_pandas_dtype()
    values = np.array([vector for row in vectors for vector in row], np.float32).reshape(-1, layout.dim)
    tokens = MultiVectors(offsets_of([len(row) for row in vectors]), values)
    return multi_to_arrow(tokens, values.astype(dtype), kind)


def is_kept_text(layout: TableLayout, name: str) -> bool:
    """Whether a table has a kept column of this name with texts."""
    return name in layout.kept_columns and pa.types.is_string(layout.schema.field(name).type)


def sparse_column(vectors: Sequence[tuple[Sequence[int], Sequence[float]]], layout: TableLayout) -> pa.Array:
    """Build the column of sparse vectors from their indices and values."""
    kind = layout.schema.field(VECTOR_COLUMN).type
    dtype = kind.field("values").type.value_type.to_pandas_dtype()
    lists = [{"indices": list(indices), "values": np.asarray(values, dtype)} for indices, values in vectors]
    return pa.array(lists, kind)


def join_vectors(rows: pa.Table, vectors: pa.Array, layout: TableLayout, columns: Sequence[str]) -> pa.Table:
    """Add the column of vectors to rows, and put the columns in an order, in the types of the layout."""
    arrays = {**dict(zip(rows.column_names, rows.columns, strict=True)), VECTOR_COLUMN: vectors}
    schema = pa.schema([layout.schema.field(name) for name in columns])
    return pa.Table.from_arrays([arrays[name] for name in columns], schema=schema)
