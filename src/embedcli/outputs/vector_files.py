"""One file of vectors, read in blocks: Parquet, npy with its ids, Arrow, JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import storage
from embedcli.core.errors import InputError, UsageError, first_line
from embedcli.core.types import OutputFormat
from embedcli.outputs import writers
from embedcli.outputs.parquet_pages import PageReader, can_read_pages

if TYPE_CHECKING:
    from numpy.typing import NDArray

VECTOR_COLUMN_NAMES = ("embedding", "embeddings", "vector")
FORMATS_BY_MAGIC: tuple[tuple[bytes, OutputFormat], ...] = (
    (b"PAR1", "parquet"),
    (b"\x93NUMPY", "npy"),
    (b"ARROW1", "arrow"),
    (b"{", "jsonl"),
)
# Up to this many rows are picked one by one: `Table.take` first loads all of Arrow's functions, a tenth of a second.
PREVIEW_ROWS = 100
VectorsAndColumns = tuple["NDArray[Any]", pa.Table]


class VectorFile(Protocol):
    """The rows of one file. `schema` has every column but the vectors; `metadata` the file's own key-value pairs."""

    path: str
    stored_width: int
    dtype: np.dtype[Any]
    schema: pa.Schema
    metadata: Mapping[str, Any]

    @property
    def row_count(self) -> int:
        """How many rows there are."""

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        """Yield all rows in order: stored vectors [n, width] and a table of `columns`, n <= size."""

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The `columns` of some rows, in ascending order of `rows`."""


def detect_format(path: str) -> OutputFormat:
    """What a file of vectors is by its first bytes. UsageError if it is none."""
    with storage.open_input(path, look=True) as source:
        start = source.read()[:16] if source.codec is None else b""
    found = next((kind for magic, kind in FORMATS_BY_MAGIC if start.startswith(magic)), None)
    if found is None and not start and companion_exists(path, writers.space_path(path)):
        return "jsonl"
    if found is None:
        raise UsageError(
            f"{storage.format_location(path)}: is not a file of vectors",
            "give an output of `embedcli encode`: Parquet, npy, Arrow or JSON lines",
        )
    return found


def companion_exists(path: str, companion: str) -> bool:
    """Whether a file's companion is there. A web address with a query has none: nobody knows the companion's query."""
    return storage.strip_query(path) == path and storage.exists(companion)


def open_vector_file(path: str) -> VectorFile:
    """The rows of one file. UsageError if it holds no vectors, InputError if it is damaged."""
    kind = detect_format(path)
    readers: dict[OutputFormat, Callable[[str], VectorFile]] = {
        "parquet": ParquetVectorFile,
        "npy": NpyVectorFile,
        "arrow": ArrowVectorFile,
        "jsonl": JsonlVectorFile,
    }
    try:
        with storage.translate_input_errors(path):
            return readers[kind](path)
    except (pa.ArrowException, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"{storage.format_location(path)}: is damaged: {reason}", "make the output again") from error


def find_vector_column(schema: pa.Schema, path: str) -> str:
    """The name of the vector column: `embedding`, or another usual name, or the only list of numbers."""
    lists = [field.name for field in schema if is_vector_type(field.type)]
    found = next((name for name in VECTOR_COLUMN_NAMES if name in lists), lists[0] if len(lists) == 1 else None)
    if found is None:
        raise UsageError(
            f"{storage.format_location(path)}: has no column of vectors; its columns are {', '.join(schema.names)}",
            "give an output of `embedcli encode`",
        )
    return found


def is_vector_type(kind: pa.DataType) -> bool:
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists:
        return False
    value = kind.value_type
    return bool(pa.types.is_floating(value) or pa.types.is_int8(value) or pa.types.is_uint8(value))


def list_column_to_array(column: pa.ChunkedArray, width: int, path: str) -> NDArray[Any]:
    """A list column as an array [n, width]. InputError if a list is missing or of another length."""
    arrays = [chunk.flatten() for chunk in column.chunks]
    flat = pa.concat_arrays(arrays) if arrays else pa.array([], column.type.value_type)
    if len(flat) != len(column) * width or flat.null_count or column.null_count:
        raise InputError(
            f"{storage.format_location(path)}: its vectors are not all of {width} numbers", "make the output again"
        )
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, width)


def drop_column(schema: pa.Schema, name: str) -> pa.Schema:
    return pa.schema([field for field in schema if field.name != name])


def decode_metadata(raw: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The key-value pairs that embedcli wrote, parsed."""
    return {key.decode(): json.loads(value) for key, value in (raw or {}).items() if key.startswith(b"embedcli")}


class ParquetVectorFile:
    """A Parquet file, row group by row group."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = pq.ParquetFile(storage.open_seekable(path))
        schema = self._file.schema_arrow
        self.column = find_vector_column(schema, path)
        self.row_count = self._file.metadata.num_rows
        self.schema = drop_column(schema, self.column)
        self.metadata: Mapping[str, Any] = decode_metadata(schema.metadata)
        kind = schema.field(self.column).type
        self.dtype: np.dtype[Any] = np.dtype(kind.value_type.to_pandas_dtype())
        self.stored_width = kind.list_size if pa.types.is_fixed_size_list(kind) else self._first_width()
        self._fixed = pa.types.is_fixed_size_list(kind)

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            tables = self._tables(group, rows, columns, size)
            for vectors in self._vectors(group, rows, size, verify):
                table = next(tables)
                if len(vectors) != table.num_rows:
                    raise InputError(
                        f"{storage.format_location(self.path)}: its columns differ in length", "make the file again"
                    )
                yield vectors, table

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        wanted, found, start = np.sort(np.asarray(rows, np.int64)), [], 0
        for group in range(self._file.num_row_groups):
            stop = start + self._file.metadata.row_group(group).num_rows
            here = wanted[(wanted >= start) & (wanted < stop)] - start
            if len(here):
                found.append(take_unsorted_rows(self._file.read_row_group(group, columns=list(columns)), here))
            start = stop
        return pa.concat_tables(found) if found else self.schema.empty_table().select(list(columns))

    def _tables(self, group: int, rows: int, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
        if not columns:
            for start in range(0, rows, size):
                yield table_without_columns(min(size, rows - start))
            return
        for batch in self._file.iter_batches(size, row_groups=[group], columns=list(columns)):
            yield pa.Table.from_batches([batch]).select(list(columns))

    def _vectors(self, group: int, rows: int, size: int, verify: bool) -> Iterator[NDArray[Any]]:
        pages = self._pages(group, rows, verify)
        if pages is not None:
            yield from pages.read_blocks(size, self.stored_width, self.dtype)
            return
        for batch in self._file.iter_batches(size, row_groups=[group], columns=[self.column]):
            yield list_column_to_array(pa.chunked_array([batch.column(0)]), self.stored_width, self.path)

    def _pages(self, group: int, rows: int, verify: bool) -> PageReader | None:
        """The fast way to the vectors, where the file allows it."""
        leaf = next(i for i in range(len(self._file.schema)) if self._leaf(i).path.split(".")[0] == self.column)
        chunk = self._file.metadata.row_group(group).column(leaf)
        if not self._fixed or not can_read_pages(chunk, self._leaf(leaf), rows * self.stored_width):
            return None
        pages = PageReader(storage.open_seekable(self.path), self.path, chunk, verify=verify)
        return pages if pages.is_supported() else None

    def _leaf(self, i: int) -> pq.ColumnSchema:
        return self._file.schema.column(i)

    def _first_width(self) -> int:
        batch = next(self._file.iter_batches(1, columns=[self.column]), None)
        return len(batch.column(0)[0]) if batch is not None and batch.column(0)[0].is_valid else 0


class NpyVectorFile:
    """`NAME.npy` and, where it is there, `NAME.ids.parquet` with all the other columns."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._vectors = np.load(storage.local_copy(path), mmap_mode="r", allow_pickle=False)
        if self._vectors.ndim != 2:
            raise UsageError(
                f"{storage.format_location(path)}: holds an array of shape {self._vectors.shape}, not of rows",
                "give an array of two dimensions, a vector in each row",
            )
        self.row_count, self.stored_width = self._vectors.shape
        self.dtype: np.dtype[Any] = self._vectors.dtype
        beside = writers.ids_path(path)
        self._ids = pq.ParquetFile(storage.open_seekable(beside)) if companion_exists(path, beside) else None
        self.schema = pa.schema([]) if self._ids is None else self._ids.schema_arrow.remove_metadata()
        self.metadata: Mapping[str, Any] = {} if self._ids is None else decode_metadata(self._ids.schema_arrow.metadata)
        if self._ids is not None and self._ids.metadata.num_rows != self.row_count:
            raise InputError(
                f"{storage.format_location(path)}: has {self.row_count} rows, and {storage.format_location(beside)} "
                f"has {self._ids.metadata.num_rows}",
                "make the output again",
            )

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        tables = self._tables(columns, size)
        start = 0
        for table in tables:
            stop = start + table.num_rows
            yield np.array(self._vectors[start:stop]), table
            start = stop

    def _tables(self, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
        if not columns or self._ids is None:
            yield from (
                table_without_columns(min(size, self.row_count - start)) for start in range(0, self.row_count, size)
            )
            return
        for batch in self._ids.iter_batches(size, columns=list(columns)):
            yield pa.Table.from_batches([batch]).select(list(columns))

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        if self._ids is None or not len(rows):
            return table_without_columns(len(rows))
        return take_unsorted_rows(self._ids.read(columns=list(columns)), np.sort(np.asarray(rows, np.int64)))


class ArrowVectorFile:
    """An Arrow IPC file, memory-mapped, batch by batch."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = pa.ipc.open_file(pa.memory_map(storage.local_copy(path)))
        schema = self._file.schema
        self.column = find_vector_column(schema, path)
        self.schema = drop_column(schema, self.column)
        self.metadata: Mapping[str, Any] = decode_metadata(schema.metadata)
        kind = schema.field(self.column).type
        self.dtype: np.dtype[Any] = np.dtype(kind.value_type.to_pandas_dtype())
        self._counts = [self._file.get_batch(i).num_rows for i in range(self._file.num_record_batches)]
        self.row_count = sum(self._counts)
        self.stored_width = kind.list_size if pa.types.is_fixed_size_list(kind) else self._first_width()

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        for i in range(self._file.num_record_batches):
            whole = pa.Table.from_batches([self._file.get_batch(i)])
            for start in range(0, whole.num_rows, size):
                piece = whole.slice(start, size)
                table = piece.select(list(columns)) if columns else table_without_columns(piece.num_rows)
                yield list_column_to_array(piece.column(self.column), self.stored_width, self.path), table

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        wanted, found, start = np.sort(np.asarray(rows, np.int64)), [], 0
        for i, count in enumerate(self._counts):
            here = wanted[(wanted >= start) & (wanted < start + count)] - start
            if len(here):
                batch = pa.Table.from_batches([self._file.get_batch(i)]).select(list(columns))
                found.append(take_unsorted_rows(batch, here))
            start += count
        return pa.concat_tables(found) if found else self.schema.empty_table().select(list(columns))

    def _first_width(self) -> int:
        found = (self._file.get_batch(i).column(self.column) for i, count in enumerate(self._counts) if count)
        first = next(found, None)
        return 0 if first is None else len(first[0])


class JsonlVectorFile:
    """JSON lines, each with a list of numbers, and `NAME.space.json` beside them where embedcli wrote them."""

    def __init__(self, path: str) -> None:
        self.path = path
        beside = writers.space_path(path)
        found = storage.read_bytes(beside) if companion_exists(path, beside) else b"{}"
        self.metadata: Mapping[str, Any] = json.loads(found)
        first = next(self._rows(), None) or {}
        self.column = next(
            (name for name in VECTOR_COLUMN_NAMES if isinstance(first.get(name), list)), VECTOR_COLUMN_NAMES[0]
        )
        if first and self.column not in first:
            raise UsageError(
                f"{storage.format_location(path)}: its rows hold no vectors; their fields are {', '.join(first)}",
                "give an output of `embedcli encode`",
            )
        self.stored_width = len(first.get(self.column, ()))
        precision = str(self.metadata.get(writers.SPACE_METADATA_KEY, {}).get("precision", "float32"))
        self.dtype = np.dtype({"binary": "int8", "ubinary": "uint8"}.get(precision, precision))
        self.schema = drop_column(pa.Table.from_pylist([first]).schema, self.column)

    @cached_property
    def row_count(self) -> int:
        """How many rows there are; they are counted once."""
        with open(storage.local_copy(self.path), "rb") as lines:
            return sum(1 for line in lines if line.strip())

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        rows = self._rows()
        while held := list(islice(rows, size)):
            table = self._table(held, columns) if columns else table_without_columns(len(held))
            yield self._vectors(held), table

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        wanted = set(rows)
        return self._table([row for i, row in enumerate(self._rows()) if i in wanted], columns)

    def _rows(self) -> Iterator[dict[str, Any]]:
        import orjson

        with open(storage.local_copy(self.path), "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield orjson.loads(line)
                    except ValueError as error:
                        place = storage.format_location(self.path, number)
                        raise InputError(f"{place}: is not JSON: {error}", "make the output again") from None

    def _vectors(self, rows: list[dict[str, Any]]) -> NDArray[Any]:
        try:
            return np.array([row[self.column] for row in rows], self.dtype).reshape(len(rows), self.stored_width)
        except (KeyError, ValueError, TypeError):
            message = f"{storage.format_location(self.path)}: its vectors are not all of {self.stored_width} numbers"
            raise InputError(message, "make the output again") from None

    def _table(self, rows: list[dict[str, Any]], columns: Sequence[str]) -> pa.Table:
        return pa.table({name: json_values_to_column([row.get(name) for row in rows]) for name in columns})


def json_values_to_column(values: list[Any]) -> pa.Array:
    """Values of JSON as a column: of their own type where they have one in common, else as JSON texts."""
    try:
        return pa.array(values)
    except (OverflowError, pa.ArrowException):
        pass
    try:
        return pa.array(values, pa.uint64())
    except (OverflowError, pa.ArrowException):
        texts = [value if isinstance(value, str | None) else json.dumps(value) for value in values]
        return pa.array(texts, pa.string())


def take_unsorted_rows(table: pa.Table, positions: NDArray[np.int64]) -> pa.Table:
    """Some rows of a table, in the order of `positions`."""
    if len(positions) <= PREVIEW_ROWS:
        return pa.concat_tables([table.slice(int(i), 1) for i in positions])
    return table.take(pa.array(positions))


def table_without_columns(rows: int) -> pa.Table:
    """A table of `rows` rows and no column that anyone asked for."""
    return pa.table({"": pa.nulls(rows)})
