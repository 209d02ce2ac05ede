"""Compute means of table rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray

    from embedcli.core.encoder import Tokens
    from embedcli.core.types import Float32Array, Int32Array, Int64Array

# Bytes of vectors gathered in one step, so that they stay in the second-level cache until they are added.
POOLING_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class MeanPooling:
    """The mean over the ids i of a row of `weights[i] * table[mapping[i]]`, summed in float32.

    `table` is float32 [n, dim]. Without `mapping` an id is its own table row; without `weights` each weight is 1.
    """

    table: Float32Array
    mapping: NDArray[Any] | None = None
    weights: Float32Array | None = None

    @property
    def dim(self) -> int:
        return int(self.table.shape[1])

    def mean_vectors(self, tokens: Tokens, rows: Int64Array) -> Float32Array:
        """Return the means, float32 [len(rows), dim] in the order of `rows`; zeros for a row without ids."""
        out = np.zeros((len(rows), self.dim), np.float32)
        starts, lengths = tokens.offsets[rows], tokens.lengths[rows]
        block = max(1, POOLING_BLOCK_BYTES // (4 * self.dim))
        buffer = np.empty((block, self.dim), np.float32)
        for length, some in _group_by_length(lengths):
            if length > block:
                for i in some:
                    out[i] = self._sum_long_row(tokens.ids[starts[i] : starts[i] + length], buffer)
                continue
            step, column = block // length, np.arange(length)
            for at in range(0, len(some), step):
                few = some[at : at + step]
                out[few] = self._sum_rows(tokens.ids[starts[few, None] + column], buffer)
        return np.divide(out, np.maximum(lengths, 1)[:, None], out=out, casting="same_kind")

    def _sum_rows(self, ids: Int32Array, buffer: Float32Array) -> Float32Array:
        """Sum over each row of `ids` [rows, length]."""
        flat = ids.ravel()
        gathered = buffer[: len(flat)]
        # Ids were checked when the table was loaded; mode="raise" would copy the output again.
        np.take(self.table, flat if self.mapping is None else self.mapping[flat], axis=0, out=gathered, mode="clip")
        if self.weights is not None:
            gathered *= self.weights[flat, None]
        made: Float32Array = gathered.reshape(*ids.shape, self.dim).sum(axis=1)
        return made

    def _sum_long_row(self, ids: Int32Array, buffer: Float32Array) -> Float32Array:
        """Sum a row that does not fit the buffer; blocks are added in float64, as there may be thousands."""
        total = np.zeros(self.dim, np.float64)
        for at in range(0, len(ids), len(buffer)):
            total += self._sum_rows(ids[None, at : at + len(buffer)], buffer)[0]
        return total.astype(np.float32)


def _group_by_length(lengths: Int64Array) -> Iterator[tuple[int, Int64Array]]:
    """Yield each length above 0 with the positions of its rows."""
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    firsts = np.flatnonzero(np.diff(ordered, prepend=-1))
    for some in np.split(order, firsts[1:]):
        if len(some) and lengths[some[0]]:
            yield int(lengths[some[0]]), some
