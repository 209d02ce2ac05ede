"""Vectors of tokens as one flat .npy matrix, beside a table that says which of them are a row's: written and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.outputs import digests
from embedcli.outputs.schema import (
    ROW_GROUP_BYTES,
    OutputLayout,
    decode_metadata,
    numpy_to_arrow,
    regroup_by_bytes,
    token_vectors_from_table,
)
from embedcli.outputs.vector_columns import MultiVectorColumn, VectorColumn, drop_column
from embedcli.outputs.vector_files import NpyVectorFile, VectorsAndColumns, open_ids_file, table_without_columns
from embedcli.outputs.writers import SPACE_METADATA_KEY, Metadata, check_row_count, ids_path, open_parquet_writer

# Of the ids file: the first vector of a row in the matrix, and how many it has.
START_FIELD = pa.field("start", pa.int64(), nullable=False)
LENGTH_FIELD = pa.field("length", pa.int32(), nullable=False)
PLACE_COLUMNS = (START_FIELD.name, LENGTH_FIELD.name)


def write_multi_vector_npy(
    tables: Iterable[pa.Table], target: str, layout: OutputLayout, metadata: Metadata, rows: int, token_count: int
) -> list[str]:
    """Write `NAME.npy` [tokens, width], memory-mappable, then `NAME.ids.parquet` with all else, `start` and `length`.

    Args:
        tables: Tables with the columns of `layout.schema()`, in output order.
        target: Path of the output.
        layout: Columns and number format of the vectors.
        metadata: Stored in the output.
        rows: Number of rows in `tables`.
        token_count: Number of their vectors.

    Returns:
        The paths of both files.
    """
    ids = ids_path(target)
    schema = _ids_schema(layout.schema())
    shape = (token_count, layout.first.stored_width)
    header = {"descr": layout.first.dtype.str, "fortran_order": False, "shape": shape}
    written = tokens = 0
    with storage.write_pair_atomically(target, ids) as files:
        vectors, others = map(digests.DigestWriter, files)
        np.lib.format.write_array_header_1_0(vectors, header)
        with open_parquet_writer(others, schema, metadata) as writer:
            for table in regroup_by_bytes(tables, ROW_GROUP_BYTES):
                offsets, stored = token_vectors_from_table(table)
                vectors.write(np.ascontiguousarray(stored).data)
                places = {
                    START_FIELD.name: numpy_to_arrow(offsets[:-1] + tokens),
                    LENGTH_FIELD.name: numpy_to_arrow(np.diff(offsets).astype(np.int32)),
                }
                columns = [places[name] if name in places else table.column(name) for name in schema.names]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
                written, tokens = written + table.num_rows, tokens + len(stored)
                del table, stored
            digests.hold_parquet_footer(writer, others, vectors.hexdigest())
        others.seal()
        check_row_count(written, rows, target)
        check_row_count(tokens, token_count, target)
    return [target, ids]


def _ids_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of an output with the places of the vectors instead of the vectors."""
    at = schema.get_field_index("embedding")
    return schema.set(at, START_FIELD).insert(at + 1, LENGTH_FIELD)


class MultiVectorNpyFile(NpyVectorFile):
    """`NAME.npy`, the vectors of all rows one after the other, and `NAME.ids.parquet`, which says which are a row's."""

    def __init__(self, path: str, column: str | None = None) -> None:
        super().__init__(path, column)
        for name in PLACE_COLUMNS:
            self.schema = drop_column(self.schema, name)

    def _open_column(self) -> VectorColumn:
        return MultiVectorColumn("", self._vectors.dtype, self._vectors.shape[1], self.path)

    def _check_row_count(self) -> None:
        """The places of the rows are checked while they are read."""

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        """Yield the vectors as views of the mapped file, so that rows of many vectors take no memory here."""
        end = 0
        for table in self._tables([*columns, *PLACE_COLUMNS], size, verify):
            starts, lengths = (table.column(name) for name in PLACE_COLUMNS)
            offsets = end + offsets_of(lengths.fill_null(-1).to_numpy())
            is_ascending = len(offsets) < 2 or int(np.diff(offsets).min()) >= 0
            if not (is_ascending and np.array_equal(starts.fill_null(-1).to_numpy(), offsets[:-1])):
                raise self._place_error("says that a row's vectors do not begin where those of the row before it end")
            if offsets[-1] > len(self._vectors):
                raise self._place_error(f"needs more than the {len(self._vectors):,} vectors of this file")
            others = table.select(list(columns)) if columns else table_without_columns(table.num_rows)
            yield MultiVectors(offsets - end, np.asarray(self._vectors[end : offsets[-1]])), others
            end = int(offsets[-1])
        if end != len(self._vectors):
            raise self._place_error(f"knows the rows of {end:,} of the {len(self._vectors):,} vectors of this file")

    def _place_error(self, problem: str) -> InputError:
        ids = storage.format_location(ids_path(self.path))
        return InputError(f"{storage.format_location(self.path)}: {ids} {problem}", "encode the rows again")


def open_npy_file(path: str, column: str | None = None) -> NpyVectorFile:
    """Open an .npy file, whose metadata say whether its vectors are those of rows or of their tokens.

    Raises:
        UsageError: A column is asked for by name: the vectors of the file have none.
    """
    ids = open_ids_file(path)
    vector_space = {} if ids is None else decode_metadata(ids.schema_arrow.metadata).get(SPACE_METADATA_KEY, {})
    return (MultiVectorNpyFile if vector_space.get("kind") == "multi_vector" else NpyVectorFile)(path, column)
