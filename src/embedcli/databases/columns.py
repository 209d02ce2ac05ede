"""Convert the columns of outputs to the types that a database holds, and rows to bytes for their digests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from hashlib import blake2b
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli.core.arrow_values import UNITS_PER_SECOND, column_to_python
from embedcli.core.constants import ROW_INFO_COLUMNS, WINDOW_COLUMNS
from embedcli.core.errors import UsageError
from embedcli.core.types import KIND_ADJECTIVES
from embedcli.databases.address import list_schemes
from embedcli.databases.target import (
    DIGEST_BYTES,
    DIGEST_COLUMN,
    JSON_FIELD,
    SOURCE_COLUMN,
    SOURCE_FIELD,
    VECTOR_COLUMN,
    TableLayout,
)
from embedcli.outputs.vector_types import sparse_type

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Precision
    from embedcli.databases.target import DatabaseTarget
    from embedcli.outputs.dataset import VectorDataset

ROW_NUMBER_COLUMN = "row"
# Bytes of a row in a column that are hashed where they are.
WIDE_BYTES = 256
VECTOR_TYPES: dict[str, pa.DataType] = {"float32": pa.float32(), "float16": pa.float16(), "ubinary": pa.uint8()}


def plan_layout(dataset: VectorDataset, target: DatabaseTarget) -> TableLayout:
    """Return the columns of the table for an output.

    Raises:
        UsageError: The database does not hold these vectors, or columns of these names.
    """
    stored = target.precisions.get(read_precision(dataset))
    if dataset.kind not in target.kinds:
        raise UsageError(
            f"{target.title}: does not hold {KIND_ADJECTIVES[dataset.kind]} vectors",
            f"load the output into one of {', '.join(list_schemes(dataset.kind))}",
        )
    if stored is None or (dataset.kind == "multi_vector" and stored == "ubinary"):
        raise UsageError(
            f"{target.title}: does not hold {dataset.precision} vectors so that a search compares them correctly",
            f"encode with --precision {' or '.join(target.precisions)}",
        )
    limit = target.max_dimensions.get(stored)
    if limit is not None and dataset.dim > limit:
        raise UsageError(
            f"{target.title}: holds {stored} vectors of at most {limit:,} dimensions, these have {dataset.dim:,}",
            "encode with --truncate-dim, if the model was trained for it, or load into another database",
        )
    if is_dequantized(dataset):
        dataset.require_ranges()
    layout = build_layout(dataset, target, stored)
    check_column_names(layout, target)
    return layout


def read_precision(dataset: VectorDataset) -> Precision:
    """Return the precision in which the vectors of an output are read.

    The numbers of int8 and uint8 have a scale of their own for each dimension, which no database applies when it
    compares vectors: they are read as the float32 numbers that they stand for, as a search in the output does. The
    weights of sparse vectors are read as float32 numbers, whatever they are stored as.
    """
    return "float32" if dataset.kind == "sparse" or is_dequantized(dataset) else dataset.precision


def is_dequantized(dataset: VectorDataset) -> bool:
    """Whether the integers of an output are read as the float32 numbers that they stand for."""
    return dataset.precision in ("int8", "uint8")


def describe_conversion(dataset: VectorDataset) -> list[str]:
    """Return the note that vectors are stored in another number format than in the output, if they are."""
    if not is_dequantized(dataset) or dataset.kind == "sparse":
        return []
    return [f"the {dataset.precision} vectors are loaded as the float32 numbers that they stand for"]


def build_layout(dataset: VectorDataset, target: DatabaseTarget, precision: Precision) -> TableLayout:
    """Return the layout: key, vectors, places of windows, kept columns, digest."""
    id_name = dataset.id_name or ROW_NUMBER_COLUMN
    key = (id_name, "window") if "window" in dataset.schema.names else (id_name,)
    id_type = dataset.schema.field(id_name).type if dataset.id_name else pa.int64()
    fields = [pa.field(id_name, key_type(id_type), nullable=False)]
    fields += [pa.field(name, pa.int64(), nullable=False) for name in key[1:]]
    fields.append(pa.field(VECTOR_COLUMN, vector_type(dataset, precision), nullable=False))
    places = [name for name in WINDOW_COLUMNS if name in dataset.schema.names and name not in key]
    for name in [*places, *dataset.kept_columns]:
        kind = target.stored_type(plain_type(dataset.schema.field(name).type))
        if name == SOURCE_COLUMN and has_source_column(dataset):
            fields.append(pa.field(name, pa.string(), metadata=SOURCE_FIELD))
        else:
            fields.append(pa.field(name, pa.string(), metadata=JSON_FIELD) if kind is None else pa.field(name, kind))
    fields.append(pa.field(DIGEST_COLUMN, pa.binary(DIGEST_BYTES)))
    # The mean of several vectors of tokens is shorter.
    has_unit_vectors = bool(dataset.vector_space.get("normalize")) and not dataset.vector_space.get("pool_factor")
    # int8 numbers are too coarse to keep the length.
    is_normalized = has_unit_vectors and not is_dequantized(dataset)
    normalizes = dataset.kind == "dense" and not (target.keeps_lengths or is_normalized)
    return TableLayout(
        key, pa.schema(fields), dataset.kind, precision, dataset.dim, normalizes, has_unit_vectors or normalizes
    )


def has_source_column(dataset: VectorDataset) -> bool:
    """Whether encode has added the column of the names of the inputs, which was not kept from the input."""
    job = dataset.job_manifest.get("job") or {}
    return SOURCE_COLUMN in dataset.kept_columns and "keep" in job and SOURCE_COLUMN not in job["keep"]


def adapt_source_column(layout: TableLayout, recorded: TableLayout) -> TableLayout:
    """Return the layout for an output with the column `source` if the table has it, and without it if not.

    An output has it if encode has read several inputs: it comes and goes with their number.

    Args:
        layout: The layout for the output.
        recorded: The layout of the table.
    """
    before, after = find_source_field(recorded.schema), find_source_field(layout.schema)
    schema = layout.schema
    if after and not before and SOURCE_COLUMN not in recorded.schema.names:
        schema = schema.remove(schema.get_field_index(SOURCE_COLUMN))
    elif before and not after and SOURCE_COLUMN not in schema.names:
        schema = schema.insert(len(schema) - 1, before)
    return replace(layout, schema=schema)


def find_source_field(schema: pa.Schema) -> pa.Field | None:
    found = [field for field in schema if field.metadata == SOURCE_FIELD]
    return found[0] if found else None


def vector_type(dataset: VectorDataset, precision: Precision) -> pa.DataType:
    number = VECTOR_TYPES[precision]
    if dataset.kind == "sparse":
        return sparse_type(number)
    vector = pa.list_(pa.field("element", number, nullable=False), dataset.stored_width)
    return pa.list_(pa.field("element", vector, nullable=False)) if dataset.kind == "multi_vector" else vector


def check_column_names(layout: TableLayout, target: DatabaseTarget) -> None:
    """Raise UsageError for names that the database does not allow, or that are the same to it."""
    seen: dict[str, str] = {}
    for name in layout.schema.names:
        same = name if target.has_case_sensitive_columns else name.lower()
        problem = None
        if same in seen:
            problem = f"it cannot tell the columns {seen[same]!r} and {name!r} apart"
        elif len(name.encode()) > target.longest_name_bytes:
            problem = f"the name of the column {name!r} is longer than {target.longest_name_bytes} bytes"
        elif name.lower() in target.reserved_columns or not name or set(name) & {"\0", *target.forbidden_characters}:
            problem = f"{name!r} cannot be the name of a column"
        if problem:
            raise UsageError(f"{target.title}: {problem}", "rename the column, or leave it out of --keep")
        seen[same] = name


def columns_to_read(dataset: VectorDataset) -> list[str]:
    """Return the columns of an output that are read to load it: id, window, kept columns, and the text hash."""
    own = [name for name in ("text_hash", *WINDOW_COLUMNS) if name in dataset.schema.names]
    ids = [dataset.id_name] if dataset.id_name else []
    return list(dict.fromkeys([*ids, *own, *(name for name in dataset.kept_columns if name not in ROW_INFO_COLUMNS)]))


# Types


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type without variants that hold the same values: dictionaries, large and view types, extensions."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    return pa.float32() if pa.types.is_float16(kind) else kind


def key_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which ids of a type are stored: int64, or string for everything that it does not hold."""
    kind = plain_type(kind)
    return pa.int64() if pa.types.is_integer(kind) and kind != pa.uint64() else pa.string()


def convert_column(column: Any, field: pa.Field) -> pa.Array:
    """Convert a column of an output to the stored type of a field.

    Values become text where the stored type is string and theirs is not: times in ISO 8601, JSON for the others.
    """
    array = combine_chunks(column)
    if array.type == field.type:
        return array
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if not pa.types.is_string(field.type) or plain_type(array.type) == pa.string():
        return cast_column(array, field)
    if pa.types.is_duration(array.type):
        return pa.array([None if value is None else format_duration(value, array.type.unit) for value in counts(array)])
    write = to_json_text if field.metadata == JSON_FIELD else to_text
    values = (None if value is None else write(name_map_keys(value, array.type)) for value in column_to_python(array))
    return pa.array(values, pa.string())


def cast_column(array: pa.Array, field: pa.Field) -> pa.Array:
    """Cast a column. Raises UsageError with its name if the stored type does not hold one of its values."""
    try:
        return array.cast(field.type)
    except pa.ArrowInvalid:
        raise UsageError(
            f"column {field.name!r} has a value that the type {field.type} of the database does not hold",
            "leave it out of --keep, or keep it as text",
        ) from None


def combine_chunks(column: Any) -> pa.Array:
    """Return a column as one array."""
    if isinstance(column, pa.Array):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def to_fast_list_type(array: pa.Array) -> pa.Array:
    """Return an array whose `to_pylist` is fast: it takes 20 times as long for digests as for other bytes."""
    return array.cast(pa.binary()) if pa.types.is_fixed_size_binary(array.type) else array


def counts(durations: pa.Array) -> list[int | None]:
    """Return durations as counts of their unit."""
    return list(durations.view(pa.int64()).to_pylist())


def format_duration(count: int, unit: str) -> str:
    """Return a duration in seconds by ISO 8601, such as `PT93784.5S`, from its count of a unit."""
    seconds, fraction = divmod(abs(count), UNITS_PER_SECOND[unit])
    digits = f"{fraction:0{len(str(UNITS_PER_SECOND[unit])) - 1}d}".rstrip("0") if fraction else ""
    return f"PT{'-' if count < 0 else ''}{seconds}{'.' if digits else ''}{digits}S"


def name_map_keys(value: Any, kind: pa.DataType) -> Any:
    """Return a value with an object for each map in it, at any depth; a list of pairs if a key of a map is repeated."""
    if value is None or not pa.types.is_nested(kind):
        return value
    if pa.types.is_map(kind):
        pairs = [(key, name_map_keys(item, kind.item_type)) for key, item in value]
        named = {key if isinstance(key, str) else to_json_text(key): item for key, item in pairs}
        return named if len(named) == len(pairs) else pairs
    if isinstance(value, dict):
        return {name: name_map_keys(item, kind.field(name).type) for name, item in value.items()}
    if pa.types.is_struct(kind):
        return value  # pairs of a struct with repeated names
    return [name_map_keys(item, kind.value_type) for item in value]


def to_text(value: Any) -> str:
    if isinstance(value, timedelta):
        return format_duration(value // timedelta(microseconds=1), "us")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else str(value)


def to_json_text(value: Any) -> str:
    import orjson

    return orjson.dumps(value, default=to_text, option=orjson.OPT_NON_STR_KEYS).decode()


# Digests


def digest_rows(table: pa.Table, text_hashes: pa.Array | None) -> list[bytes]:
    """Return BLAKE2b-128 of each row: of all its columns but the digest, and of the hash of its text.

    Args:
        table: Rows in stored types, without `row_digest`.
        text_hashes: The hash of each row's text, where the output has it.
    """
    fixed, varying = [], []
    columns = [combine_chunks(column) for column in table.columns]
    for array in [*columns, *([] if text_hashes is None else [text_hashes])]:
        numbers = fixed_width_bytes(array)
        if numbers is not None:
            fixed.append(numbers)
        else:
            values = variable_width_bytes(array)
            lengths = np.fromiter((-1 if value is None else len(value) for value in values), np.int64, len(values))
            fixed.append(lengths.view(np.uint8).reshape(len(values), -1))
            varying.append([value or b"" for value in values])
    # The lengths come first, so that no two different rows have the same bytes.
    rows = zip(*map(view_rows, join_narrow(fixed)), *varying, strict=True)
    return [blake2b(b"".join(parts), digest_size=DIGEST_BYTES).digest() for parts in rows]


def join_narrow(columns: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Join neighbours among bytes of columns, uint8 [n, width], but for wide ones: these would be copied in vain."""
    joined: list[NDArray[np.uint8]] = []
    for is_narrow, group in groupby(columns, lambda column: column.shape[1] < WIDE_BYTES):
        neighbours = list(group)
        joined += [np.concatenate(neighbours, axis=1)] if is_narrow else neighbours
    return joined


def view_rows(numbers: NDArray[Any]) -> list[memoryview]:
    """Return the rows of numbers [n, width] without copying them: a third of the time of iterating over the array."""
    width = numbers.shape[1]
    flat = np.ascontiguousarray(numbers).reshape(-1).data
    return [flat[start : start + width] for start in range(0, len(numbers) * width, width)]


def fixed_width_bytes(array: pa.Array) -> NDArray[np.uint8] | None:
    """Return the bytes of each value, uint8 [n, width], with its validity last; None if widths differ."""
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
        if array.null_count or not pa.types.is_primitive(kind.value_type):
            return None
        values = array.flatten().to_numpy(zero_copy_only=False)
        return np.ascontiguousarray(values).view(np.uint8).reshape(len(array), width * values.itemsize)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        array = array.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return None
    is_valid = array.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)[:, None]
    if array.null_count:
        array = array.fill_null(False if pa.types.is_boolean(array.type) else 0)
    values = np.ascontiguousarray(array.to_numpy(zero_copy_only=False))
    return np.concatenate([values.view(np.uint8).reshape(len(array), values.itemsize), is_valid], axis=1)


def variable_width_bytes(array: pa.Array) -> list[bytes | None]:
    if is_list_of_vectors(array):
        numbers = array.flatten().flatten().to_numpy(zero_copy_only=False)
        ends = np.cumsum(array.value_lengths().to_numpy()) * array.type.value_type.list_size
        return [row.tobytes() for row in np.split(numbers, ends)[:-1]]
    if pa.types.is_string(array.type) or pa.types.is_binary(array.type) or pa.types.is_fixed_size_binary(array.type):
        return list(array.cast(pa.binary()).to_pylist())
    return [None if value is None else to_json_text(value).encode() for value in column_to_python(array)]


def is_list_of_vectors(array: pa.Array) -> bool:
    """Whether all values are lists of vectors of one width, without nulls at any depth."""
    kind = array.type
    if not (pa.types.is_list(kind) and pa.types.is_fixed_size_list(kind.value_type)):
        return False
    if not pa.types.is_primitive(kind.value_type.value_type) or array.null_count:
        return False
    vectors = array.flatten()
    return not (vectors.null_count or vectors.flatten().null_count)
