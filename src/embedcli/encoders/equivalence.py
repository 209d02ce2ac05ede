"""A probe set: rows on which two encoders of the same model must agree before one stands in for the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.encoder import Tokens
from embedcli.encoders.tokenize.fast import as_tokens

if TYPE_CHECKING:
    from embedcli.core.encoder import BaseEncoder
    from embedcli.core.types import Floats, Rows

# Cosine of at least 0.9999 with PyTorch, as a distance relative to its length: sqrt(2 - 2 * 0.9999).
SAME = 0.01414
# The longest probe row is bounded by work, parameters times tokens: about five seconds on two cores.
WORK = 2.5e11
FEWEST, MOST = 512, 8192
PASSAGE = (
    "A vector says where a text lies among all others. Der Vektor sagt, wo ein Text liegt; le vecteur dit où. "
    "Вектор показывает место текста. ベクトルは文の位置を示す。向量表示文本的位置。 1234.5 % of x != y, isn't it? "
)
SHORT = ("a", "?", "42", "🦜🚀☃", "向量", "naïve café", "Two words", "  spaced\tout \n text ", "ÀÉÎõü ß ﬁ", "x" * 70)
WORDS = (9, 18, 33, 70, 129)


@dataclass(frozen=True)
class Probe:
    """Rows of one to `longest` tokens, and the vectors they must get: float32 [len(rows), dim]."""

    texts: Sequence[str]
    tokens: Tokens
    rows: Rows
    wanted: Floats
    longest: int


def longest(positions: int | None, size: int) -> int:
    """How many tokens the longest row of a probe should have, for a model of `size` parameters."""
    return int(min(positions or MOST, MOST, max(FEWEST, WORK / max(1, size))))


def texts(most: int) -> list[str]:
    """Short, odd and longer texts; the last has `most` tokens at least."""
    words = (PASSAGE * (1 + most // 20)).split()
    return [*SHORT, *(" ".join(words[:count]) for count in WORDS), " ".join(words[:most])]


def probe(words: Any, encoder: Any, most: int) -> Probe:
    """The probe set with vectors of `encoder`, one row at a time. `words` tokenizes without a limit."""
    asked = texts(most)
    tokens = cut(words.tokenize(asked), most)
    rows = np.flatnonzero(tokens.lengths)
    return Probe(asked, tokens, rows, encoder.exact(tokens, rows), int(tokens.lengths.max()))


def cut(tokens: Tokens, most: int) -> Tokens:
    """The first `most` tokens of each row."""
    rows = np.split(tokens.ids, tokens.offsets[1:-1])
    return as_tokens([row[:most].tolist() for row in rows], tokens.full)


def difference(probe: Probe, encoder: BaseEncoder) -> str | None:
    """How the vectors of `encoder` differ from those wanted, whatever batch a row is in; None where they agree."""
    for batch in batches(len(probe.rows)):
        made = encoder.collect(encoder.forward(probe.tokens, probe.rows[batch]))
        wanted = probe.wanted[batch]
        if made.shape != wanted.shape:
            return f"its vectors have the shape {made.shape}, and {wanted.shape} in PyTorch"
        far = np.linalg.norm(made - wanted, axis=1) / np.maximum(np.linalg.norm(wanted, axis=1), 1e-6)
        # Not-a-number is far too.
        if not (far <= SAME).all():
            worst = int(np.argmax(np.where(np.isfinite(far), far, np.inf)))
            length = int(probe.tokens.lengths[probe.rows[batch]][worst])
            return f"its vectors differ from PyTorch's (a row of {length} tokens among {len(batch)}: {far[worst]:.2g})"
    return None


def cosines(a: Floats, b: Floats) -> Floats:
    """float32 [n]: the cosine of each row of `a` with the same row of `b`; 1 where both are zero."""
    dots = (a * b).sum(axis=1)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = (a == b).all(axis=1)
    made: Floats = np.where(norms > 0, dots / np.maximum(norms, np.finfo(np.float32).tiny), same).astype(np.float32)
    return made


def batches(count: int) -> list[Rows]:
    """Rows alone, few and many together, long beside short; the last, longest row appears twice."""
    every = np.arange(count)
    return [every[:-1], every[-1:], every[[-1, 0]], every[-3:-1], every[:3], *(every[i : i + 1] for i in range(4))]


def same_words(one: BaseEncoder, other: BaseEncoder, asked: Sequence[str]) -> bool:
    """Whether two encoders tokenize alike."""
    a, b = one.tokenize(asked), other.tokenize(asked)
    return all(np.array_equal(x, y) for x, y in ((a.ids, b.ids), (a.offsets, b.offsets), (a.full, b.full)))
