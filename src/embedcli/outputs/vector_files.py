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
from embedcli.core.errors import InputError, UsageError
from embedcli.core.types import OutputFormat
from embedcli.outputs import writers
from embedcli.outputs.parquet_pages import Pages, readable

if TYPE_CHECKING:
    from numpy.typing import NDArray

VECTOR_NAMES = ("embedding", "embeddings", "vector")
MAGIC: tuple[tuple[bytes, OutputFormat], ...] = (
    (b"PAR1", "parquet"),
    (b"\x93NUMPY", "npy"),
    (b"ARROW1", "arrow"),
    (b"{", "jsonl"),
)
# Up to this many rows are picked one by one: `Table.take` first loads all of Arrow's functions, a tenth of a second.
FEW = 100
Slab = tuple["NDArray[Any]", pa.Table]


class Rows(Protocol):
    """The rows of one file. `schema` has every column but the vectors; `metadata` the file's own key-value pairs."""

    path: str
    width: int
    dtype: np.dtype[Any]
    schema: pa.Schema
    metadata: Mapping[str, Any]

    @property
    def count(self) -> int:
        """How many rows there are."""

    def blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[Slab]:
        """Yield all rows in order: stored vectors [n, width] and a table of `columns`, n <= size."""

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """The `columns` of some rows, in ascending order of `rows`."""


def kind_of(path: str) -> OutputFormat:
    """What a file of vectors is by its first bytes. UsageError if it is none."""
    with storage.open_input(path, look=True) as source:
        start = source.read()[:16] if source.codec is None else b""
    found = next((kind for magic, kind in MAGIC if start.startswith(magic)), None)
    if found is None and not start and lies_beside(path, writers.space_path(path)):
        return "jsonl"
    if found is None:
        raise UsageError(
            f"{storage.where(path)}: is not a file of vectors",
            "give an output of `embedcli encode`: Parquet, npy, Arrow or JSON lines",
        )
    return found


def lies_beside(path: str, companion: str) -> bool:
    """Whether a file's companion is there. A web address with a query has none: nobody knows the companion's query."""
    return storage.without_query(path) == path and storage.exists(companion)


def open_rows(path: str) -> Rows:
    """The rows of one file. UsageError if it holds no vectors, InputError if it is damaged."""
    kind = kind_of(path)
    readers: dict[OutputFormat, Callable[[str], Rows]] = {
        "parquet": ParquetRows,
        "npy": NpyRows,
        "arrow": ArrowRows,
        "jsonl": JsonlRows,
    }
    try:
        with storage.input_errors(path):
            return readers[kind](path)
    except (pa.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{storage.where(path)}: is damaged: {reason}", "make the output again") from error


def vector_column(schema: pa.Schema, path: str) -> str:
    """The name of the vector column: `embedding`, or another usual name, or the only list of numbers."""
    lists = [field.name for field in schema if is_vector(field.type)]
    found = next((name for name in VECTOR_NAMES if name in lists), lists[0] if len(lists) == 1 else None)
    if found is None:
        raise UsageError(
            f"{storage.where(path)}: has no column of vectors; its columns are {', '.join(schema.names)}",
            "give an output of `embedcli encode`",
        )
    return found


def is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists:
        return False
    value = kind.value_type
    return bool(pa.types.is_floating(value) or pa.types.is_int8(value) or pa.types.is_uint8(value))


def stored(column: pa.ChunkedArray, width: int, path: str) -> NDArray[Any]:
    """A list column as an array [n, width]. InputError if a list is missing or of another length."""
    arrays = [chunk.flatten() for chunk in column.chunks]
    flat = pa.concat_arrays(arrays) if arrays else pa.array([], column.type.value_type)
    if len(flat) != len(column) * width or flat.null_count or column.null_count:
        raise InputError(f"{storage.where(path)}: its vectors are not all of {width} numbers", "make the output again")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, width)


def without(schema: pa.Schema, name: str) -> pa.Schema:
    return pa.schema([field for field in schema if field.name != name])


def decoded(raw: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The key-value pairs that embedcli wrote, parsed."""
    return {key.decode(): json.loads(value) for key, value in (raw or {}).items() if key.startswith(b"embedcli")}


class ParquetRows:
    """A Parquet file, row group by row group."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = pq.ParquetFile(storage.open_seekable(path))
        schema = self._file.schema_arrow
        self.column = vector_column(schema, path)
        self.count = self._file.metadata.num_rows
        self.schema = without(schema, self.column)
        self.metadata: Mapping[str, Any] = decoded(schema.metadata)
        kind = schema.field(self.column).type
        self.dtype: np.dtype[Any] = np.dtype(kind.value_type.to_pandas_dtype())
        self.width = kind.list_size if pa.types.is_fixed_size_list(kind) else self._first_width()
        self._fixed = pa.types.is_fixed_size_list(kind)

    def blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[Slab]:
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            tables = self._tables(group, rows, columns, size)
            for vectors in self._vectors(group, rows, size, verify):
                table = next(tables)
                if len(vectors) != table.num_rows:
                    raise InputError(f"{storage.where(self.path)}: its columns differ in length", "make the file again")
                yield vectors, table

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        wanted, found, start = np.sort(np.asarray(rows, np.int64)), [], 0
        for group in range(self._file.num_row_groups):
            stop = start + self._file.metadata.row_group(group).num_rows
            here = wanted[(wanted >= start) & (wanted < stop)] - start
            if len(here):
                found.append(picked(self._file.read_row_group(group, columns=list(columns)), here))
            start = stop
        return pa.concat_tables(found) if found else self.schema.empty_table().select(list(columns))

    def _tables(self, group: int, rows: int, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
        if not columns:
            for start in range(0, rows, size):
                yield empty(min(size, rows - start))
            return
        for batch in self._file.iter_batches(size, row_groups=[group], columns=list(columns)):
            yield pa.Table.from_batches([batch]).select(list(columns))

    def _vectors(self, group: int, rows: int, size: int, verify: bool) -> Iterator[NDArray[Any]]:
        pages = self._pages(group, rows, verify)
        if pages is not None:
            yield from pages.blocks(size, self.width, self.dtype)
            return
        for batch in self._file.iter_batches(size, row_groups=[group], columns=[self.column]):
            yield stored(pa.chunked_array([batch.column(0)]), self.width, self.path)

    def _pages(self, group: int, rows: int, verify: bool) -> Pages | None:
        """The fast way to the vectors, where the file allows it."""
        leaf = next(i for i in range(len(self._file.schema)) if self._leaf(i).path.split(".")[0] == self.column)
        chunk = self._file.metadata.row_group(group).column(leaf)
        if not self._fixed or not readable(chunk, self._leaf(leaf), rows * self.width):
            return None
        pages = Pages(storage.open_seekable(self.path), self.path, chunk, verify=verify)
        return pages if pages.supported() else None

    def _leaf(self, i: int) -> pq.ColumnSchema:
        return self._file.schema.column(i)

    def _first_width(self) -> int:
        batch = next(self._file.iter_batches(1, columns=[self.column]), None)
        return len(batch.column(0)[0]) if batch is not None and batch.column(0)[0].is_valid else 0


class NpyRows:
    """`NAME.npy` and, where it is there, `NAME.ids.parquet` with all the other columns."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._vectors = np.load(storage.nearby(path), mmap_mode="r", allow_pickle=False)
        if self._vectors.ndim != 2:
            raise UsageError(
                f"{storage.where(path)}: holds an array of shape {self._vectors.shape}, not of rows",
                "give an array of two dimensions, a vector in each row",
            )
        self.count, self.width = self._vectors.shape
        self.dtype: np.dtype[Any] = self._vectors.dtype
        beside = writers.ids_path(path)
        self._ids = pq.ParquetFile(storage.open_seekable(beside)) if lies_beside(path, beside) else None
        self.schema = pa.schema([]) if self._ids is None else self._ids.schema_arrow.remove_metadata()
        self.metadata: Mapping[str, Any] = {} if self._ids is None else decoded(self._ids.schema_arrow.metadata)
        if self._ids is not None and self._ids.metadata.num_rows != self.count:
            raise InputError(
                f"{storage.where(path)}: has {self.count} rows, and {storage.where(beside)} "
                f"has {self._ids.metadata.num_rows}",
                "make the output again",
            )

    def blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[Slab]:
        tables = self._tables(columns, size)
        start = 0
        for table in tables:
            stop = start + table.num_rows
            yield np.array(self._vectors[start:stop]), table
            start = stop

    def _tables(self, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
        if not columns or self._ids is None:
            yield from (empty(min(size, self.count - start)) for start in range(0, self.count, size))
            return
        for batch in self._ids.iter_batches(size, columns=list(columns)):
            yield pa.Table.from_batches([batch]).select(list(columns))

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        if self._ids is None or not len(rows):
            return empty(len(rows))
        return picked(self._ids.read(columns=list(columns)), np.sort(np.asarray(rows, np.int64)))


class ArrowRows:
    """An Arrow IPC file, memory-mapped, batch by batch."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = pa.ipc.open_file(pa.memory_map(storage.nearby(path)))
        schema = self._file.schema
        self.column = vector_column(schema, path)
        self.schema = without(schema, self.column)
        self.metadata: Mapping[str, Any] = decoded(schema.metadata)
        kind = schema.field(self.column).type
        self.dtype: np.dtype[Any] = np.dtype(kind.value_type.to_pandas_dtype())
        self._counts = [self._file.get_batch(i).num_rows for i in range(self._file.num_record_batches)]
        self.count = sum(self._counts)
        self.width = kind.list_size if pa.types.is_fixed_size_list(kind) else self._first_width()

    def blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[Slab]:
        for i in range(self._file.num_record_batches):
            whole = pa.Table.from_batches([self._file.get_batch(i)])
            for start in range(0, whole.num_rows, size):
                piece = whole.slice(start, size)
                table = piece.select(list(columns)) if columns else empty(piece.num_rows)
                yield stored(piece.column(self.column), self.width, self.path), table

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        wanted, found, start = np.sort(np.asarray(rows, np.int64)), [], 0
        for i, count in enumerate(self._counts):
            here = wanted[(wanted >= start) & (wanted < start + count)] - start
            if len(here):
                batch = pa.Table.from_batches([self._file.get_batch(i)]).select(list(columns))
                found.append(picked(batch, here))
            start += count
        return pa.concat_tables(found) if found else self.schema.empty_table().select(list(columns))

    def _first_width(self) -> int:
        found = (self._file.get_batch(i).column(self.column) for i, count in enumerate(self._counts) if count)
        first = next(found, None)
        return 0 if first is None else len(first[0])


class JsonlRows:
    """JSON lines, each with a list of numbers, and `NAME.space.json` beside them where embedcli wrote them."""

    def __init__(self, path: str) -> None:
        self.path = path
        beside = writers.space_path(path)
        found = storage.read_bytes(beside) if lies_beside(path, beside) else b"{}"
        self.metadata: Mapping[str, Any] = json.loads(found)
        first = next(self._rows(), None) or {}
        self.column = next((name for name in VECTOR_NAMES if isinstance(first.get(name), list)), VECTOR_NAMES[0])
        if first and self.column not in first:
            raise UsageError(
                f"{storage.where(path)}: its rows hold no vectors; their fields are {', '.join(first)}",
                "give an output of `embedcli encode`",
            )
        self.width = len(first.get(self.column, ()))
        precision = str(self.metadata.get(writers.SPACE_KEY, {}).get("precision", "float32"))
        self.dtype = np.dtype({"binary": "int8", "ubinary": "uint8"}.get(precision, precision))
        self.schema = without(pa.Table.from_pylist([first]).schema, self.column)

    @cached_property
    def count(self) -> int:
        """How many rows there are; they are counted once."""
        with open(storage.nearby(self.path), "rb") as lines:
            return sum(1 for line in lines if line.strip())

    def blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[Slab]:
        rows = self._rows()
        while held := list(islice(rows, size)):
            table = self._table(held, columns) if columns else empty(len(held))
            yield self._vectors(held), table

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        wanted = set(rows)
        return self._table([row for i, row in enumerate(self._rows()) if i in wanted], columns)

    def _rows(self) -> Iterator[dict[str, Any]]:
        import orjson

        with open(storage.nearby(self.path), "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield orjson.loads(line)
                    except ValueError as error:
                        place = storage.where(self.path, number)
                        raise InputError(f"{place}: is not JSON: {error}", "make the output again") from None

    def _vectors(self, rows: list[dict[str, Any]]) -> NDArray[Any]:
        try:
            return np.array([row[self.column] for row in rows], self.dtype).reshape(len(rows), self.width)
        except (KeyError, ValueError, TypeError):
            message = f"{storage.where(self.path)}: its vectors are not all of {self.width} numbers"
            raise InputError(message, "make the output again") from None

    def _table(self, rows: list[dict[str, Any]], columns: Sequence[str]) -> pa.Table:
        return pa.table({name: column_of([row.get(name) for row in rows]) for name in columns})


def column_of(values: list[Any]) -> pa.Array:
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


def picked(table: pa.Table, positions: NDArray[np.int64]) -> pa.Table:
    """Some rows of a table, in the order of `positions`."""
    if len(positions) <= FEW:
        return pa.concat_tables([table.slice(int(i), 1) for i in positions])
    return table.take(pa.array(positions))


def empty(rows: int) -> pa.Table:
    """A table of `rows` rows and no column that anyone asked for."""
    return pa.table({"": pa.nulls(rows)})
