"""Join vectors of one kind that come in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.core.row_vectors import concat_vectors
from embedcli.core.sparse_vectors import empty_sparse

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import VectorKind


class VectorCollector:
    """Joins the vectors of chunks, dense ones without a second copy of all of them."""

    def __init__(self, count: int, dim: int, kind: VectorKind) -> None:
        self._dense = np.empty((count if kind == "dense" else 0, dim), np.float32)
        self._parts: list[RowVectors] = []
        if kind == "sparse":
            self._parts.append(empty_sparse(dim))
        elif kind == "multi_vector":
            self._parts.append(MultiVectors(offsets_of([]), np.empty((0, dim), np.float32)))

    def add(self, start: int, vectors: RowVectors) -> None:
        """Add the vectors of the rows from `start` on; those that are not dense must come in order."""
        if isinstance(vectors, np.ndarray):
            self._dense[start : start + len(vectors)] = vectors
        else:
            self._parts.append(vectors)

    def finish(self) -> RowVectors:
        return concat_vectors(self._parts) if self._parts else self._dense
