"""Join vectors of one kind that come in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.sparse_vectors import SparseVectors, concat_sparse, empty_sparse

if TYPE_CHECKING:
    from embedcli.core.row_vectors import SingleVectors
    from embedcli.core.types import VectorKind


class VectorCollector:
    """Joins the vectors of chunks, dense ones without a second copy of all of them."""

    def __init__(self, count: int, dim: int, kind: VectorKind) -> None:
        self._dense = np.empty((count if kind == "dense" else 0, dim), np.float32)
        self._sparse: list[SparseVectors] | None = None if kind == "dense" else [empty_sparse(dim)]

    def add(self, start: int, vectors: SingleVectors) -> None:
        """Add the vectors of the rows from `start` on; sparse ones must come in order."""
        if isinstance(vectors, SparseVectors):
            (self._sparse or []).append(vectors)
        else:
            self._dense[start : start + len(vectors)] = vectors

    def finish(self) -> SingleVectors:
        return self._dense if self._sparse is None else concat_sparse(self._sparse)
