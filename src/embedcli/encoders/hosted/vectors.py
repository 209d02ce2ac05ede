"""Vectors of some texts as a server answered them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array


@dataclass(frozen=True)
class HostedVectors:
    """Vectors of some texts, in order.

    Attributes:
        vectors: float32 [n, dim]: NaN rows for rejected texts.
        refusal_reasons: Why texts were rejected, by position.
        tokens: Tokens that the server counted for all of them; None if it did not say.
        cut_lengths: Tokens that the server read of texts that it cut without saying so, by position.
    """

    vectors: Float32Array
    refusal_reasons: Mapping[int, str]
    tokens: int | None = None
    cut_lengths: Mapping[int, int] = field(default_factory=dict)


def merge_vectors(blocks: Sequence[HostedVectors], positions: Sequence[Sequence[int]]) -> HostedVectors:
    """Merge the vectors of parts of a request.

    Args:
        blocks: The parts.
        positions: Positions of the texts of each part in the whole; together all of them.
    """
    vectors = np.concatenate([block.vectors for block in blocks])
    order = np.concatenate([np.asarray(part, np.int64) for part in positions])
    merged = np.empty_like(vectors)
    merged[order] = vectors
    reasons: dict[int, str] = {}
    cuts: dict[int, int] = {}
    for block, part in zip(blocks, positions, strict=True):
        reasons |= {part[i]: reason for i, reason in block.refusal_reasons.items()}
        cuts |= {part[i]: length for i, length in block.cut_lengths.items()}
    counts = [block.tokens for block in blocks]
    tokens = sum(count for count in counts if count is not None) if None not in counts else None
    return HostedVectors(merged, reasons, tokens, cuts)
