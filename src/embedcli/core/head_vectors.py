"""The vectors of rows by several heads of one model: dense, sparse and of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.sparse_vectors import SparseVectors

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, VectorKind


@dataclass(frozen=True)
class HeadVectors:
    """The vectors of n rows by each head of a model.

    Attributes:
        parts: By head, in the order of the job's heads, at least two: the vectors of the same n rows.
    """

    parts: Mapping[VectorKind, Float32Array | SparseVectors | MultiVectors]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def first(self) -> Float32Array | SparseVectors | MultiVectors:
        """The vectors of the first head."""
        return next(iter(self.parts.values()))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and the dimensions of the first head."""
        return len(self), self.first.shape[1]

    def __getitem__(self, rows: Any) -> HeadVectors:
        """Take some rows: by numbers int64 [k], a mask bool [n] or a slice."""
        return HeadVectors({head: vectors[rows] for head, vectors in self.parts.items()})


def heads_of(parts: Sequence[HeadVectors]) -> list[VectorKind]:
    """The heads that several vectors have, at least one of them. Raises ValueError if they differ."""
    heads = list(parts[0].parts)
    if any(list(part.parts) != heads for part in parts):
        raise ValueError("vectors of different heads")
    return heads
