"""Parquet: only the columns that are needed, a few thousand rows at a time, checked by whole columns."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import storage
from embedcli.core.arrow_values import scalar_to_python
from embedcli.core.errors import InputError
from embedcli.core.types import InputSplit
from embedcli.readers.arrow_types import BINARY_TO_STRING_TYPES, is_string
from embedcli.readers.decoding import escape_for_reject
from embedcli.readers.nested_fields import nested_array, nested_type
from embedcli.readers.row_batch import (
    BAD_ENCODING_REASON,
    MISSING_ID_REASON,
    BadRow,
    RejectReasons,
    RowBatch,
    accepted_positions,
    take_positions,
)
from embedcli.readers.row_builder import RowBuilder, text_weights

# A piece is whole row groups up to these bounds; one larger row group is a piece of its own.
MAX_SPLIT_ROWS = 1 << 18
MAX_SPLIT_BYTES = 256 << 20
# What is decoded at once: few enough rows that a column of long texts stays within some 16 MiB.
PARQUET_BATCH_ROWS = 4096
PARQUET_BATCH_BYTES = 16 << 20
# Column chunks are read through a buffer of this size, not whole.
READ_BUFFER_BYTES = 1 << 20
# Arrow cannot take rows from these; on disk they are the same.
VIEW_TYPES = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


class UnreadableParquetError(InputError):
    """The file is there, and is not one that Arrow reads as Parquet."""


@contextmanager
def open_parquet(path: str, prefetched: storage.PrefetchedFiles | None = None) -> Iterator[tuple[pq.ParquetFile, int]]:
    """An open Parquet file and its size in bytes; whatever is wrong with it is an InputError."""
    with storage.open_seekable(path, prefetched=prefetched) as raw, translate_arrow_errors(path):
        size = int(raw.size())
        yield (
            pq.ParquetFile(raw, buffer_size=READ_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True),
            size,
        )


@contextmanager
def translate_arrow_errors(path: str) -> Iterator[None]:
    """Errors of Arrow become Unreadable with the path."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UnreadableParquetError(
            f"{storage.format_location(path)}: cannot be read as Parquet: {reason}",
            "check that the file is whole, or fetch it again",
        ) from error


def output_type(kind: pa.DataType) -> pa.DataType:
    """A column's type in the output: dictionaries and views become what they stand for, also inside of lists, structs
    and maps; every other type stays.
    """
    if pa.types.is_dictionary(kind):
        return output_type(kind.value_type)
    inner = [kind.field(i) for i in range(kind.num_fields)]
    made = [field.with_type(output_type(field.type)) for field in inner]
    if made == inner:
        return VIEW_TYPES.get(kind, kind)
    if pa.types.is_struct(kind):
        return pa.struct(made)
    if pa.types.is_map(kind):
        return pa.map_(*made[0].type, keys_sorted=kind.keys_sorted)
    return _list(kind, made[0])


def _list(kind: pa.DataType, field: pa.Field) -> pa.DataType:
    """A list type with another field in it. A list view stays: Arrow's cast of one loses its last values."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(field, kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(field)
    return pa.list_(field) if pa.types.is_list(kind) else kind


def can_keep_type(kind: pa.DataType) -> bool:
    """Whether Arrow can take rows from columns of a type, and write them with one schema in many batches."""
    try:
        pa.nulls(1, kind).take(pa.array([0]))
    except pa.ArrowNotImplementedError:
        return False
    return not _encoded(kind)


def _encoded(kind: pa.DataType) -> bool:
    """Whether there are dictionaries or views inside of a type."""
    coded = pa.types.is_dictionary(kind) or kind in VIEW_TYPES
    return coded or any(_encoded(kind.field(i).type) for i in range(kind.num_fields))


def split_row_ranges(metadata: pq.FileMetaData) -> list[tuple[int, int]]:
    """(first row, row after the last) of each piece; one empty range if the file has no rows."""
    ranges: list[tuple[int, int]] = []
    start = stop = size = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        if stop > start and (
            stop - start + group.num_rows > MAX_SPLIT_ROWS or size + group.total_byte_size > MAX_SPLIT_BYTES
        ):
            ranges.append((start, stop))
            start, size = stop, 0
        stop += group.num_rows
        size += group.total_byte_size
    return [*ranges, (start, stop)] if stop > start or not ranges else ranges


def read_parquet(
    input_split: InputSplit, fields: RowBuilder, prefetched: storage.PrefetchedFiles | None = None
) -> Generator[RowBatch, None, None]:
    """The rows of a piece: whole row groups, from row `piece.start` to `piece.stop`."""
    position, rows = 0, (input_split.stop or 0) - input_split.start
    with open_parquet(input_split.path, prefetched) as (file, file_size):
        groups = _groups(file.metadata, input_split)
        kinds = {field.name: field.type for field in file.schema_arrow}
        columns = [name for name in fields.column_names if nested_type(kinds, name) is not None]
        size = _batch_rows(file.metadata, groups, set(columns))
        share = _share(file_size, file.metadata.num_rows, input_split)
        for batch in _batches(file, size, groups, columns):
            lines = range(position + 1, position + 1 + batch.num_rows)
            position += batch.num_rows
            yield _rows(batch, fields, lines, share * position // max(1, rows))
    if position != rows:
        raise InputError(
            f"{storage.format_location(input_split.path)}: has other rows than when it was planned",
            "run the same command again when nothing writes to the file",
        )


def _batches(
    file: pq.ParquetFile, size: int, groups: Sequence[int], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The columns of some row groups in batches of `size` rows at most."""
    fields = [field for field in file.schema_arrow if any(_needed(name, [field.name]) for name in columns)]
    # Arrow cannot read a dictionary inside of a column across row groups: each has a dictionary of its own.
    apart = any(pa.types.is_nested(field.type) and _encoded(field.type) for field in fields)
    for together in [[group] for group in groups] if apart else [groups]:
        yield from file.iter_batches(size, row_groups=together, columns=columns, use_threads=False)


def _share(size: int, rows: int, input_split: InputSplit) -> int:
    """The piece's share of a file of `size` bytes, by rows; the shares of all pieces add up to the file's size."""
    return size * (input_split.stop or 0) // max(1, rows) - size * input_split.start // max(1, rows)


def _groups(metadata: pq.FileMetaData, input_split: InputSplit) -> list[int]:
    """The row groups that begin in the piece."""
    groups, row = [], 0
    for i in range(metadata.num_row_groups):
        if input_split.start <= row < (input_split.stop or 0):
            groups.append(i)
        row += metadata.row_group(i).num_rows
    return groups


def _batch_rows(metadata: pq.FileMetaData, groups: Sequence[int], names: set[str]) -> int:
    """Rows per batch: as many as have BATCH_BYTES in the needed columns, in the row group with the longest rows."""
    longest = 1
    for i in groups:
        group = metadata.row_group(i)
        columns = (group.column(k) for k in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if _needed(c.path_in_schema, names))
        longest = max(longest, size // max(1, group.num_rows))
    return max(1, min(PARQUET_BATCH_ROWS, PARQUET_BATCH_BYTES // longest))


def _needed(path: str, names: Iterable[str]) -> bool:
    """Whether a column chunk belongs to one of the columns, or of the fields, that are read."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _rows(batch: pa.RecordBatch, fields: RowBuilder, lines: range, done: int) -> RowBatch:
    faults: RejectReasons = {}
    columns = fields.columns
    sources = {name: _as_text(_column(batch, name)) for name in fields.text_columns}
    values = {name: _python(array, name, faults) for name, array in sources.items()}
    texts = fields.build_texts(values, faults, clean=True)
    ids = None if columns.id_column is None else _ids(_column(batch, columns.id_column), columns.id_type, faults)
    kept = {name: _kept(_column(batch, name), kind, faults) for name, kind in columns.kept_types.items()}
    good = accepted_positions(len(lines), faults)
    known = {i: _known_id(ids, i) for i in faults}
    if faults:
        texts = take_positions(texts, good)
        at = pa.array(good, pa.int64())
        ids = None if ids is None else ids.take(at)
        kept = {name: array.take(at) for name, array in kept.items()}
    return RowBatch(
        texts=texts,
        ids=ids,
        kept=pa.table(kept, schema=fields.schema()),
        accepted=good,
        lines=lines,
        text_characters=_weights(texts, kept),
        bad_rows=[BadRow(i, faults[i], known[i], _shown(sources, i)) for i in sorted(faults)],
        line_count=len(lines),
        bytes_read=done,
    )


def _weights(texts: list[str], kept: dict[str, pa.Array]) -> Any:
    """[rows]: the characters of each text, and the bytes of its kept values on the average of the batch."""
    return text_weights([texts]) + sum(array.nbytes for array in kept.values()) // max(1, len(texts))


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column of the batch, its dictionary decoded; nulls if the file lacks it."""
    array = nested_array(batch, name)
    if array is None:
        return pa.nulls(batch.num_rows, pa.string())
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _as_text(array: pa.Array) -> pa.Array:
    """Bytes as the UTF-8 that they should be; what is none shows when it is decoded."""
    if array.type == pa.binary_view():
        array = array.cast(pa.binary())
    return array.view(BINARY_TO_STRING_TYPES[array.type]) if array.type in BINARY_TO_STRING_TYPES else array


def _python(array: pa.Array, name: str, faults: RejectReasons) -> list[Any]:
    """The values as Python objects; a fault and null for those that are not UTF-8."""
    try:
        return array.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        values = []
    for i in range(len(array)):
        try:
            values.append(array[i].as_py())
        except UnicodeDecodeError as error:
            byte = f"byte 0x{error.object[error.start]:02x} at byte {error.start} of column {name!r}"
            faults.setdefault(i, f"{BAD_ENCODING_REASON}: {byte}")
            values.append(None)
    return values


def _ids(array: pa.Array, kind: pa.DataType, faults: RejectReasons) -> pa.Array:
    """The ids in their output type, and faults for those that are null, empty or not UTF-8."""
    array = _cast(array, kind)
    missing = array.is_null()
    if is_string(kind):
        import pyarrow.compute as pc  # 0.1 s, which other formats need not pay

        missing = pc.or_kleene(missing, pc.equal(pc.binary_length(array), 0))
    for i in np.flatnonzero(missing.to_numpy(zero_copy_only=False)):
        faults.setdefault(int(i), MISSING_ID_REASON)
    return _valid(array, faults)


def _kept(array: pa.Array, kind: pa.DataType, faults: RejectReasons) -> pa.Array:
    return _valid(_cast(array, kind), faults)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array if array.type == kind else array.cast(kind)


def _valid(array: pa.Array, faults: RejectReasons) -> pa.Array:
    """The same array, and faults for rows that hold strings which are not UTF-8."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        for i in range(len(array)):
            try:
                array.slice(i, 1).validate(full=True)
            except pa.ArrowInvalid as error:
                faults.setdefault(i, f"{BAD_ENCODING_REASON}: {error}")
    return array


def _known_id(ids: pa.Array | None, i: int) -> Any:
    """The id of a bad row, if it has one that can be written down."""
    if ids is None:
        return None
    try:
        value = scalar_to_python(ids[i])
    except UnicodeDecodeError:
        return None
    return value if type(value) is int else None if value is None else escape_for_reject(str(value)) or None


def _shown(columns: dict[str, pa.Array], i: int) -> str:
    """A bad row's text columns as JSON; bytes that are not UTF-8 as escapes."""
    row = {}
    for name, column in columns.items():
        try:
            row[name] = column[i].as_py()
        except UnicodeDecodeError as error:
            row[name] = error.object.decode("utf-8", "backslashreplace")
    return escape_for_reject(json.dumps(row, ensure_ascii=False, default=str))
