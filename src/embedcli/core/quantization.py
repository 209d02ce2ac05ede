"""Convert float32 vectors to the number format they are stored in, and back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.head_vectors import HeadVectors
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.core.vectors import normalize_rows

if TYPE_CHECKING:
    from typing import TypeAlias

    from numpy.typing import NDArray

    from embedcli.core.row_vectors import EncodedVectors, RowVectors
    from embedcli.core.types import BoolArray, Float32Array, Precision

    # The value ranges of int8 and uint8 for each column of vectors, float32 [2, dim], of sparse ones [2, 1]; empty for
    # other precisions.
    Ranges: TypeAlias = tuple[Float32Array, ...]

STORAGE_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}
# IEEE 754 binary16, round to nearest even: numbers up to 2^-25, half of the smallest float16, round to 0; numbers from
# 65520, half a step above the largest, round to infinity. Both bounds are exclusive.
FLOAT16_SAFE_RANGE = (2.0**-25, 65520.0)


def stored_width(dim: int, precision: Precision) -> int:
    """The number of stored values of a vector of `dim` floats: eight packed bits make one value."""
    return -(-dim // 8) if precision in ("binary", "ubinary") else dim


def compute_ranges(vectors: Float32Array) -> Float32Array:
    """The value ranges of a sample, for int8 and uint8.

    Args:
        vectors: float32 [n, dim], n > 0.

    Returns:
        float32 [2, dim]: the lowest and the highest value of each dimension.
    """
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)


def compute_ranges_of(vectors: RowVectors) -> Ranges:
    """The value ranges of a sample of any kind, for each of its heads.

    Returns:
        float32 [2, dim], as `compute_ranges`; of sparse vectors [2, 1], since all dimensions share one range, which is
        zero if no row has a term.
    """
    if isinstance(vectors, HeadVectors):
        return tuple(own for part in vectors.parts.values() for own in compute_ranges_of(part))
    if isinstance(vectors, SparseVectors):
        weights = vectors.values if len(vectors.values) else np.zeros(1, np.float32)
        return (compute_ranges(weights[:, None]),)
    return (compute_ranges(vectors.values if isinstance(vectors, MultiVectors) else vectors),)


def are_equal_ranges(one: Ranges, other: Ranges) -> bool:
    """Whether vectors of two jobs are stored with the same ranges."""
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def parse_ranges(saved: Any, width: int | None = None) -> Float32Array:
    """Convert recorded ranges.

    Args:
        saved: Two lists of numbers, as they are in the metadata of an output.
        width: How many numbers each has; None if that is not known.

    Returns:
        float32 [2, width].

    Raises:
        ValueError: They are something else, or no ranges.
    """
    try:
        ranges = np.array(saved, np.float32)
    except (TypeError, ValueError):
        raise ValueError("they are not two lists of numbers") from None
    if ranges.ndim != 2 or len(ranges) != 2 or ranges.shape[1] != (width or ranges.shape[1]):
        size = "numbers" if width is None else f"{width} numbers"
        raise ValueError(f"they are not two lists of {size}")
    if not np.isfinite(ranges).all() or (ranges[0] > ranges[1]).any():
        raise ValueError("a lowest value is above the highest one, or not finite")
    return ranges


def quantize(vectors: Float32Array, precision: Precision, ranges: Float32Array | None = None) -> NDArray[Any]:
    """Convert vectors to the number format they are stored in.

    The formulas are those of `sentence_transformers.util.quantize_embeddings`. int8 and uint8 divide the range of each
    dimension into 255 steps and clip values outside of it. binary and ubinary keep the sign, packed eight to a byte.

    Args:
        vectors: float32 [n, dim].
        precision: The number format.
        ranges: float32 [2, dim] from `compute_ranges`; needed for int8 and uint8.

    Returns:
        [n, stored_width(dim, precision)] in the dtype `STORAGE_DTYPES[precision]`.

    Raises:
        ValueError: `ranges` is missing.
    """
    if precision == "float32":
        return vectors
    if precision == "float16":
        return np.asarray(vectors, np.float16)
    if precision in ("binary", "ubinary"):
        bits = np.asarray(np.packbits(vectors > 0, axis=-1), np.uint8)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if ranges is None:
        raise ValueError(f"{precision} needs ranges")
    steps = quantization_step(ranges)
    level = np.clip((vectors - ranges[0]) / steps, 0, 255).astype(np.uint8)
    return level if precision == "uint8" else np.asarray(level.astype(np.int16) - 128, np.int8)


def quantize_weights(vectors: SparseVectors, precision: Precision, ranges: Float32Array | None) -> NDArray[Any]:
    """Convert the weights of sparse vectors to the number format they are stored in: [entries].

    Args:
        vectors: The vectors.
        precision: The number format.
        ranges: float32 [2, 1] from `compute_ranges_of`; needed for int8 and uint8.
    """
    return np.asarray(quantize(vectors.values[:, None], precision, ranges)[:, 0])


def dequantize_weights(stored: SparseVectors, precision: Precision, ranges: Float32Array | None) -> SparseVectors:
    """Convert sparse vectors whose values are stored numbers; the opposite of `quantize_weights`."""
    return replace(stored, values=dequantize(stored.values[:, None], precision, 1, ranges)[:, 0])


def is_storable(vectors: RowVectors, precision: Precision) -> BoolArray:
    """Check that vectors are finite and not all zeros once they are stored.

    Args:
        vectors: float32 [n, dim], sparse vectors, of which zeros do not count, vectors of tokens, or those of several
            heads, all of which must be storable; a row may then have no sparse terms.
        precision: The number format; only float16 can overflow or round to zero.

    Returns:
        bool [n].
    """
    if isinstance(vectors, HeadVectors):
        usable = [is_storable(part, precision) | _lacks_terms(part) for part in vectors.parts.values()]
        return np.asarray(np.logical_and.reduce(usable))
    if isinstance(vectors, SparseVectors | MultiVectors):
        is_bad = vectors.find_unusable()
        if precision == "float16":
            is_bad |= vectors.find_larger(FLOAT16_SAFE_RANGE[1])
        return ~is_bad
    if precision != "float16":
        return ~find_unusable(vectors)
    largest = np.abs(vectors).max(axis=1, initial=0)
    return np.asarray((largest > FLOAT16_SAFE_RANGE[0]) & (largest < FLOAT16_SAFE_RANGE[1]))


def find_unusable(vectors: EncodedVectors) -> BoolArray:
    """Find vectors that contain NaN or infinity, or only zeros.

    Args:
        vectors: float32 [n, dim], sparse vectors or those of tokens, of which every row needs one, or those of several
            heads, all of which must be usable; a row may then have no sparse terms.

    Returns:
        bool [n]: True for an unusable vector.
    """
    if isinstance(vectors, HeadVectors):
        unusable = [find_unusable(part) & ~_lacks_terms(part) for part in vectors.parts.values()]
        return np.asarray(np.logical_or.reduce(unusable))
    if isinstance(vectors, SparseVectors | MultiVectors):
        return vectors.find_unusable()
    if not vectors.size:
        return np.zeros(len(vectors), bool)
    # The sum of squares takes a quarter of the time; only where it overflows or is zero are the values looked at.
    squares = np.einsum("ij,ij->i", vectors, vectors)
    bad: BoolArray = ~(np.isfinite(squares) & (squares > 0))
    suspects = vectors[bad]
    bad[bad] = ~np.isfinite(suspects).all(axis=1) | ~suspects.any(axis=1)
    return bad


def _lacks_terms(vectors: Float32Array | SparseVectors | MultiVectors) -> BoolArray:
    """bool [n]: True for a row with an empty sparse vector."""
    return np.asarray(vectors.lengths == 0) if isinstance(vectors, SparseVectors) else np.zeros(len(vectors), bool)


def dequantize(
    stored: NDArray[Any], precision: Precision, dim: int, ranges: Float32Array | None = None
) -> Float32Array:
    """Convert stored vectors back to float32, with the smallest possible error.

    Args:
        stored: [n, stored_width(dim, precision)] in the dtype `STORAGE_DTYPES[precision]`.
        precision: The number format of `stored`.
        dim: The dimension of the vectors before they were stored.
        ranges: float32 [2, dim]: the ranges they were quantized with; needed for int8 and uint8.

    Returns:
        float32 [n, dim]: bits as -1 and 1, int8 and uint8 as the middle of their step.

    Raises:
        ValueError: `ranges` is missing.
    """
    if precision in ("float32", "float16"):
        return stored.astype(np.float32)
    if precision in ("binary", "ubinary"):
        raw = stored if precision == "ubinary" else (stored.astype(np.int16) + 128).astype(np.uint8)
        return np.unpackbits(np.ascontiguousarray(raw), axis=-1)[:, :dim].astype(np.float32) * 2 - 1
    if ranges is None:
        raise ValueError(f"{precision} needs ranges")
    level = stored.astype(np.float32) + (0 if precision == "uint8" else 128)
    return np.asarray(ranges[0] + (level + 0.5) * quantization_step(ranges), np.float32)


def quantization_step(ranges: Float32Array) -> Float32Array:
    """The width of one of the 255 steps of each dimension.

    Args:
        ranges: float32 [2, dim].

    Returns:
        float32 [dim]; 1 for a dimension whose value never varies, to avoid a division by zero.
    """
    steps = (ranges[1] - ranges[0]) / 255
    return np.asarray(np.where(steps > 0, steps, 1), np.float32)


def truncate_and_normalize(vectors: Float32Array, truncate_dim: int | None, normalize: bool | None) -> Float32Array:
    """Keep the first dimensions of vectors (--truncate-dim), scaled to length 1 again.

    Args:
        vectors: float32 [n, dim].
        truncate_dim: How many dimensions to keep; None or `dim` returns the vectors unchanged.
        normalize: False to leave out the scaling.

    Returns:
        float32 [n, min(dim, truncate_dim)].
    """
    if truncate_dim is None or truncate_dim >= vectors.shape[1]:
        return vectors
    cut = vectors[:, :truncate_dim]
    if normalize is False:
        return np.ascontiguousarray(cut)
    return normalize_rows(cut)
