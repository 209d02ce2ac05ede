"""Compare a stored vector with the same text encoded again: its direction, its number of vectors, its length."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embedcli.analysis.inspect_output import compute_vector_norms
from embedcli.analysis.quantiles import StreamingQuantiles
from embedcli.analysis.similarities import row_cosines
from embedcli.core import quantization
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.sparse_vectors import SparseVectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.row_vectors import RowVectors
    from embedcli.outputs.dataset import VectorDataset
    from embedcli.outputs.vector_columns import StoredVectors

# Why a stored vector is not that of its text.
Difference = Literal["count", "not_finite", "no_vector", "cosine", "length"]
DIFFERENCE_TEXTS: dict[Difference, str] = {
    "count": "with another number of vectors",
    "not_finite": "with values that are not finite",
    "no_vector": "whose text gets no vector now",
    "length": "longer or shorter than the vector of the text",
}


@dataclass(frozen=True)
class Agreement:
    """How a stored vector agrees with a computed one.

    Attributes:
        difference: Why it is not that of the text; None if it is.
        cosine: The cosine of the two, of vectors of tokens the lowest one; None if there is none.
    """

    difference: Difference | None
    cosine: float | None = None


class AgreementStats:
    """Counts of rows by their agreement, and the distribution of their cosines."""

    def __init__(self, min_cosine: float) -> None:
        self.min_cosine = min_cosine
        self.rows = 0
        self._cosines = StreamingQuantiles()
        self._differences: Counter[Difference] = Counter()

    def add(self, agreement: Agreement) -> None:
        self.rows += 1
        if agreement.cosine is not None:
            self._cosines.add(np.array([agreement.cosine]))
        if agreement.difference is not None:
            self._differences[agreement.difference] += 1

    def __str__(self) -> str:
        cosines = self._cosines.summary(median=0.5)
        parts = []
        if cosines:
            parts.append("lowest cosine {min:.6f}, median {median:.6f}".format(**cosines))
            parts.append(f"{self._differences['cosine']:,} below {self.min_cosine:g}")
        parts += [
            f"{self._differences[kind]:,} {text}" for kind, text in DIFFERENCE_TEXTS.items() if self._differences[kind]
        ]
        return "; ".join(parts)


def compare_with_stored(
    output: VectorDataset, stored: StoredVectors, computed: RowVectors | None, min_cosine: float
) -> Agreement:
    """Compare the stored vector of a row with the one that its text has now.

    The computed one is quantized first like the stored one, so that quantization is not an error.

    Args:
        output: The output of the row.
        stored: The vectors of this one row, as they are stored.
        computed: The vectors of its text; None if it got none.
        min_cosine: The lowest cosine that is accepted. A difference of this size is accepted in the length of sparse
            vectors, which the dot product ranks.
    """
    if computed is None:
        is_empty = isinstance(stored, SparseVectors) and not len(stored.indices)
        return Agreement(None, 1.0) if is_empty and output.may_lack_terms else Agreement("no_vector")
    if isinstance(stored, SparseVectors) and isinstance(computed, SparseVectors):
        weights = quantization.quantize_weights(computed, output.precision, output.ranges)
        pair: tuple[Any, Any] = stored, dequantize_weights(output, replace(computed, values=weights))
    else:
        tokens, computed_tokens = as_matrix(stored), as_matrix(computed)
        if len(tokens) != len(computed_tokens):
            return Agreement("count")
        quantized = quantization.quantize(computed_tokens, output.precision, output.ranges)
        pair = dequantize(output, tokens), dequantize(output, quantized)
    lengths, expected = (compute_vector_norms(side) for side in pair)
    if not np.isfinite(lengths).all():
        return Agreement("not_finite")
    cosine = float(row_cosines(*pair).min())
    if not cosine >= min_cosine:
        return Agreement("cosine", cosine)
    if not isinstance(stored, SparseVectors):
        # Cosine and MaxSim rank these; a saved dimension may leave them shorter than computed here.
        return Agreement(None, cosine)
    allowed = accepted_length_difference(output, pair[1], expected, min_cosine)
    return Agreement(None if (np.abs(lengths - expected) <= allowed).all() else "length", cosine)


def accepted_length_difference(
    output: VectorDataset, vector: SparseVectors, length: NDArray[Any], min_cosine: float
) -> NDArray[Any]:
    """How far the length of a sparse vector may be off: [1], as `length`.

    Two vectors of one length with this cosine are sqrt(2 - 2 * cosine) of their length apart. Of integers, every number
    may be one step off.
    """
    accepted = length * np.sqrt(2 - 2 * min_cosine)
    if output.precision in ("int8", "uint8") and output.ranges is not None:
        accepted = accepted + np.linalg.norm(quantization.quantization_step(output.ranges)) * np.sqrt(vector.lengths)
    return np.asarray(accepted)


def as_matrix(vectors: StoredVectors | RowVectors) -> NDArray[Any]:
    """The numbers of a dense vector, or of the vectors of tokens: [vectors, width]."""
    values = vectors.values if isinstance(vectors, MultiVectors) else vectors
    if not isinstance(values, np.ndarray):
        raise TypeError("the stored and the computed vectors differ in kind")
    return values


def dequantize(output: VectorDataset, values: NDArray[Any]) -> NDArray[Any]:
    return quantization.dequantize(values, output.precision, output.dim, output.ranges)


def dequantize_weights(output: VectorDataset, vectors: SparseVectors) -> SparseVectors:
    return quantization.dequantize_weights(vectors, output.precision, output.ranges)
