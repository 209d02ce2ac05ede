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
RowKey = tuple[Any, bytes]


@dataclass(frozen=True)
class StoredRow:
    """One row of the output: its position, id, text hash, window number and stored vectors, as those of one row."""

    position: int
    id: Any
    text_hash: bytes
    window: int
    vector: StoredVectors

    @property
    def key(self) -> RowKey:
        """Id and text hash."""
        return self.id, self.text_hash


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
        self._keys_ahead: Counter[RowKey] = Counter()
        self._passed: dict[RowKey, deque[list[StoredRow]]] = {}
        self._passed_count = 0

    def take_row(self, id: Any, text_hash: bytes) -> tuple[list[StoredRow], bool]:
        """Take the row with this id and text, with all its windows; or else the next row, if it has this id.

        Looks at the next row, then at those that were passed over, then up to MAX_DISTANCE rows ahead. Ids may repeat,
        and rows that the encoder rejected are in no output: an id alone does not say that a row has moved.

        Returns:
            The row's windows, none if it was not found, and whether the row is in its place.
        """
        key = (id, text_hash)
        self._read_ahead(1)
        if self._ahead and self._ahead[0].key == key:
            return self._take_next(), True
        if key in self._passed:
            return self._take_passed(key), False
        if not self._ahead or self._ahead[0].id != id:
            self._read_ahead(MAX_DISTANCE)
        if self._keys_ahead[key]:
            while self._ahead[0].key != key:
                self._pass_over(self._take_next())
            return self._take_next(), True
        return (self._take_next() if self._ahead and self._ahead[0].id == id else []), True

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
            self._keys_ahead[row.key] += 1

    def _take_next(self) -> list[StoredRow]:
        """Take the next row with all its windows."""
        rows: list[StoredRow] = []
        while self._ahead and (
            not rows or (self._ahead[0].id == rows[0].id and self._ahead[0].window > rows[-1].window)
        ):
            rows.append(self._ahead.popleft())
            self._read_ahead(1)
        self._keys_ahead.subtract(row.key for row in rows)
        return rows

    def _pass_over(self, rows: list[StoredRow]) -> None:
        self._passed.setdefault(rows[0].key, deque()).append(rows)
        self._passed_count += 1
        if self._passed_count > MAX_DISTANCE:
            self._report_passed()

    def _take_passed(self, key: RowKey) -> list[StoredRow]:
        groups = self._passed[key]
        rows = groups.popleft()
        self._passed_count -= 1
        if not groups:
            del self._passed[key]
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
