"""Float vectors to stored vectors and back: float16, int8/uint8 by ranges, packed bits. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.vectors import normalize_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import BoolArray, Float32Array, Precision

STORAGE_DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "binary": np.int8,
    "ubinary": np.uint8,
}
# IEEE 754: up to half of the smallest float16, 2^-24, a number rounds to 0; from half a step above the largest, 65504,
# to infinity.
FLOAT16_SAFE_RANGE = (2.0**-25, 65520.0)


def stored_width(dim: int, precision: Precision) -> int:
    """How many stored values a vector of `dim` floats becomes: packed bits need an eighth, rounded up."""
    return -(-dim // 8) if precision in ("binary", "ubinary") else dim


def compute_ranges(vectors: Float32Array) -> Float32Array:
    """float32 [2, dim]: the lowest and highest value of each column of a sample."""
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)


def quantize(vectors: Float32Array, precision: Precision, ranges: Float32Array | None = None) -> NDArray[Any]:
    """Vectors [n, dim] in their stored form [n, width(dim)].

    The formulas are those of sentence_transformers.util.quantize_embeddings: int8/uint8 divide
    each column's range into 255 steps (values outside the sampled range are clipped to it), binary
    keeps the sign bit, packed eight to a byte.
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


def is_storable(vectors: Float32Array, precision: Precision) -> BoolArray:
    """bool [n]: whether finite vectors stay finite, and other than nothing but zeros, in their stored form."""
    if precision != "float16":
        return ~find_unusable(vectors)
    largest = np.abs(vectors).max(axis=1, initial=0)
    return np.asarray((largest > FLOAT16_SAFE_RANGE[0]) & (largest < FLOAT16_SAFE_RANGE[1]))


def find_unusable(vectors: Float32Array) -> BoolArray:
    """bool [n]: rows with a NaN, an infinity, or nothing but zeros."""
    if not vectors.size:
        return np.zeros(len(vectors), bool)
    # Their squares tell, in a quarter of the time, but for numbers so large or small that these overflow or vanish.
    squares = np.einsum("ij,ij->i", vectors, vectors)
    bad: BoolArray = ~(np.isfinite(squares) & (squares > 0))
    odd = vectors[bad]
    bad[bad] = ~np.isfinite(odd).all(axis=1) | ~odd.any(axis=1)
    return bad


def dequantize(
    stored: NDArray[Any], precision: Precision, dim: int, ranges: Float32Array | None = None
) -> Float32Array:
    """The best float32 [n, dim] for stored vectors: bits become -1 and 1, int8/uint8 the middle of their step."""
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
    """float32 [dim]: the width of one of 255 steps; a column that never varied gets 1, so that it divides."""
    steps = (ranges[1] - ranges[0]) / 255
    return np.asarray(np.where(steps > 0, steps, 1), np.float32)


def truncate_and_normalize(vectors: Float32Array, truncate_dim: int | None, normalize: bool | None) -> Float32Array:
    """The first `truncate_dim` columns, renormalised to length 1 unless `normalize` is False."""
    if truncate_dim is None or truncate_dim >= vectors.shape[1]:
        return vectors
    cut = vectors[:, :truncate_dim]
    if normalize is False:
        return np.ascontiguousarray(cut)
    return normalize_rows(cut)
