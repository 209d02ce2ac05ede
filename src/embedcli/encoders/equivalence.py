"""A probe set: rows on which two encoders of the same model must agree before one stands in for the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.encoder import Tokens
from embedcli.encoders.tokenize.fast import build_tokens

if TYPE_CHECKING:
    from embedcli.core.encoder import BaseEncoder
    from embedcli.core.types import Float32Array, Int64Array

# Cosine of at least 0.9999 with PyTorch, as a distance relative to its length: sqrt(2 - 2 * 0.9999).
MAX_VECTOR_DISTANCE = 0.01414
# The longest probe row is bounded by work, parameters times tokens: about five seconds on two cores.
MAX_PROBE_OPERATIONS = 2.5e11
MIN_PROBE_TOKENS, MAX_PROBE_TOKENS = 512, 8192
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
    """Rows of one to `longest` tokens, and the vectors they must get: float32 [len(rows), dim]."""

    texts: Sequence[str]
    tokens: Tokens
    rows: Int64Array
    expected_vectors: Float32Array
    longest_row: int


def longest_probe_row(positions: int | None, size: int) -> int:
    """How many tokens the longest row of a probe should have, for a model of `size` parameters."""
    return int(
        min(positions or MAX_PROBE_TOKENS, MAX_PROBE_TOKENS, max(MIN_PROBE_TOKENS, MAX_PROBE_OPERATIONS / max(1, size)))
    )


def build_probe_texts(most: int) -> list[str]:
    """Short, odd and longer texts; the last has `most` tokens at least."""
    words = (PROBE_PASSAGE * (1 + most // 20)).split()
    return [*SHORT_PROBE_TEXTS, *(" ".join(words[:count]) for count in PROBE_WORD_COUNTS), " ".join(words[:most])]


def build_probe(words: Any, encoder: Any, most: int) -> EquivalenceProbe:
    """The probe set with vectors of `encoder`, one row at a time. `words` tokenizes without a limit."""
    asked = build_probe_texts(most)
    tokens = truncate_rows(words.tokenize(asked), most)
    rows = np.flatnonzero(tokens.lengths)
    return EquivalenceProbe(asked, tokens, rows, encoder.encode_float32(tokens, rows), int(tokens.lengths.max()))


def truncate_rows(tokens: Tokens, most: int) -> Tokens:
    """The first `most` tokens of each row."""
    rows = np.split(tokens.ids, tokens.offsets[1:-1])
    return build_tokens([row[:most].tolist() for row in rows], tokens.untruncated_lengths)


def describe_difference(probe: EquivalenceProbe, encoder: BaseEncoder) -> str | None:
    """How the vectors of `encoder` differ from those wanted, whatever batch a row is in; None where they agree."""
    for batch in build_probe_batches(len(probe.rows)):
        made = encoder.collect(encoder.forward(probe.tokens, probe.rows[batch]))
        wanted = probe.expected_vectors[batch]
        if made.shape != wanted.shape:
            return f"its vectors have the shape {made.shape}, and {wanted.shape} in PyTorch"
        far = np.linalg.norm(made - wanted, axis=1) / np.maximum(np.linalg.norm(wanted, axis=1), 1e-6)
        # Not-a-number is far too.
        if not (far <= MAX_VECTOR_DISTANCE).all():
            worst = int(np.argmax(np.where(np.isfinite(far), far, np.inf)))
            length = int(probe.tokens.lengths[probe.rows[batch]][worst])
            return f"its vectors differ from PyTorch's (a row of {length} tokens among {len(batch)}: {far[worst]:.2g})"
    return None


def row_cosines(a: Float32Array, b: Float32Array) -> Float32Array:
    """float32 [n]: the cosine of each row of `a` with the same row of `b`; 1 where both are zero."""
    dots = (a * b).sum(axis=1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    made: Float32Array = np.where(norms > 0, dots / np.maximum(norms, np.finfo(np.float32).tiny), same).astype(
        np.float32
    )
    return made


def build_probe_batches(count: int) -> list[Int64Array]:
    """Rows alone, few and many together, long beside short; the last, longest row appears twice."""
    every = np.arange(count)
    return [every[:-1], every[-1:], every[[-1, 0]], every[-3:-1], every[:3], *(every[i : i + 1] for i in range(4))]


def tokenizes_alike(one: BaseEncoder, other: BaseEncoder, asked: Sequence[str]) -> bool:
    """Whether two encoders tokenize alike."""
    a, b = one.tokenize(asked), other.tokenize(asked)
    return all(
        np.array_equal(x, y)
        for x, y in ((a.ids, b.ids), (a.offsets, b.offsets), (a.untruncated_lengths, b.untruncated_lengths))
    )
