"""Take the rows of an output by id, in order as far as possible."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from embedcli.core.arrow_values import column_to_python
from embedcli.outputs.dataset import VectorDataset

if TYPE_CHECKING:
    from embedcli.outputs.vector_columns import StoredVectors

# How far from its place a row is looked for; so many rows are in memory twice at most.
MAX_DISTANCE = 10_000


@dataclass(frozen=True)
class StoredRow:
    """One row of the output: its position, id, text hash, window number and stored vectors, as those of one row."""

    position: int
    id: Any
    text_hash: bytes
    window: int
    vector: StoredVectors


class StoredRowCursor:
    """Takes the rows of an output by id, in order as far as possible.

    Args:
        output: The output.
        report_extra: Gets each row that no call has taken, once it is too far behind or at the end.
    """

    def __init__(self, output: VectorDataset, report_extra: Callable[[StoredRow], None]) -> None:
        self._rows = iterate_stored_rows(output)
        self._report_extra = report_extra
        self._ahead: deque[StoredRow] = deque()
        self._ids_ahead: Counter[Any] = Counter()
        self._passed: dict[Any, deque[list[StoredRow]]] = {}
        self._passed_count = 0

    def take_rows_of(self, id: Any) -> tuple[list[StoredRow], bool]:
        """Take the row with this id, with all its windows.

        Looks at the next row, then at those that were passed over, then up to MAX_DISTANCE rows ahead.

        Returns:
            The row's windows, none if it was not found, and whether the row is in its place.
        """
        self._read_ahead(1)
        if self._ahead and self._ahead[0].id == id:
            return self._take_next(), True
        if id in self._passed:
            return self._take_passed(id), False
        self._read_ahead(MAX_DISTANCE)
        if not self._ids_ahead[id]:
            return [], True
        while self._ahead[0].id != id:
            self._pass_over(self._take_next())
        return self._take_next(), True

    def finish(self) -> None:
        """Report the rows that no call has taken."""
        while self._passed:
            self._report_passed()
        for row in chain(self._ahead, self._rows):
            self._report_extra(row)

    def _read_ahead(self, count: int) -> None:
        """Have at least so many of the next rows in memory, if there are as many."""
        for row in islice(self._rows, max(0, count - len(self._ahead))):
            self._ahead.append(row)
            self._ids_ahead[row.id] += 1

    def _take_next(self) -> list[StoredRow]:
        """Take the next row with all its windows."""
        rows: list[StoredRow] = []
        while self._ahead and (
            not rows or (self._ahead[0].id == rows[0].id and self._ahead[0].window > rows[-1].window)
        ):
            rows.append(self._ahead.popleft())
            self._read_ahead(1)
        self._ids_ahead[rows[0].id] -= len(rows)
        return rows

    def _pass_over(self, rows: list[StoredRow]) -> None:
        self._passed.setdefault(rows[0].id, deque()).append(rows)
        self._passed_count += 1
        if self._passed_count > MAX_DISTANCE:
            self._report_passed()

    def _take_passed(self, id: Any) -> list[StoredRow]:
        groups = self._passed[id]
        rows = groups.popleft()
        self._passed_count -= 1
        if not groups:
            del self._passed[id]
        return rows

    def _report_passed(self) -> None:
        """Report the row that was passed over first."""
        for row in self._take_passed(next(iter(self._passed))):
            self._report_extra(row)


def iterate_stored_rows(output: VectorDataset) -> Iterator[StoredRow]:
    names = [name for name in (output.id_name, "text_hash", "window") if name and name in output.schema.names]
    for block in output.read_blocks(names, keep_damaged=True):
        ids = column_to_python(output.block_ids(block))
        hashes = block.columns.column("text_hash").to_pylist() if "text_hash" in names else [b""] * len(block)
        windows = block.columns.column("window").to_pylist() if "window" in names else [0] * len(block)
        for i, (id, digest, window) in enumerate(zip(ids, hashes, windows, strict=True)):
            raw = bytes.fromhex(digest) if isinstance(digest, str) else digest
            yield StoredRow(block.first_row + i, id, raw, window, block.vectors[i : i + 1])
