"""Write the vectors of tokens as one flat .npy matrix, beside a table that says which of them are a row's."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core import quantization
from embedcli.outputs import digests
from embedcli.outputs.schema import (
    ROW_GROUP_BYTES,
    OutputLayout,
    numpy_to_arrow,
    regroup_by_bytes,
    token_vectors_from_table,
)
from embedcli.outputs.writers import Metadata, check_row_count, ids_path, open_parquet_writer

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
    descr = np.dtype(quantization.STORAGE_DTYPES[layout.precision]).str
    header = {"descr": descr, "fortran_order": False, "shape": (token_count, layout.stored_width)}
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
