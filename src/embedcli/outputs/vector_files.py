"""One file of vectors, read in blocks: Parquet, npy with its ids, Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import storage
from embedcli.core.errors import InputError, UsageError, first_line
from embedcli.outputs import writers
from embedcli.outputs.parquet_pages import PageReader, can_read_pages
from embedcli.outputs.schema import decode_metadata
from embedcli.outputs.vector_columns import (
    DenseColumn,
    VectorColumn,
    drop_column,
    find_vector_column,
    no_such_column_error,
    open_vector_column,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.outputs.vector_columns import StoredVectors

# Up to this many rows are sliced one by one: the first `Table.take` loads Arrow's compute functions, 0.1 s.
PREVIEW_ROWS = 100
# Rows that are read to learn the width of a vector, or its mean size.
FIRST_ROWS = 100
VectorsAndColumns = tuple["StoredVectors", pa.Table]


class VectorFile(Protocol):
    """The rows of one file of vectors.

    Attributes:
        path: Path or URL of the file.
        column: The column of its vectors.
        schema: All columns but the vectors.
        metadata: Key-value pairs that embedcli wrote, parsed.
    """

    path: str
    column: VectorColumn
    schema: pa.Schema
    metadata: Mapping[str, Any]

    @property
    def row_count(self) -> int:
        """Number of rows."""

    @property
    def bytes_per_row(self) -> float:
        """Bytes of the stored vectors of a row; of rows of different sizes the mean, of all rows or the first ones."""

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        """Yield all rows in order: stored vectors of n rows and a table of `columns`, with n <= size.

        With `verify`, a page whose checksum differs raises an error, where the format has checksums.
        """

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Return the `columns` of some rows, in ascending order of `rows`."""


def companion_exists(path: str, companion: str) -> bool:
    """Whether the companion of a file exists. A URL with a query has none, because its query is for one file only."""
    return storage.strip_query(path) == path and storage.exists(companion)


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


class ParquetVectorFile:
    """A Parquet file, read row group by row group."""

    def __init__(self, path: str, column: str | None = None) -> None:
        self.path = path
        self._file = open_parquet_file(path)
        schema = self._file.schema_arrow
        self.row_count = self._file.metadata.num_rows
        self.metadata: Mapping[str, Any] = decode_metadata(schema.metadata)
        name = find_vector_column(schema, path, column)
        chunks = (batch.column(0) for batch in self._file.iter_batches(FIRST_ROWS, columns=[name]))
        self.column = open_vector_column(schema, self.metadata, path, chunks, name)
        self.schema = drop_column(schema, name)
        self._fixed = pa.types.is_fixed_size_list(schema.field(name).type)

    @cached_property
    def bytes_per_row(self) -> float:
        """Bytes of the stored vectors of a row; of rows of different sizes the mean of all."""
        if self.column.kind == "dense":
            return float(self.column.width * self.column.dtype.itemsize)
        leaf = self._vector_leaf()
        groups = [self._file.metadata.row_group(group) for group in range(self._file.num_row_groups)]
        entries: int = sum(group.column(leaf).num_values for group in groups)
        return float(entries * self.column.bytes_per_entry / max(1, self.row_count))

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

    def _vectors(self, file: pq.ParquetFile, group: int, size: int, verify: bool) -> Iterator[StoredVectors]:
        pages = self._pages(group, file.metadata.row_group(group).num_rows, verify)
        if pages is not None:
            yield from pages.read_blocks(size, self.column.width, self.column.dtype)
            return
        for batch in file.iter_batches(size, row_groups=[group], columns=[self.column.name]):
            yield self.column.to_vectors(pa.chunked_array([batch.column(0)]))

    def _pages(self, group: int, rows: int, verify: bool) -> PageReader | None:
        """A reader of the pages of the vector column (5 times as fast), or None if the file does not allow it."""
        leaf = self._vector_leaf()
        chunk = self._file.metadata.row_group(group).column(leaf)
        if not self._fixed or not can_read_pages(chunk, self._leaf(leaf), rows * self.column.width):
            return None
        pages = PageReader(storage.open_seekable(self.path), self.path, chunk, verify=verify)
        return pages if pages.is_supported() else None

    def _leaf(self, i: int) -> pq.ColumnSchema:
        return self._file.schema.column(i)

    def _vector_leaf(self) -> int:
        """Number of the vector column, or of its first field, among the columns that Parquet stores."""
        return next(i for i in range(len(self._file.schema)) if self._leaf(i).path.split(".")[0] == self.column.name)


class NpyVectorFile:
    """`NAME.npy`, one vector per row, and, if it exists, `NAME.ids.parquet` with the other columns."""

    def __init__(self, path: str, column: str | None = None) -> None:
        if column is not None:
            raise no_such_column_error(path, column, [])
        self.path = path
        self._vectors = np.load(storage.local_copy(path), mmap_mode="r", allow_pickle=False)
        if self._vectors.ndim != 2:
            raise UsageError(
                f"{storage.format_location(path)}: the array has shape {self._vectors.shape}, not [rows, dimensions]",
                "save an array of two dimensions, one vector per row",
            )
        self._ids = open_ids_file(path)
        self.schema = pa.schema([]) if self._ids is None else self._ids.schema_arrow.remove_metadata()
        self.metadata: Mapping[str, Any] = {} if self._ids is None else decode_metadata(self._ids.schema_arrow.metadata)
        self.column: VectorColumn = self._open_column()
        self.row_count = len(self._vectors) if self._ids is None else self._ids.metadata.num_rows
        self._check_row_count()

    def _open_column(self) -> VectorColumn:
        return DenseColumn("", self._vectors.dtype, self._vectors.shape[1], self.path)

    def _check_row_count(self) -> None:
        if self.row_count != len(self._vectors):
            raise InputError(
                f"{storage.format_location(self.path)}: has {len(self._vectors)} rows, and "
                f"{storage.format_location(writers.ids_path(self.path))} has {self.row_count}",
                "encode the rows again",
            )

    @property
    def bytes_per_row(self) -> float:
        """Bytes of the stored vectors of a row, on average."""
        return float(self._vectors.nbytes / max(1, self.row_count))

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


def open_ids_file(path: str) -> pq.ParquetFile | None:
    """Open the ids file of an .npy file; None if it has none."""
    beside = writers.ids_path(path)
    return open_parquet_file(beside) if companion_exists(path, beside) else None


class ArrowVectorFile:
    """An Arrow IPC file, memory-mapped and read batch by batch."""

    def __init__(self, path: str, column: str | None = None) -> None:
        self.path = path
        self._file = pa.ipc.open_file(pa.memory_map(storage.local_copy(path)))
        schema = self._file.schema
        self.metadata: Mapping[str, Any] = decode_metadata(schema.metadata)
        name = find_vector_column(schema, path, column)
        self.column = open_vector_column(schema, self.metadata, path, self._chunks(name), name)
        self.schema = drop_column(schema, name)
        self._counts = [self._file.get_batch(i).num_rows for i in range(self._file.num_record_batches)]
        self.row_count = sum(self._counts)

    @cached_property
    def bytes_per_row(self) -> float:
        """Bytes of the stored vectors of a row; of rows of different sizes the mean of the first batch."""
        first = next((chunk for chunk in self._chunks(self.column.name) if len(chunk)), None)
        return 0.0 if first is None else self.column.mean_bytes(first)

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        for i in range(self._file.num_record_batches):
            batch = pa.Table.from_batches([self._file.get_batch(i)])
            for start in range(0, batch.num_rows, size):
                block = batch.slice(start, size)
                table = block.select(list(columns)) if columns else table_without_columns(block.num_rows)
                yield self.column.to_vectors(block.column(self.column.name)), table

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        wanted, found, start = np.sort(np.asarray(rows, np.int64)), [], 0
        for i, count in enumerate(self._counts):
            here = wanted[(wanted >= start) & (wanted < start + count)] - start
            if len(here):
                batch = pa.Table.from_batches([self._file.get_batch(i)]).select(list(columns))
                found.append(take_unsorted_rows(batch, here))
            start += count
        return pa.concat_tables(found) if found else self.schema.empty_table().select(list(columns))

    def _chunks(self, name: str) -> Iterator[pa.Array]:
        return (self._file.get_batch(i).column(name) for i in range(self._file.num_record_batches))


def take_unsorted_rows(table: pa.Table, positions: NDArray[np.int64]) -> pa.Table:
    """Return some rows of a table, in the order of `positions`."""
    if len(positions) <= PREVIEW_ROWS:
        return pa.concat_tables([table.slice(int(i), 1) for i in positions])
    return table.take(pa.array(positions))


def table_without_columns(rows: int) -> pa.Table:
    """Return a table of `rows` rows whose only column is a placeholder."""
    return pa.table({"": pa.nulls(rows)})
