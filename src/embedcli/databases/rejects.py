"""Rows of an output that a database cannot hold: find them, and list them beside the output."""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedcli import storage
from embedcli.checkpoint.part_files import reject_to_json_line
from embedcli.checkpoint.rejects import RejectCounter
from embedcli.core.arrow_values import column_to_python
from embedcli.core.ragged import RaggedRows, offsets_of
from embedcli.core.types import Reject
from embedcli.databases.columns import combine_chunks
from embedcli.databases.target import JSON_FIELD, VECTOR_COLUMN

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray, RejectSummary
    from embedcli.databases.address import TargetAddress
    from embedcli.databases.rows import RowBatch
    from embedcli.databases.target import DatabaseTarget, TableLayout

DUPLICATE_REASON = "id appears twice in the output"
MISSING_ID_REASON = "id is missing"
EMPTY_ID_REASON = "id is empty"
LONG_ID_REASON = "id is too long for the database"
NUL_REASON = "text has a NUL character, which the database cannot store"
REPEATED_KEY_REASON = "map has a key twice, which the database cannot store"
LARGE_ROW_REASON = "row is too large for the database"
NOT_FINITE_REASON = "vector is not finite"
NO_VECTORS_REASON = "row has no vectors"


def load_rejects_path(output: str, address: TargetAddress) -> str:
    """Return the path of the rejects of the last load of an output into a table: each table has a file of its own."""
    name = f"load-rejects-{address.scheme}-{address.table}-{address.digest}.jsonl"
    return storage.join(output, f"_{name}") if storage.is_folder(output) else f"{output}.{name}"


class LoadRejects:
    """The rejects of a load. Use it as a context manager: the lines wait in a temporary file until `publish`.

    Args:
        output: The output.
        address: The table.
    """

    def __init__(self, output: str, address: TargetAddress) -> None:
        self._output = output
        self.path = load_rejects_path(output, address)
        self._lines = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._counter = RejectCounter()
        self.count = 0

    def add(self, batch: RowBatch, row: int, reason: str, key: str) -> None:
        """Add the row of a batch with this number."""
        id = batch.table.column(key)[row].as_py()
        reject = Reject(storage.format_path(self._output), int(batch.positions[row]) + 1, reason, id)
        self._lines.write(reject_to_json_line(reject))
        self._counter.add(reject)
        self.count += 1

    def clear(self) -> None:
        """Forget the rejects: the output is read again from its beginning."""
        self._lines.seek(0)
        self._lines.truncate()
        self._counter = RejectCounter()
        self.count = 0

    def publish(self) -> RejectSummary | None:
        """Write the rejects file, or remove that of an earlier load if there are none. Returns the counts."""
        if not self.count:
            if storage.exists(self.path):
                storage.remove(self.path)
            return None
        self._lines.seek(0)
        with storage.write_atomically(self.path) as out:
            shutil.copyfileobj(self._lines, out)
        return self._counter.summary(self.path)

    def __enter__(self) -> LoadRejects:
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()


def find_bad_rows(batch: RowBatch, layout: TableLayout, target: DatabaseTarget) -> dict[int, str]:
    """Find the rows that the database cannot hold: reasons by number of row, the first reason of each."""
    table = batch.table
    found: dict[int, str] = {}

    def add(mask: BoolArray, reason: str) -> None:
        for row in np.flatnonzero(mask):
            found.setdefault(int(row), reason)

    ids = combine_chunks(table.column(layout.key[0]))
    add(as_mask(ids.is_null()), MISSING_ID_REASON)
    if not target.stores_empty_ids and pa.types.is_string(ids.type):
        add(as_mask(pc.equal(ids, "")), EMPTY_ID_REASON)
    if target.longest_id_bytes is not None and pa.types.is_string(ids.type):
        add(as_mask(pc.greater(pc.binary_length(ids), target.longest_id_bytes)), LONG_ID_REASON)
    vectors = combine_chunks(table.column(VECTOR_COLUMN))
    if layout.kind == "multi_vector":
        add(as_mask(pc.equal(pc.list_value_length(vectors), 0)), NO_VECTORS_REASON)
    add(~find_finite(vectors), NOT_FINITE_REASON)
    if not target.stores_nul:
        for field in layout.schema:
            if pa.types.is_string(field.type):
                # JSON text has the character as an escape.
                nul = "\\u0000" if field.metadata == JSON_FIELD else "\0"
                add(as_mask(pc.match_substring(table.column(field.name), nul)), NUL_REASON)
    if not target.stores_repeated_map_keys:
        add(find_repeated_keys(table), REPEATED_KEY_REASON)
    add(find_larger(table, target.largest_row_bytes), LARGE_ROW_REASON)
    add(find_larger(table.drop_columns(VECTOR_COLUMN), target.largest_payload_bytes), LARGE_ROW_REASON)
    return found


def find_larger(table: pa.Table, limit: int | None) -> BoolArray:
    """Whether each row has more bytes than a limit: bool [n]."""
    if limit is None or table.nbytes <= limit:
        return np.zeros(table.num_rows, bool)
    return np.array([table.slice(row, 1).nbytes for row in range(table.num_rows)]) > limit


def find_repeated_keys(table: pa.Table) -> BoolArray:
    """Whether a map of each row has a key twice: bool [n]."""
    found = np.zeros(table.num_rows, bool)
    for column in table.columns:
        if pa.types.is_map(column.type):
            keys = ([key for key, _ in pairs or ()] for pairs in column_to_python(column))
            found |= np.fromiter((len(set(row)) < len(row) for row in keys), bool, table.num_rows)
    return found


def as_mask(column: Any) -> BoolArray:
    """Convert a column of booleans to bool [n], with False for null."""
    array = combine_chunks(column)
    return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False), bool)


def find_finite(vectors: pa.Array) -> BoolArray:
    """Whether all numbers of each row's vectors are finite: bool [n]."""
    lists = vectors.field("values") if pa.types.is_struct(vectors.type) else vectors
    if pa.types.is_list(lists.type):
        entries = RaggedRows(offsets_of(lists.value_lengths().to_numpy()))
        return ~entries.find_rows_with(~are_finite(lists.flatten()))
    return are_finite(lists)


def are_finite(values: pa.Array) -> BoolArray:
    """Whether numbers, or all numbers of vectors of one width, are finite: bool [n]."""
    width = values.type.list_size if pa.types.is_fixed_size_list(values.type) else None
    numbers = (values if width is None else values.flatten()).to_numpy(zero_copy_only=False)
    if not np.issubdtype(numbers.dtype, np.floating):
        return np.ones(len(values), bool)
    return np.asarray(np.isfinite(numbers).reshape(len(values), width or 1).all(axis=1))
