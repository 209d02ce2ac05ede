"""Turn Arrow record batches into row batches: the same columns, types, nulls and rejects for Parquet and Arrow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from embedcli.core.arrow_values import scalar_to_python
from embedcli.core.errors import InputError
from embedcli.core.types import InputSplit
from embedcli.readers.arrow_types import BINARY_TO_STRING_TYPES, is_string
from embedcli.readers.decoding import escape_for_reject
from embedcli.readers.nested_fields import nested_array
from embedcli.readers.row_batch import (
    BAD_ENCODING_REASON,
    MISSING_ID_REASON,
    BadRow,
    RejectReasons,
    RowBatch,
    accepted_positions,
    take_positions,
)
from embedcli.readers.row_builder import RowBuilder, count_characters
from embedcli.storage import format_location

STRING_TO_BINARY_TYPES = {string: binary for binary, string in BINARY_TO_STRING_TYPES.items()}
# Arrow cannot take rows from view types; on disk they are the same as these.
VIEW_TYPES = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}

# A split is whole row groups or record batches within these limits, or a single larger one.
MAX_SPLIT_ROWS = 1 << 18
MAX_SPLIT_BYTES = 256 << 20
# Limits of the rows that become Python objects at once.
MAX_BATCH_ROWS = 4096
MAX_BATCH_BYTES = 16 << 20


def output_type(data_type: pa.DataType) -> pa.DataType:
    """The type of a column in the output.

    Dictionary and view types are replaced by their plain types, also in lists, structs and maps; others stay.
    """
    if pa.types.is_dictionary(data_type):
        return output_type(data_type.value_type)
    fields = [data_type.field(i) for i in range(data_type.num_fields)]
    new_fields = [field.with_type(output_type(field.type)) for field in fields]
    if new_fields == fields:
        return VIEW_TYPES.get(data_type, data_type)
    if pa.types.is_struct(data_type):
        return pa.struct(new_fields)
    if pa.types.is_map(data_type):
        return pa.map_(*new_fields[0].type, keys_sorted=data_type.keys_sorted)
    return _list_type(data_type, new_fields[0])


def _list_type(data_type: pa.DataType, field: pa.Field) -> pa.DataType:
    """A list type with another element type. List views stay, because Arrow's cast of them loses the last values."""
    if pa.types.is_fixed_size_list(data_type):
        return pa.list_(field, data_type.list_size)
    if pa.types.is_large_list(data_type):
        return pa.large_list(field)
    return pa.list_(field) if pa.types.is_list(data_type) else data_type


def can_keep_type(data_type: pa.DataType) -> bool:
    """Whether columns of a type can be kept: Arrow must be able to take rows of them and to write them in batches."""
    try:
        pa.nulls(1, data_type).take(pa.array([0]))
    except pa.ArrowNotImplementedError:
        return False
    return not has_dictionaries_or_views(data_type)


def has_dictionaries_or_views(data_type: pa.DataType) -> bool:
    """Whether a type is or contains a dictionary or view type."""
    if pa.types.is_dictionary(data_type) or data_type in VIEW_TYPES:
        return True
    return any(has_dictionaries_or_views(data_type.field(i).type) for i in range(data_type.num_fields))


def group_into_ranges(sizes: Iterable[tuple[int, float]]) -> list[tuple[int, int]]:
    """Group the row groups or record batches of a file into splits.

    Args:
        sizes: The number of rows and of bytes of each.

    Returns:
        The (first row, row after the last) of each split; one empty range if the file has no rows.
    """
    ranges: list[tuple[int, int]] = []
    start = stop = 0
    size = 0.0
    for row_count, byte_count in sizes:
        if stop > start and (stop - start + row_count > MAX_SPLIT_ROWS or size + byte_count > MAX_SPLIT_BYTES):
            ranges.append((start, stop))
            start, size = stop, 0.0
        stop += row_count
        size += byte_count
    return [*ranges, (start, stop)] if stop > start or not ranges else ranges


def split_bytes(size: int, rows: int, input_split: InputSplit) -> int:
    """The bytes that progress counts for a split, in proportion to its rows; all splits sum to the file size."""
    return size * (input_split.stop or 0) // max(1, rows) - size * input_split.start // max(1, rows)


def slice_batch(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Yield a record batch in parts of at most MAX_BATCH_ROWS rows and about MAX_BATCH_BYTES; none without rows."""
    row_bytes = max(1, batch.nbytes // max(1, batch.num_rows))
    rows = max(1, min(MAX_BATCH_ROWS, MAX_BATCH_BYTES // row_bytes))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def check_structure(batch: pa.RecordBatch, path: str) -> pa.RecordBatch:
    """Return the batch after a check that no value points outside of it, which Arrow does not do when it reads IPC.

    Raises:
        InputError: The data is damaged.
    """
    try:
        for column in batch.columns:
            _check_array(column)
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{format_location(path)}: the Arrow data is damaged: {reason}", "fetch or write the file again"
        ) from error
    return batch


def _check_array(array: pa.Array) -> None:
    """Validate offsets, lengths and indices, but not whether strings are UTF-8: that is a matter of single rows."""
    if array.type in STRING_TO_BINARY_TYPES:
        array.view(STRING_TO_BINARY_TYPES[array.type]).validate(full=True)
    elif array.type == pa.string_view():
        array.validate()
    elif pa.types.is_dictionary(array.type):
        array.indices.validate(full=True)
        _check_array(array.dictionary)
        pa.DictionaryArray.from_arrays(array.indices, array.dictionary, safe=True)
    elif pa.types.is_struct(array.type):
        array.validate()
        for field in range(array.type.num_fields):
            _check_array(array.field(field))
    elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        array.validate()
        _check_offsets(array)
        _check_array(array.values)
    elif pa.types.is_nested(array.type):
        array.validate()
    else:
        array.validate(full=True)


def _check_offsets(array: pa.Array) -> None:
    """Validate the offsets of a list by those of a list of nulls of the same lengths."""
    pa.LargeListArray.from_arrays(array.offsets.cast(pa.int64()), pa.nulls(len(array.values))).validate(full=True)


def build_row_batches(
    batches: Iterable[pa.RecordBatch], row_builder: RowBuilder, input_split: InputSplit, size_of_split: int
) -> Iterator[RowBatch]:
    """Yield row batches of the record batches of a split, which is a range of rows.

    Args:
        batches: All rows of the split, in order.
        row_builder: The columns.
        input_split: The split.
        size_of_split: Its bytes, for progress.

    Raises:
        InputError: There are more or fewer rows than when the split was planned.
    """
    position, rows = 0, (input_split.stop or 0) - input_split.start
    for batch in batches:
        lines = range(position + 1, position + 1 + batch.num_rows)
        position += batch.num_rows
        yield to_row_batch(batch, row_builder, lines, size_of_split * position // max(1, rows))
    if position != rows:
        raise InputError(
            f"{format_location(input_split.path)}: has other rows than when it was planned",
            "run the same command again when no other program writes to the file",
        )


def to_row_batch(batch: pa.RecordBatch, row_builder: RowBuilder, lines: range, bytes_read: int) -> RowBatch:
    """Build a row batch from a record batch.

    Args:
        batch: The rows; columns that it does not have are null.
        row_builder: The columns.
        lines: The line of each row, from 1 at the beginning of the split.
        bytes_read: How many bytes of the split have been read so far.
    """
    reasons: RejectReasons = {}
    batch = row_builder.add_constants(batch)
    columns = row_builder.columns
    sources = {name: _binary_to_string(_column(batch, name)) for name in row_builder.text_columns}
    values = {name: _to_python(array, name, reasons) for name, array in sources.items()}
    texts = row_builder.build_texts(values, reasons, known_valid=True)
    ids = None if columns.id_column is None else _ids(_column(batch, columns.id_column), columns.id_type, reasons)
    kept = {name: _kept(_column(batch, name), data_type, reasons) for name, data_type in columns.kept_types.items()}
    accepted = accepted_positions(len(lines), reasons)
    bad_ids = {i: _id_or_none(ids, i) for i in reasons}
    if reasons:
        texts = take_positions(texts, accepted)
        positions = pa.array(accepted, pa.int64())
        ids = None if ids is None else ids.take(positions)
        kept = {name: array.take(positions) for name, array in kept.items()}
    return RowBatch(
        texts=texts,
        ids=ids,
        kept=pa.table(kept, schema=row_builder.schema()),
        accepted=accepted,
        lines=lines,
        text_characters=_row_sizes(texts, kept),
        bad_rows=[BadRow(i, reasons[i], bad_ids[i], _raw_row(sources, i)) for i in sorted(reasons)],
        line_count=len(lines),
        bytes_read=bytes_read,
        raw_row=partial(_raw_row, sources),
    )


def _row_sizes(texts: list[str], kept: dict[str, pa.Array]) -> Any:
    """int64 [rows]: the characters of each text plus the bytes of the kept values, averaged over the batch."""
    return count_characters([texts]) + sum(array.nbytes for array in kept.values()) // max(1, len(texts))


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column of the batch with dictionaries decoded; nulls if the file does not have it."""
    array = nested_array(batch, name)
    if array is None:
        return pa.nulls(batch.num_rows, pa.string())
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _binary_to_string(array: pa.Array) -> pa.Array:
    """Treat bytes as UTF-8 strings; invalid ones are noticed when they are decoded."""
    if array.type == pa.binary_view():
        array = array.cast(pa.binary())
    return array.view(BINARY_TO_STRING_TYPES[array.type]) if array.type in BINARY_TO_STRING_TYPES else array


def _to_python(array: pa.Array, name: str, reasons: RejectReasons) -> list[Any]:
    """The values as Python objects; values that are not UTF-8 are rejected and become null."""
    try:
        return array.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        values = []
    for i in range(len(array)):
        try:
            values.append(array[i].as_py())
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at byte {error.start} of column {name!r}"
            reasons.setdefault(i, f"{BAD_ENCODING_REASON}: {byte}")
            values.append(None)
    return values


def _ids(array: pa.Array, data_type: pa.DataType, reasons: RejectReasons) -> pa.Array:
    """The ids in their output type; ids that are null, empty or not UTF-8 are rejected."""
    array = _cast(array, data_type)
    missing = array.is_null()
    if is_string(data_type):
        import pyarrow.compute as pc  # takes 0.1 s, which other formats save

        missing = pc.or_kleene(missing, pc.equal(pc.binary_length(array), 0))
    for i in np.flatnonzero(missing.to_numpy(zero_copy_only=False)):
        reasons.setdefault(int(i), MISSING_ID_REASON)
    return _reject_invalid_utf8(array, reasons)


def _kept(array: pa.Array, data_type: pa.DataType, reasons: RejectReasons) -> pa.Array:
    return _reject_invalid_utf8(_cast(array, data_type), reasons)


def _cast(array: pa.Array, data_type: pa.DataType) -> pa.Array:
    return array if array.type == data_type else array.cast(data_type)


def _reject_invalid_utf8(array: pa.Array, reasons: RejectReasons) -> pa.Array:
    """Return the array, and add reasons for rows with strings that are not UTF-8."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        for i in range(len(array)):
            try:
                array.slice(i, 1).validate(full=True)
            except pa.ArrowInvalid as error:
                reasons.setdefault(i, f"{BAD_ENCODING_REASON}: {error}")
    return array


def _id_or_none(ids: pa.Array | None, i: int) -> Any:
    """The id of a bad row, if it can be represented."""
    if ids is None:
        return None
    try:
        value = scalar_to_python(ids[i])
    except UnicodeDecodeError:
        return None
    return value if type(value) is int else None if value is None else escape_for_reject(str(value)) or None


def _raw_row(columns: dict[str, pa.Array], i: int) -> str:
    """The text columns of a bad row as JSON, with escapes for bytes that are not UTF-8."""
    row = {}
    for name, column in columns.items():
        try:
            row[name] = column[i].as_py()
        except UnicodeDecodeError as error:
            row[name] = error.object.decode("utf-8", "backslashreplace")
    return escape_for_reject(json.dumps(row, ensure_ascii=False, default=str))
