"""Read the rows of an output in order, by id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedcli.core.arrow_values import column_to_python
from embedcli.outputs.dataset import VectorDataset

if TYPE_CHECKING:
    from embedcli.outputs.vector_columns import StoredVectors


@dataclass(frozen=True)
class StoredRow:
    """One row of the output: its position, id, text hash, window number and stored vectors, as those of one row."""

    position: int
    id: Any
    text_hash: bytes
    window: int
    vector: StoredVectors


class StoredRowCursor:
    """Reads the rows of an output in order, by id."""

    def __init__(self, output: VectorDataset) -> None:
        self._rows = iterate_stored_rows(output)
        self._next = next(self._rows, None)

    def take_rows_of(self, id: Any) -> list[StoredRow]:
        """Return the next row with all its windows if it has this id; otherwise an empty list, without advancing."""
        rows: list[StoredRow] = []
        while self._next is not None and self._next.id == id and (not rows or self._next.window > rows[-1].window):
            rows.append(self._next)
            self._next = next(self._rows, None)
        return rows

    def remaining_rows(self) -> Iterator[StoredRow]:
        """Yield the rows that no call has taken."""
        if self._next is not None:
            yield self._next
        yield from self._rows


def iterate_stored_rows(output: VectorDataset) -> Iterator[StoredRow]:
    names = [name for name in (output.id_name, "text_hash", "window") if name and name in output.schema.names]
    for block in output.read_blocks(names):
        ids = column_to_python(output.block_ids(block))
        hashes = block.columns.column("text_hash").to_pylist() if "text_hash" in names else [b""] * len(block)
        windows = block.columns.column("window").to_pylist() if "window" in names else [0] * len(block)
        for i, (id, digest, window) in enumerate(zip(ids, hashes, windows, strict=True)):
            raw = bytes.fromhex(digest) if isinstance(digest, str) else digest
            yield StoredRow(block.first_row + i, id, raw, window, block.vectors[i : i + 1])
