"""Arithmetic on the rows of a vector array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import Float32Array

# The smallest normal float32: a divisor that leaves rows of zeros as they are.
SMALLEST_FLOAT32 = float(np.finfo(np.float32).tiny)


def normalize_rows(vectors: NDArray[Any], min_length: float = SMALLEST_FLOAT32) -> Float32Array:
    """Divide each row by its Euclidean length.

    Args:
        vectors: float32 or float64 [n, dim]; lengths are computed in this type.
        min_length: Shorter rows are divided by this length instead. torch.nn.functional.normalize uses 1e-12.

    Returns:
        float32 [n, dim]; rows of zeros stay zeros.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, vectors.dtype.type(min_length)), np.float32)
