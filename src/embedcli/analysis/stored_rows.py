"""Take the rows of an output by id, in order as far as possible."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from embedcli.core.arrow_values import column_to_python
from embedcli.outputs.dataset import VectorDataset

if TYPE_CHECKING:
    from embedcli.outputs.vector_columns import StoredVectors

# How far from its place a row is looked for. Up to twice as many rows are in memory, which matters for those with a
# vector for each token: 150 kB for 300 of 128 dimensions.
MAX_DISTANCE = 1_000
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
    """Takes the rows of an output by id and text, in order as far as possible.

    Args:
        output: The output.
        report_extra: Gets each row that no call has taken, once it is too far behind or at the end.
    """

    def __init__(self, output: VectorDataset, report_extra: Callable[[StoredRow], None]) -> None:
        self._rows = iterate_rows_with_windows(output)
        self._report_extra = report_extra
        self._ahead: deque[list[StoredRow]] = deque()
        self._keys_ahead: Counter[RowKey] = Counter()
        self._passed: dict[RowKey, deque[list[StoredRow]]] = {}
        self._passed_count = 0

    def take_row(self, id: Any, text_hash: bytes) -> tuple[list[StoredRow], bool]:
        """Take the row with this id and text, with all its windows.

        Looks at the next row, then at those that were passed over, then up to MAX_DISTANCE rows ahead, but not if the
        next row has the id. Ids may repeat, and rows that the encoder rejected are in no output: an id alone does not
        say that a row has moved.

        Returns:
            The row's windows, none if it was not found, and whether the row is in its place.
        """
        key = (id, text_hash)
        self._read_ahead(1)
        has_id = bool(self._ahead) and self._ahead[0][0].id == id
        if has_id and self._ahead[0][0].text_hash == text_hash:
            return self._take_next(), True
        if key in self._passed:
            return self._take_passed(key), False
        if not has_id:
            self._read_ahead(MAX_DISTANCE)
        if key in self._keys_ahead:
            while self._ahead[0][0].key != key:
                self._pass_over(self._take_next())
            return self._take_next(), True
        return [], True

    def take_next_row(self, id: Any) -> list[StoredRow]:
        """Take the next row, with all its windows, if it has this id, whatever its text; none otherwise."""
        self._read_ahead(1)
        return self._take_next() if self._ahead and self._ahead[0][0].id == id else []

    def finish(self) -> None:
        """Report the rows that no call has taken."""
        while self._passed:
            self._report_passed()
        for rows in chain(self._ahead, self._rows):
            self._report(rows)

    def _read_ahead(self, count: int) -> None:
        """Have at least so many of the next rows in memory, if there are as many."""
        for rows in islice(self._rows, max(0, count - len(self._ahead))):
            self._ahead.append(rows)
            self._keys_ahead[rows[0].key] += 1

    def _take_next(self) -> list[StoredRow]:
        rows = self._ahead.popleft()
        key = rows[0].key
        self._keys_ahead[key] -= 1
        if not self._keys_ahead[key]:
            del self._keys_ahead[key]
        return rows

    def _pass_over(self, rows: list[StoredRow]) -> None:
        # Copies of the vectors, because views would keep the blocks in memory that they are from.
        copies = [replace(row, vector=row.vector[[0]]) for row in rows]
        self._passed.setdefault(rows[0].key, deque()).append(copies)
        self._passed_count += 1
        if self._passed_count > MAX_DISTANCE:
            self._report_passed()

    def _take_passed(self, key: RowKey) -> list[StoredRow]:
        passed = self._passed[key]
        rows = passed.popleft()
        self._passed_count -= 1
        if not passed:
            del self._passed[key]
        return rows

    def _report_passed(self) -> None:
        """Report one of the rows whose key was passed over first."""
        self._report(self._take_passed(next(iter(self._passed))))

    def _report(self, rows: list[StoredRow]) -> None:
        for row in rows:
            self._report_extra(row)


def iterate_rows_with_windows(output: VectorDataset) -> Iterator[list[StoredRow]]:
    """Yield each row of the input as the rows of its windows, in order."""
    windows: list[StoredRow] = []
    for row in iterate_stored_rows(output):
        if windows and (row.id != windows[0].id or row.window <= windows[-1].window):
            yield windows
            windows = []
        windows.append(row)
    if windows:
        yield windows


def iterate_stored_rows(output: VectorDataset) -> Iterator[StoredRow]:
    names = [name for name in (output.id_name, "text_hash", "window") if name and name in output.schema.names]
    for block in output.read_blocks(names, keep_damaged=True):
        ids = column_to_python(output.block_ids(block))
        hashes = block.columns.column("text_hash").to_pylist() if "text_hash" in names else [b""] * len(block)
        windows = block.columns.column("window").to_pylist() if "window" in names else [0] * len(block)
        for i, (id, digest, window) in enumerate(zip(ids, hashes, windows, strict=True)):
            raw = bytes.fromhex(digest) if isinstance(digest, str) else digest
            yield StoredRow(block.first_row + i, id, raw, window, block.vectors[i : i + 1])
