"""Read the rows of a Lance dataset in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.outputs import lance as lance_output
from embedcli.outputs.schema import decode_metadata
from embedcli.outputs.vector_columns import drop_column, find_vector_column, open_vector_column
from embedcli.outputs.vector_files import FIRST_ROWS, VectorsAndColumns, table_without_columns
from embedcli.outputs.vector_types import is_multi_vector_type


class LanceVectorFile:
    """A Lance dataset, batch by batch, in the order in which its rows were written."""

    def __init__(self, path: str, column: str | None = None) -> None:
        self.path = path
        self._data = lance_output.open_lance_dataset(path)
        schema = self._data.schema
        self.metadata: Mapping[str, Any] = decode_metadata(schema.metadata)
        name = find_vector_column(schema, path, column)
        kind = schema.field(name).type
        if pa.types.is_list(kind) and not is_multi_vector_type(kind):
            raise InputError(f"{storage.format_location(path)}: the vectors differ in length", "encode the rows again")
        chunks = (batch.column(0) for batch in self._data.to_batches(columns=[name], batch_size=FIRST_ROWS))
        self.column = open_vector_column(schema, self.metadata, path, chunks, name)
        self.schema = drop_column(schema, name)
        self.row_count = int(self._data.count_rows())

    @cached_property
    def bytes_per_row(self) -> float:
        """Bytes of the stored vectors of a row; of rows of different sizes the mean of the first ones."""
        first = self._data.head(FIRST_ROWS, columns=[self.column.name]).column(0).chunks
        return self.column.mean_bytes(first[0]) if first and len(first[0]) else 0.0

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        wanted = list(dict.fromkeys([*columns, self.column.name]))
        for batch in self._data.to_batches(columns=wanted, batch_size=size):
            whole = pa.Table.from_batches([batch])
            table = whole.select(list(columns)) if columns else table_without_columns(whole.num_rows)
            yield self.column.to_vectors(whole.column(self.column.name)), table

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        if not len(rows) or not columns:
            return table_without_columns(len(rows)) if not columns else self.schema.empty_table().select(list(columns))
        return self._data.take(sorted(int(row) for row in rows), columns=list(columns))
