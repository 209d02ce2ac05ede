"""The vectors of rows by several heads of one model: dense, sparse and of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.sparse_vectors import SparseVectors

if TYPE_CHECKING:
    from typing import TypeAlias

    from embedcli.core.types import Float32Array, VectorKind

    # The vectors of rows by one head.
    OneHead: TypeAlias = Float32Array | SparseVectors | MultiVectors


@dataclass(frozen=True)
class HeadVectors:
    """The vectors of n rows by each head of a model.

    Attributes:
        parts: By head, in the order of the job's heads, at least two: the vectors of the same n rows.
    """

    parts: Mapping[VectorKind, OneHead]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def first(self) -> OneHead:
        """The vectors of the first head."""
        return next(iter(self.parts.values()))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and the dimensions of the first head."""
        return len(self), self.first.shape[1]

    def __getitem__(self, rows: Any) -> HeadVectors:
        """Take some rows: by numbers int64 [k], a mask bool [n] or a slice."""
        return HeadVectors({head: vectors[rows] for head, vectors in self.parts.items()})


def join_heads(parts: Mapping[VectorKind, OneHead]) -> OneHead | HeadVectors:
    """The vectors of rows by the heads of a model, in their order; of a single head just its vectors."""
    return HeadVectors(parts) if len(parts) > 1 else next(iter(parts.values()))


def split_heads(vectors: OneHead | HeadVectors) -> list[OneHead]:
    """The vectors of rows by each head, in their order, or those of the only one."""
    return list(vectors.parts.values()) if isinstance(vectors, HeadVectors) else [vectors]


def heads_of(parts: Sequence[HeadVectors]) -> list[VectorKind]:
    """The heads that several vectors have, at least one of them. Raises ValueError if they differ."""
    heads = list(parts[0].parts)
    if any(list(part.parts) != heads for part in parts):
        raise ValueError("vectors of different heads")
    return heads
