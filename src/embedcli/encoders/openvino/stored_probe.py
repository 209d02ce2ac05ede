"""Probe rows stored beside a compiled model: encoded at each load, they show whether the weights are still the same."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.encoder import Tokens
from embedcli.encoders.equivalence import truncate_rows

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array
    from embedcli.encoders.openvino.encoder import OpenVinoEncoder

PROBE_FILE = "probe.npz"
# Few and short, so that a load takes hardly longer.
PROBE_TEXTS = ("a", "42", "向量 naïve", "Two words and some more.")
MAX_PROBE_TOKENS = 16
# Distance relative to the vector's length. The same network on another CPU differs by some 1e-6 in float32, and from
# float32 in half precision by 1e-2; other weights by far more.
MAX_DISTANCES = {"float32": 1e-4}
MAX_HALF_DISTANCE = 0.1


@dataclass(frozen=True)
class StoredProbe:
    """Rows and what the network returns for them.

    Attributes:
        tokens: The rows.
        vectors: float32 [rows, dim]; before normalization.
    """

    tokens: Tokens
    vectors: Float32Array

    def to_bytes(self) -> bytes:
        """The content of PROBE_FILE."""
        stream = BytesIO()
        np.savez(stream, ids=self.tokens.ids, offsets=self.tokens.offsets, vectors=self.vectors)
        return stream.getvalue()

    def matches(self, encoder: OpenVinoEncoder) -> bool:
        """Whether an encoder of the same network still returns these vectors."""
        vectors = encoder.encode_unnormalized(self.tokens)
        if vectors.shape != self.vectors.shape:
            return False
        lengths = np.maximum(np.linalg.norm(self.vectors, axis=1), 1e-12)
        distances = np.linalg.norm(vectors - self.vectors, axis=1) / lengths
        # Written so that NaN counts as different.
        return bool((distances <= MAX_DISTANCES.get(encoder.dtype, MAX_HALF_DISTANCE)).all())


def build_stored_probe(encoder: OpenVinoEncoder) -> StoredProbe:
    """Encode the probe rows with an encoder whose vectors have been checked."""
    tokens = truncate_rows(encoder.tokenize(PROBE_TEXTS), MAX_PROBE_TOKENS)
    return StoredProbe(tokens, encoder.encode_unnormalized(tokens))


def read_stored_probe(content: bytes) -> StoredProbe:
    """Read what `StoredProbe.to_bytes` returned. Raises ValueError or KeyError if it is something else."""
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        offsets = arrays["offsets"]
        return StoredProbe(Tokens(arrays["ids"], offsets, np.diff(offsets).astype(np.int32)), arrays["vectors"])
