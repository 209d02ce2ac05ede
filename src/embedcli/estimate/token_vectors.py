"""How many vectors a row gets from a multi-vector model, found by encoding a few rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedcli.core.encoder import BaseEncoder
from embedcli.core.multi_vectors import MultiVectors

# Encoded one by one, which takes a second on a slow machine.
MEASURED_TEXTS = 32


def measure_token_vectors(encoder: BaseEncoder, texts: Sequence[str]) -> float | None:
    """The mean number of vectors of a row; None for a model with one vector per row, or without a text to measure.

    Args:
        encoder: The encoder of the job.
        texts: Some texts, of which the first are encoded.
    """
    tokens = encoder.tokenize(texts[:MEASURED_TEXTS])
    rows = np.flatnonzero(tokens.lengths)
    if encoder.kind != "multi_vector" or not len(rows):
        return None
    vectors = encoder.encode_float32(tokens, rows)
    return float(vectors.lengths.mean()) if isinstance(vectors, MultiVectors) else None
