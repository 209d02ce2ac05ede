"""Join vectors of one kind that come in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.head_vectors import HeadVectors
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.core.row_vectors import concat_vectors, require_one_head
from embedcli.core.sparse_vectors import empty_sparse

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import VectorKind


class VectorCollector:
    """Joins the vectors of chunks, dense ones without a second copy of all of them.

    Args:
        count: The most rows that there can be.
        dim: Dimensions of a vector.
        kind: The kind of vectors; of several heads that of the first.
        heads: Of several heads the `dim` of each, as `BaseEncoder.heads`.
    """

    def __init__(
        self, count: int, dim: int, kind: VectorKind, heads: Mapping[VectorKind, Mapping[str, Any]] | None = None
    ) -> None:
        self._dense = np.empty((count if kind == "dense" and not heads else 0, dim), np.float32)
        self._rows = 0
        self._parts: list[RowVectors] = []
        if heads:
            empty = {head: VectorCollector(0, facts["dim"], head).finish() for head, facts in heads.items()}
            self._parts.append(HeadVectors({head: require_one_head(vectors) for head, vectors in empty.items()}))
        elif kind == "sparse":
            self._parts.append(empty_sparse(dim))
        elif kind == "multi_vector":
            self._parts.append(MultiVectors(offsets_of([]), np.empty((0, dim), np.float32)))

    def add(self, vectors: RowVectors) -> None:
        """Add the vectors of the next rows."""
        if isinstance(vectors, np.ndarray):
            self._dense[self._rows : self._rows + len(vectors)] = vectors
        else:
            self._parts.append(vectors)
        self._rows += len(vectors)

    def finish(self) -> RowVectors:
        """The vectors of all rows that were added."""
        return concat_vectors(self._parts) if self._parts else self._dense[: self._rows]
