"""An output as it would be in another precision or with fewer dimensions, without encoding its rows again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core import quantization as precisions
from embedcli.core.errors import UsageError
from embedcli.outputs.dataset import Block, Output

if TYPE_CHECKING:
    from embedcli.core.types import Floats, Precision


class Derived(Output):
    """The rows of `source` with its vectors cut to `dim` numbers and renormalised, then stored as `stored_as`.

    The ranges of int8 and uint8 are those of all rows. UsageError if the source has fewer dimensions.
    """

    def __init__(self, source: Output, stored_as: Precision | None = None, dim: int | None = None) -> None:
        if dim is not None and not 1 <= dim <= source.dim:
            raise UsageError(
                f"{source.path} has {source.dim} dimensions, and cannot be cut to {dim}", "give a smaller number"
            )
        self._source = source
        kind: Precision = stored_as or source.precision
        space = {**source.space, "precision": kind, "dim": dim or source.dim, "truncate_dim": dim}
        super().__init__(named(source.path, stored_as, dim), source.parts, {"embedcli": space})
        self.width = precisions.width(int(space["dim"]), kind)
        self.dtype = np.dtype(precisions.DTYPES[kind])
        # Found over the very rows that are stored: nothing is clipped.
        self.space = {**space, "ranges": self._ranges().tolist()} if kind in ("int8", "uint8") else space

    def blocks(self, columns: Sequence[str] = (), *, verify: bool = False) -> Iterator[Block]:
        """Yield all rows with vectors in their new form."""
        for block in self._source.blocks(columns, verify=verify):
            yield Block(block.start, precisions.store(self._cut(block), self.precision, self.ranges), block.table)

    def _cut(self, block: Block) -> Floats:
        return precisions.shape(self._source.floats(block), self.dim, self.space.get("normalize") is not False)

    def _ranges(self) -> Floats:
        low, high = np.full(self.dim, np.inf, np.float32), np.full(self.dim, -np.inf, np.float32)
        for block in self._source.blocks():
            vectors = self._cut(block)
            low, high = np.minimum(low, vectors.min(axis=0)), np.maximum(high, vectors.max(axis=0))
        return np.stack([low, high])


def named(path: str, stored_as: str | None, dim: int | None) -> str:
    changes = [f"cut to {dim}"] * (dim is not None) + [f"as {stored_as}"] * (stored_as is not None)
    return f"{path} {' '.join(changes)}"
