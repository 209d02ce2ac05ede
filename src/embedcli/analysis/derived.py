"""An output as it would be in another precision or with fewer dimensions, without encoding its rows again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core import quantization as precisions
from embedcli.core.errors import UsageError
from embedcli.outputs.dataset import VectorBlock, VectorDataset

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, Precision


class DerivedDataset(VectorDataset):
    """The rows of `source` with its vectors cut to `dim` numbers and renormalised, then stored as `stored_as`.

    The ranges of int8 and uint8 are those of all rows. UsageError if the source has fewer dimensions.
    """

    def __init__(self, source: VectorDataset, stored_as: Precision | None = None, dim: int | None = None) -> None:
        if dim is not None and not 1 <= dim <= source.dim:
            raise UsageError(
                f"{source.path} has {source.dim} dimensions, and cannot be cut to {dim}", "give a smaller number"
            )
        self._source = source
        kind: Precision = stored_as or source.precision
        space = {**source.vector_space, "precision": kind, "dim": dim or source.dim, "truncate_dim": dim}
        super().__init__(derived_name(source.path, stored_as, dim), source.vector_files, {"embedcli": space})
        self.stored_width = precisions.stored_width(int(space["dim"]), kind)
        self.dtype = np.dtype(precisions.STORAGE_DTYPES[kind])
        # Found over the very rows that are stored: nothing is clipped.
        self.vector_space = {**space, "ranges": self._ranges().tolist()} if kind in ("int8", "uint8") else space

    def read_blocks(self, columns: Sequence[str] = (), *, verify: bool = False) -> Iterator[VectorBlock]:
        """Yield all rows with vectors in their new form."""
        for block in self._source.read_blocks(columns, verify=verify):
            yield VectorBlock(
                block.first_row, precisions.quantize(self._cut(block), self.precision, self.ranges), block.columns
            )

    def _cut(self, block: VectorBlock) -> Float32Array:
        return precisions.truncate_and_normalize(
            self._source.block_as_float32(block), self.dim, self.vector_space.get("normalize") is not False
        )

    def _ranges(self) -> Float32Array:
        low, high = np.full(self.dim, np.inf, np.float32), np.full(self.dim, -np.inf, np.float32)
        for block in self._source.read_blocks():
            vectors = self._cut(block)
            low, high = np.minimum(low, vectors.min(axis=0)), np.maximum(high, vectors.max(axis=0))
        return np.stack([low, high])


def derived_name(path: str, stored_as: str | None, dim: int | None) -> str:
    changes = [f"cut to {dim}"] * (dim is not None) + [f"as {stored_as}"] * (stored_as is not None)
    return f"{path} {' '.join(changes)}"
