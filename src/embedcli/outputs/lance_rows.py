"""Read the rows of a Lance dataset in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import InputError
from embedcli.outputs import lance as lance_output
from embedcli.outputs.schema import decode_metadata
from embedcli.outputs.vector_files import (
    VectorsAndColumns,
    drop_column,
    find_vector_column,
    list_column_to_array,
    table_without_columns,
)


class LanceVectorFile:
    """A Lance dataset, batch by batch, in the order in which its rows were written."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._data = lance_output.open_lance_dataset(path)
        schema = self._data.schema
        self.column = find_vector_column(schema, path)
        self.schema = drop_column(schema, self.column)
        self.metadata: Mapping[str, Any] = decode_metadata(schema.metadata)
        kind = schema.field(self.column).type
        if not pa.types.is_fixed_size_list(kind):
            raise InputError(f"{storage.format_location(path)}: the vectors differ in length", "encode the rows again")
        self.dtype: np.dtype[Any] = np.dtype(kind.value_type.to_pandas_dtype())
        self.stored_width = int(kind.list_size)
        self.row_count = int(self._data.count_rows())

    def read_blocks(self, columns: Sequence[str], size: int, *, verify: bool = False) -> Iterator[VectorsAndColumns]:
        wanted = list(dict.fromkeys([*columns, self.column]))
        for batch in self._data.to_batches(columns=wanted, batch_size=size):
            whole = pa.Table.from_batches([batch])
            table = whole.select(list(columns)) if columns else table_without_columns(whole.num_rows)
            yield list_column_to_array(whole.column(self.column), self.stored_width, self.path), table

    def take_rows(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        if not len(rows) or not columns:
            return table_without_columns(len(rows)) if not columns else self.schema.empty_table().select(list(columns))
        return self._data.take(sorted(int(row) for row in rows), columns=list(columns))
