"""How many vectors a row gets from a multi-vector model, found by encoding a few rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedcli.core.encoder import BaseEncoder
from embedcli.core.row_vectors import find_token_vectors

# Encoded one by one, which takes a second on a slow machine.
MEASURED_TEXTS = 32


def measure_token_vectors(encoder: BaseEncoder, texts: Sequence[str]) -> float | None:
    """The mean number of vectors of a row's tokens; None if they have none, or without a text to measure.

    Args:
        encoder: The encoder of the job.
        texts: Some texts, of which the first are encoded.
    """
    tokens = encoder.tokenize(texts[:MEASURED_TEXTS])
    rows = np.flatnonzero(tokens.lengths)
    if not len(rows):
        return None
    vectors = find_token_vectors(encoder.encode_float32(tokens, rows))
    return None if vectors is None else float(vectors.lengths.mean())
