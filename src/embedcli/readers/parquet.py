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
from embedcli.core.arrow_values import value_of
from embedcli.core.errors import InputError
from embedcli.core.types import Piece
from embedcli.readers.arrow_types import BYTES, is_string
from embedcli.readers.decoding import printable
from embedcli.readers.nested_fields import array_in, kind_in
from embedcli.readers.row_batch import BAD_ENCODING, MISSING_ID, Fault, Faults, Rows, good_positions, picked
from embedcli.readers.row_builder import Fields, weights

# A piece is whole row groups up to these bounds; one larger row group is a piece of its own.
PIECE_ROWS = 1 << 18
PIECE_BYTES = 256 << 20
# What is decoded at once: few enough rows that a column of long texts stays within some 16 MiB.
BATCH_ROWS = 4096
BATCH_BYTES = 16 << 20
# Column chunks are read through a buffer of this size, not whole.
BUFFER_BYTES = 1 << 20
# Arrow cannot take rows from these; on disk they are the same.
VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


class Unreadable(InputError):
    """The file is there, and is not one that Arrow reads as Parquet."""


@contextmanager
def opened(path: str) -> Iterator[tuple[pq.ParquetFile, int]]:
    """An open Parquet file and its size in bytes; whatever is wrong with it is an InputError."""
    with storage.open_seekable(path) as raw, arrow_errors(path):
        size = int(raw.size())
        yield pq.ParquetFile(raw, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True), size


@contextmanager
def arrow_errors(path: str) -> Iterator[None]:
    """Errors of Arrow become Unreadable with the path."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise Unreadable(
            f"{storage.where(path)}: cannot be read as Parquet: {reason}",
            "check that the file is whole, or fetch it again",
        ) from error


def plain(kind: pa.DataType) -> pa.DataType:
    """A column's type in the output: dictionaries and views become what they stand for, also inside of lists, structs
    and maps; every other type stays.
    """
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    inner = [kind.field(i) for i in range(kind.num_fields)]
    made = [field.with_type(plain(field.type)) for field in inner]
    if made == inner:
        return VIEWS.get(kind, kind)
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


def keepable(kind: pa.DataType) -> bool:
    """Whether Arrow can take rows from columns of a type, and write them with one schema in many batches."""
    try:
        pa.nulls(1, kind).take(pa.array([0]))
    except pa.ArrowNotImplementedError:
        return False
    return not _encoded(kind)


def _encoded(kind: pa.DataType) -> bool:
    """Whether there are dictionaries or views inside of a type."""
    coded = pa.types.is_dictionary(kind) or kind in VIEWS
    return coded or any(_encoded(kind.field(i).type) for i in range(kind.num_fields))


def row_ranges(metadata: pq.FileMetaData) -> list[tuple[int, int]]:
    """(first row, row after the last) of each piece; one empty range if the file has no rows."""
    ranges: list[tuple[int, int]] = []
    start = stop = size = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        if stop > start and (stop - start + group.num_rows > PIECE_ROWS or size + group.total_byte_size > PIECE_BYTES):
            ranges.append((start, stop))
            start, size = stop, 0
        stop += group.num_rows
        size += group.total_byte_size
    return [*ranges, (start, stop)] if stop > start or not ranges else ranges


def read(piece: Piece, fields: Fields) -> Generator[Rows, None, None]:
    """The rows of a piece: whole row groups, from row `piece.start` to `piece.stop`."""
    position, rows = 0, (piece.stop or 0) - piece.start
    with opened(piece.path) as (file, file_size):
        groups = _groups(file.metadata, piece)
        kinds = {field.name: field.type for field in file.schema_arrow}
        columns = [name for name in fields.names if kind_in(kinds, name) is not None]
        size = _batch_rows(file.metadata, groups, set(columns))
        share = _share(file_size, file.metadata.num_rows, piece)
        for batch in _batches(file, size, groups, columns):
            lines = range(position + 1, position + 1 + batch.num_rows)
            position += batch.num_rows
            yield _rows(batch, fields, lines, share * position // max(1, rows))
    if position != rows:
        raise InputError(
            f"{storage.where(piece.path)}: has other rows than when it was planned",
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


def _share(size: int, rows: int, piece: Piece) -> int:
    """The piece's share of a file of `size` bytes, by rows; the shares of all pieces add up to the file's size."""
    return size * (piece.stop or 0) // max(1, rows) - size * piece.start // max(1, rows)


def _groups(metadata: pq.FileMetaData, piece: Piece) -> list[int]:
    """The row groups that begin in the piece."""
    groups, row = [], 0
    for i in range(metadata.num_row_groups):
        if piece.start <= row < (piece.stop or 0):
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
    return max(1, min(BATCH_ROWS, BATCH_BYTES // longest))


def _needed(path: str, names: Iterable[str]) -> bool:
    """Whether a column chunk belongs to one of the columns, or of the fields, that are read."""
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _rows(batch: pa.RecordBatch, fields: Fields, lines: range, done: int) -> Rows:
    faults: Faults = {}
    columns = fields.columns
    sources = {name: _as_text(_column(batch, name)) for name in fields.text_names}
    values = {name: _python(array, name, faults) for name, array in sources.items()}
    texts = fields.texts(values, faults, clean=True)
    ids = None if columns.id_column is None else _ids(_column(batch, columns.id_column), columns.id_type, faults)
    kept = {name: _kept(_column(batch, name), kind, faults) for name, kind in columns.keep_types.items()}
    good = good_positions(len(lines), faults)
    known = {i: _known_id(ids, i) for i in faults}
    if faults:
        texts = picked(texts, good)
        at = pa.array(good, pa.int64())
        ids = None if ids is None else ids.take(at)
        kept = {name: array.take(at) for name, array in kept.items()}
    return Rows(
        texts=texts,
        ids=ids,
        kept=pa.table(kept, schema=fields.schema()),
        good=good,
        lines=lines,
        weights=_weights(texts, kept),
        faults=[Fault(i, faults[i], known[i], _shown(sources, i)) for i in sorted(faults)],
        span=len(lines),
        done=done,
    )


def _weights(texts: list[str], kept: dict[str, pa.Array]) -> Any:
    """[rows]: the characters of each text, and the bytes of its kept values on the average of the batch."""
    return weights([texts]) + sum(array.nbytes for array in kept.values()) // max(1, len(texts))


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column of the batch, its dictionary decoded; nulls if the file lacks it."""
    array = array_in(batch, name)
    if array is None:
        return pa.nulls(batch.num_rows, pa.string())
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _as_text(array: pa.Array) -> pa.Array:
    """Bytes as the UTF-8 that they should be; what is none shows when it is decoded."""
    if array.type == pa.binary_view():
        array = array.cast(pa.binary())
    return array.view(BYTES[array.type]) if array.type in BYTES else array


def _python(array: pa.Array, name: str, faults: Faults) -> list[Any]:
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
            faults.setdefault(i, f"{BAD_ENCODING}: {byte}")
            values.append(None)
    return values


def _ids(array: pa.Array, kind: pa.DataType, faults: Faults) -> pa.Array:
    """The ids in their output type, and faults for those that are null, empty or not UTF-8."""
    array = _cast(array, kind)
    missing = array.is_null()
    if is_string(kind):
        import pyarrow.compute as pc  # 0.1 s, which other formats need not pay

        missing = pc.or_kleene(missing, pc.equal(pc.binary_length(array), 0))
    for i in np.flatnonzero(missing.to_numpy(zero_copy_only=False)):
        faults.setdefault(int(i), MISSING_ID)
    return _valid(array, faults)


def _kept(array: pa.Array, kind: pa.DataType, faults: Faults) -> pa.Array:
    return _valid(_cast(array, kind), faults)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array if array.type == kind else array.cast(kind)


def _valid(array: pa.Array, faults: Faults) -> pa.Array:
    """The same array, and faults for rows that hold strings which are not UTF-8."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        for i in range(len(array)):
            try:
                array.slice(i, 1).validate(full=True)
            except pa.ArrowInvalid as error:
                faults.setdefault(i, f"{BAD_ENCODING}: {error}")
    return array


def _known_id(ids: pa.Array | None, i: int) -> Any:
    """The id of a bad row, if it has one that can be written down."""
    if ids is None:
        return None
    try:
        value = value_of(ids[i])
    except UnicodeDecodeError:
        return None
    return value if type(value) is int else None if value is None else printable(str(value)) or None


def _shown(columns: dict[str, pa.Array], i: int) -> str:
    """A bad row's text columns as JSON; bytes that are not UTF-8 as escapes."""
    row = {}
    for name, column in columns.items():
        try:
            row[name] = column[i].as_py()
        except UnicodeDecodeError as error:
            row[name] = error.object.decode("utf-8", "backslashreplace")
    return printable(json.dumps(row, ensure_ascii=False, default=str))
