"""Check on a set of probe rows that two encoders of the same model compute the same vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from embedcli.core.batching import pack_batches
from embedcli.core.encoder import Tokens
from embedcli.core.memory import available_memory
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.row_vectors import as_dense
from embedcli.core.vectors import SMALLEST_FLOAT32

if TYPE_CHECKING:
    from embedcli.core.encoder import BaseEncoder
    from embedcli.core.row_vectors import EncodedVectors
    from embedcli.core.types import Float32Array, Int64Array

# Cosine of at least 0.999999 with PyTorch in float32, as a distance relative to its length: sqrt(2 - 2 * 0.999999).
MAX_VECTOR_DISTANCE = 0.001414
# The longest probe row is bounded by work, parameters times tokens: about five seconds on two cores.
MAX_PROBE_OPERATIONS = 2.5e11
MIN_PROBE_TOKENS, MAX_PROBE_TOKENS = 512, 8192
# Of the memory that is free. Some networks hold several copies of a layer's attention scores: XLNet about eight.
MAX_MEMORY_SHARE, ATTENTION_COPIES, DEFAULT_HEADS = 0.1, 8, 16
PROBE_PASSAGE = (
    "A vector says where a text lies among all others. Der Vektor sagt, wo ein Text liegt; le vecteur dit où. "
    "Вектор показывает место текста. ベクトルは文の位置を示す。向量表示文本的位置。 1234.5 % of x != y, isn't it? "
)
SHORT_PROBE_TEXTS = (
    "a",
    "?",
    "42",
    "🦜🚀☃",
    "向量",
    "naïve café",
    "Two words",
    "  spaced\tout \n text ",
    "ÀÉÎõü ß ﬁ",
    "x" * 70,
)
PROBE_WORD_COUNTS = (9, 18, 33, 70, 129)


@dataclass(frozen=True)
class EquivalenceProbe:
    """Probe rows and the vectors that they must get.

    Attributes:
        texts: The probe texts.
        tokens: Their tokens.
        rows: int64 [rows]; the texts that have a token.
        expected_vectors: Of these rows.
        longest_row: Tokens of the longest row.
    """

    texts: Sequence[str]
    tokens: Tokens
    rows: Int64Array
    expected_vectors: EncodedVectors
    longest_row: int


def longest_probe_row(positions: int | None, parameters: int, heads: int | None = None) -> int:
    """How many tokens the longest probe row should have.

    Args:
        positions: The longest row that the model can take; None if there is no limit.
        parameters: The number of the model's parameters, by which the work of a row grows.
        heads: Attention heads of a layer: its memory grows with them and the square of the row's length. None: unknown.
    """
    affordable = max(MIN_PROBE_TOKENS, MAX_PROBE_OPERATIONS / max(1, parameters))
    free = available_memory()
    if free is not None:
        score_bytes = ATTENTION_COPIES * np.dtype(np.float32).itemsize * (heads or DEFAULT_HEADS)
        affordable = min(affordable, max(1.0, (free * MAX_MEMORY_SHARE / score_bytes) ** 0.5))
    return int(min(positions or MAX_PROBE_TOKENS, MAX_PROBE_TOKENS, affordable))


def build_probe_texts(longest: int) -> list[str]:
    """Short, odd and longer texts; the last has at least `longest` tokens."""
    words = (PROBE_PASSAGE * (1 + longest // 20)).split()
    return [*SHORT_PROBE_TEXTS, *(" ".join(words[:count]) for count in PROBE_WORD_COUNTS), " ".join(words[:longest])]


def build_probe(tokenizer: Any, encoder: Any, longest: int) -> EquivalenceProbe:
    """Build the probe with the vectors of an encoder.

    Args:
        tokenizer: Tokenizes without a limit.
        encoder: Computes the expected vectors, one row at a time.
        longest: Tokens of the longest row.
    """
    texts = build_probe_texts(longest)
    tokens = truncate_rows(tokenizer.tokenize(texts), longest)
    rows = np.flatnonzero(tokens.lengths)
    return EquivalenceProbe(texts, tokens, rows, encoder.encode_float32(tokens, rows), int(tokens.lengths.max()))


def truncate_rows(tokens: Tokens, limit: int) -> Tokens:
    """The first `limit` tokens of each row."""
    is_kept = np.concatenate([np.empty(0, bool), *(np.arange(length) < limit for length in tokens.lengths)])
    offsets = np.concatenate([[0], np.cumsum(np.minimum(tokens.lengths, limit))]).astype(np.int64)
    types = None if tokens.token_types is None else tokens.token_types[is_kept]
    return Tokens(tokens.ids[is_kept], offsets, tokens.untruncated_lengths, token_types=types)


def describe_difference(probe: EquivalenceProbe, encoder: BaseEncoder) -> str | None:
    """Describe how the vectors of an encoder differ from those expected, in batches of many sizes; None if equal."""
    for batch in _choose_batches(probe, encoder):
        found, wanted = encoder.collect(encoder.forward(probe.tokens, probe.rows[batch])), probe.expected_vectors[batch]
        vectors, expected = as_dense(found), as_dense(wanted)
        if vectors.shape != expected.shape:
            return f"its vectors have the shape {vectors.shape}, and {expected.shape} in PyTorch"
        distances = np.linalg.norm(vectors - expected, axis=1) / np.maximum(np.linalg.norm(expected, axis=1), 1e-6)
        # Written so that NaN counts as different.
        if not (distances <= MAX_VECTOR_DISTANCE).all():
            worst = int(np.argmax(np.where(np.isfinite(distances), distances, np.inf)))
            row = int(wanted.entry_rows[worst]) if isinstance(wanted, MultiVectors) else worst
            length = int(probe.tokens.lengths[probe.rows[batch]][row])
            place = f"a row of {length} tokens among {len(batch)}: {distances[worst]:.2g}"
            return f"its vectors differ from PyTorch's ({place})"
    return None


def row_cosines(a: Float32Array, b: Float32Array) -> Float32Array:
    """The cosine of each row of `a` with the same row of `b`, both float32 [n, dim].

    Returns:
        float32 [n]; 1 where both rows are zero, 0 where one is.
    """
    products = (a * b).sum(axis=1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    are_equal = (a == b).all(axis=1)
    cosines = np.where(norms > 0, products / np.maximum(norms, SMALLEST_FLOAT32), are_equal)
    return np.asarray(cosines, np.float32)


def build_probe_batches(count: int) -> list[Int64Array]:
    """Batches of one, few and many rows, and of long beside short ones; the last, longest row appears twice."""
    rows = np.arange(count)
    return [rows[:-1], rows[-1:], rows[[-1, 0]], rows[-3:-1], rows[:3], *(rows[i : i + 1] for i in range(4))]


def _choose_batches(probe: EquivalenceProbe, encoder: BaseEncoder) -> Iterable[Int64Array]:
    if encoder.equal_lengths:
        lengths = probe.tokens.lengths[probe.rows]
        return pack_batches(lengths, lambda: encoder.batch_tokens, encoder.pad_to_multiple_of, equal_lengths=True)
    return build_probe_batches(len(probe.rows))


class Tokenizes(Protocol):
    """Cuts texts into tokens, as encoders do."""

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of texts."""


def tokenizes_alike(one: Tokenizes, other: Tokenizes, texts: Sequence[str]) -> bool:
    """Whether two encoders give texts the same tokens."""
    a, b = one.tokenize(texts), other.tokenize(texts)
    return all(
        np.array_equal(x, y)
        for x, y in ((a.ids, b.ids), (a.offsets, b.offsets), (a.untruncated_lengths, b.untruncated_lengths))
    )
