"""The vectors of texts of which some get none, by head of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from embedcli.core.encoder import NO_TERMS_REASON
from embedcli.core.errors import InputError
from embedcli.core.head_vectors import HeadVectors
from embedcli.core.row_vectors import kind_of
from embedcli.core.sparse_vectors import SparseVectors

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import Int64Array, VectorKind


@dataclass(frozen=True)
class EncodedTexts:
    """The vectors of texts, without the texts that get none.

    Attributes:
        positions: int64 [n], ascending: the texts that have vectors.
        vectors: The vectors of these n texts.
        rejects: Why each of the other texts has none, by its position.
    """

    positions: Int64Array
    vectors: RowVectors
    rejects: Mapping[int, str]

    def require_all(self) -> RowVectors:
        """Return the vectors. Raises InputError if a text has none."""
        for position, reason in sorted(self.rejects.items()):
            count = len(self.positions) + len(self.rejects)
            raise InputError(
                f"text {position + 1} of {count} cannot be embedded: {reason}", "fix the text or leave it out"
            )
        return self.vectors

    def split_heads(self) -> dict[VectorKind, EncodedTexts]:
        """Return the texts by head of the model, or by their only kind of vectors.

        A text without a sparse term, which other heads may have vectors for, is a reject of the sparse head.
        """
        if not isinstance(self.vectors, HeadVectors):
            return {kind_of(self.vectors): self}
        return {head: self._without_empty(vectors) for head, vectors in self.vectors.parts.items()}

    def _without_empty(self, vectors: RowVectors) -> EncodedTexts:
        if not isinstance(vectors, SparseVectors) or vectors.lengths.all():
            return replace(self, vectors=vectors)
        has_terms = vectors.lengths > 0
        lacking = dict.fromkeys(self.positions[~has_terms].tolist(), NO_TERMS_REASON)
        return EncodedTexts(self.positions[has_terms], vectors[has_terms], {**self.rejects, **lacking})
