"""One file of vectors, read in blocks: Parquet, npy with its ids, Arrow, JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from embedcli.outputs.schema import decode_metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

VECTOR_COLUMN_NAMES = ("embedding", "embeddings", "vector")
FORMATS_BY_MAGIC: tuple[tuple[bytes, OutputFormat], ...] = (
    (b"PAR1", "parquet"),
    (b"\x93NUMPY", "npy"),
    (b"ARROW1", "arrow"),
    (b"{", "jsonl"),
)
# Up to this many rows are sliced one by one: the first `Table.take` loads Arrow's compute functions, 0.1 s.
PREVIEW_ROWS = 100
VectorsAndColumns = tuple["NDArray[Any]", pa.Table]


class VectorFile(Protocol):
    """The rows of one file of vectors.

    Attributes:
        path: Path or URL of the file.
        stored_width: Numbers per stored vector.
        dtype: Dtype of the stored vectors.
        schema: All columns but the vectors.
        metadata: Key-value pairs that embedcli wrote, parsed.
    """

    path: str
    stored_width: int
    dtype: np.dtype[Any]
    schema: pa.Schema
    metadata: Mapping[str, Any]

    @property
    def row_count(self) -> int:
        """Number of rows."""

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        """Yield all rows in order: stored vectors [n, width] and a table of `columns`, with n <= size.

        With `verify`, a page whose checksum differs raises an error, where the format has checksums.
        """

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Return the `columns` of some rows, in ascending order of `rows`."""


def detect_format(path: str) -> OutputFormat:
    """Detect the format of a file of vectors from its first bytes. Raises UsageError if it is not one."""
    with storage.open_input(path, preview=True) as source:
        start = source.read()[:16] if source.codec is None else b""
    found = next((kind for magic, kind in FORMATS_BY_MAGIC if start.startswith(magic)), None)
    if found is None and not start and companion_exists(path, writers.space_path(path)):
        return "jsonl"
    if found is None:
        raise UsageError(
            f"{storage.format_location(path)}: not a file of vectors",
            "name an output of `embedcli encode`: Parquet, .npy, Arrow or JSONL",
        )
    return found


def companion_exists(path: str, companion: str) -> bool:
    """Whether the companion of a file exists. A URL with a query has none, because its query is for one file only."""
    return storage.strip_query(path) == path and storage.exists(companion)


def open_vector_file(path: str) -> VectorFile:
    """Open a file of vectors. Raises UsageError if it holds no vectors, InputError if it is damaged."""
    kind = detect_format(path)
    readers: dict[OutputFormat, Callable[[str], VectorFile]] = {
        "parquet": ParquetVectorFile,
        "npy": NpyVectorFile,
        "arrow": ArrowVectorFile,
        "jsonl": JsonlVectorFile,
    }
    with translate_read_errors(path):
        return readers[kind](path)


@contextmanager
def translate_read_errors(path: str) -> Iterator[None]:
    """Raise InputError with the path if a file of vectors is damaged or the system refuses to read it."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        # An OSError without a number is Arrow's own: a page with a wrong checksum.
        if isinstance(error, OSError) and error.errno is not None:
            with storage.translate_input_errors(path):
                raise
        damage = f"{storage.format_location(path)}: the file is damaged: {first_line(error)}"
        raise InputError(damage, "encode the rows again") from error


def open_parquet_file(path: str, *, verify: bool = False) -> pq.ParquetFile:
    """Open a Parquet file; with `verify`, reading a damaged page is an error."""
    return pq.ParquetFile(storage.open_seekable(path), page_checksum_verification=verify)


def find_vector_column(schema: pa.Schema, path: str) -> str:
    """Find the vector column: `embedding`, another usual name, or the only list of numbers."""
    lists = [field.name for field in schema if is_vector_type(field.type)]
    found = next((name for name in VECTOR_COLUMN_NAMES if name in lists), lists[0] if len(lists) == 1 else None)
    if found is None:
        raise UsageError(
            f"{storage.format_location(path)}: has no column of vectors; its columns are {', '.join(schema.names)}",
            "name an output of `embedcli encode`",
        )
    return found


def is_vector_type(kind: pa.DataType) -> bool:
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists:
        return False
    value = kind.value_type
    return bool(pa.types.is_floating(value) or pa.types.is_int8(value) or pa.types.is_uint8(value))


def list_column_to_array(column: pa.ChunkedArray, width: int, path: str) -> NDArray[Any]:
    """Convert a list column to an array [n, width]. Raises InputError if a list is null or has another length."""
    arrays = [chunk.flatten() for chunk in column.chunks]
    flat = pa.concat_arrays(arrays) if arrays else pa.array([], column.type.value_type)
    if len(flat) != len(column) * width or flat.null_count or column.null_count:
        raise InputError(
            f"{storage.format_location(path)}: not all vectors have {width} numbers", "encode the rows again"
        )
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, width)


def drop_column(schema: pa.Schema, name: str) -> pa.Schema:
    return pa.schema([field for field in schema if field.name != name])


class ParquetVectorFile:
    """A Parquet file, read row group by row group."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open_parquet_file(path)
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
        file = open_parquet_file(self.path, verify=True) if verify else self._file
        for group in range(file.num_row_groups):
            tables = self._tables(file, group, columns, size)
            for vectors in self._vectors(file, group, size, verify):
                table = next(tables)
                if len(vectors) != table.num_rows:
                    raise InputError(
                        f"{storage.format_location(self.path)}: its columns differ in length", "encode the rows again"
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

    def _tables(self, file: pq.ParquetFile, group: int, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
        if not columns:
            rows = file.metadata.row_group(group).num_rows
            for start in range(0, rows, size):
                yield table_without_columns(min(size, rows - start))
            return
        for batch in file.iter_batches(size, row_groups=[group], columns=list(columns)):
            yield pa.Table.from_batches([batch]).select(list(columns))

    def _vectors(self, file: pq.ParquetFile, group: int, size: int, verify: bool) -> Iterator[NDArray[Any]]:
        pages = self._pages(group, file.metadata.row_group(group).num_rows, verify)
        if pages is not None:
            yield from pages.read_blocks(size, self.stored_width, self.dtype)
            return
        for batch in file.iter_batches(size, row_groups=[group], columns=[self.column]):
            yield list_column_to_array(pa.chunked_array([batch.column(0)]), self.stored_width, self.path)

    def _pages(self, group: int, rows: int, verify: bool) -> PageReader | None:
        """A reader of the pages of the vector column (5 times as fast), or None if the file does not allow it."""
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
    """`NAME.npy` and, if it exists, `NAME.ids.parquet` with the other columns."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._vectors = np.load(storage.local_copy(path), mmap_mode="r", allow_pickle=False)
        if self._vectors.ndim != 2:
            raise UsageError(
                f"{storage.format_location(path)}: the array has shape {self._vectors.shape}, not [rows, dimensions]",
                "save an array of two dimensions, one vector per row",
            )
        self.row_count, self.stored_width = self._vectors.shape
        self.dtype: np.dtype[Any] = self._vectors.dtype
        beside = writers.ids_path(path)
        self._ids = open_parquet_file(beside) if companion_exists(path, beside) else None
        self.schema = pa.schema([]) if self._ids is None else self._ids.schema_arrow.remove_metadata()
        self.metadata: Mapping[str, Any] = {} if self._ids is None else decode_metadata(self._ids.schema_arrow.metadata)
        if self._ids is not None and self._ids.metadata.num_rows != self.row_count:
            raise InputError(
                f"{storage.format_location(path)}: has {self.row_count} rows, and {storage.format_location(beside)} "
                f"has {self._ids.metadata.num_rows}",
                "encode the rows again",
            )

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        start = 0
        for table in self._tables(columns, size, verify):
            stop = start + table.num_rows
            yield np.array(self._vectors[start:stop]), table
            start = stop

    def _tables(self, columns: Sequence[str], size: int, verify: bool) -> Iterator[pa.Table]:
        if not columns or self._ids is None:
            yield from (
                table_without_columns(min(size, self.row_count - start)) for start in range(0, self.row_count, size)
            )
            return
        path = writers.ids_path(self.path)
        ids = open_parquet_file(path, verify=True) if verify else self._ids
        with translate_read_errors(path):
            for batch in ids.iter_batches(size, columns=list(columns)):
                yield pa.Table.from_batches([batch]).select(list(columns))

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        if self._ids is None or not len(rows):
            return table_without_columns(len(rows))
        return take_unsorted_rows(self._ids.read(columns=list(columns)), np.sort(np.asarray(rows, np.int64)))


class ArrowVectorFile:
    """An Arrow IPC file, memory-mapped and read batch by batch."""

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
            batch = pa.Table.from_batches([self._file.get_batch(i)])
            for start in range(0, batch.num_rows, size):
                block = batch.slice(start, size)
                table = block.select(list(columns)) if columns else table_without_columns(block.num_rows)
                yield list_column_to_array(block.column(self.column), self.stored_width, self.path), table

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
    """JSON lines, each with a list of numbers, and `NAME.space.json` with the metadata if embedcli wrote them."""

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
                f"{storage.format_location(path)}: the rows hold no vectors; their fields are {', '.join(first)}",
                "name an output of `embedcli encode`",
            )
        self.stored_width = len(first.get(self.column, ()))
        precision = str(self.metadata.get(writers.SPACE_METADATA_KEY, {}).get("precision", "float32"))
        self.dtype = np.dtype({"binary": "int8", "ubinary": "uint8"}.get(precision, precision))
        self.schema = drop_column(pa.Table.from_pylist([first]).schema, self.column)

    @cached_property
    def row_count(self) -> int:
        """Number of rows, counted once by reading the file."""
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
                        raise InputError(f"{place}: not JSON: {error}", "encode the rows again") from None

    def _vectors(self, rows: list[dict[str, Any]]) -> NDArray[Any]:
        try:
            return np.array([row[self.column] for row in rows], self.dtype).reshape(len(rows), self.stored_width)
        except (KeyError, ValueError, TypeError):
            message = f"{storage.format_location(self.path)}: not all vectors have {self.stored_width} numbers"
            raise InputError(message, "encode the rows again") from None

    def _table(self, rows: list[dict[str, Any]], columns: Sequence[str]) -> pa.Table:
        return pa.table({name: json_values_to_column([row.get(name) for row in rows]) for name in columns})


def json_values_to_column(values: list[Any]) -> pa.Array:
    """Convert JSON values to a column of their common type, or of JSON texts if they have none."""
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
    """Return some rows of a table, in the order of `positions`."""
    if len(positions) <= PREVIEW_ROWS:
        return pa.concat_tables([table.slice(int(i), 1) for i in positions])
    return table.take(pa.array(positions))


def table_without_columns(rows: int) -> pa.Table:
    """Return a table of `rows` rows whose only column is a placeholder."""
    return pa.table({"": pa.nulls(rows)})
