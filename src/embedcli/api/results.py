"""Bring vectors into the form that a call asks for: dimensions, length, number format, type."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, get_args

from embedcli.core.errors import UsageError
from embedcli.core.quantization import STORAGE_DTYPES, compute_ranges, quantize, truncate_and_normalize
from embedcli.core.types import Precision
from embedcli.core.vectors import normalize_rows
from embedcli.models.kind_options import MULTI_VECTOR_PRECISIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.multi_vectors import MultiVectors
    from embedcli.core.types import Float32Array

log = logging.getLogger("embedcli")
# With fewer, sentence-transformers warns too.
MIN_TEXTS_FOR_RANGES = 100


def shape_vectors(vectors: Float32Array, truncate_dim: int | None, normalize: bool | None) -> Float32Array:
    """Truncate and scale vectors.

    Args:
        vectors: float32 [n, dim].
        truncate_dim: How many dimensions to keep; None: all.
        normalize: True scales the vectors to length 1, None those that were truncated, False none.

    Raises:
        UsageError: `truncate_dim` is not between 1 and dim.
    """
    dim = vectors.shape[1]
    if truncate_dim is not None and not 1 <= truncate_dim <= dim:
        raise UsageError(
            f"truncate_dim={truncate_dim} is not between 1 and the {dim} dimensions of the vectors",
            f"use truncate_dim={max(1, dim // 2)}, or leave it out",
        )
    shaped = truncate_and_normalize(vectors, truncate_dim, normalize)
    return normalize_rows(shaped, min_length=1e-12) if normalize else shaped


def convert_precision(vectors: Float32Array, precision: Precision, of: str = "texts") -> NDArray[Any]:
    """Convert vectors to a number format.

    Args:
        vectors: float32 [n, dim].
        precision: The format. The value ranges of int8 and uint8 are those of `vectors`, as in sentence-transformers.
        of: What has a vector each, for the warning that they are few.

    Returns:
        [n, dim], or [n, ceil(dim / 8)] for binary and ubinary.

    Raises:
        UsageError: The format is unknown, or it needs ranges and there are fewer than two vectors.
    """
    if precision not in get_args(Precision):
        raise UsageError(
            f"precision={precision!r} is not a valid choice", f"choose from {', '.join(get_args(Precision))}"
        )
    if precision not in ("int8", "uint8"):
        return quantize(vectors, precision)
    if not len(vectors):
        return vectors.astype(STORAGE_DTYPES[precision])
    if len(vectors) < 2:
        raise UsageError(
            f"precision={precision!r} needs the value ranges of many texts, and got one text",
            "give all texts at once, or use precision='float16'",
        )
    if len(vectors) < MIN_TEXTS_FOR_RANGES:
        log.warning("%s ranges are computed from these %d %s alone: use more texts", precision, len(vectors), of)
    return quantize(vectors, precision, compute_ranges(vectors))


def convert_token_vectors(vectors: MultiVectors, precision: Precision, *, to_numpy: bool, to_tensor: bool) -> list[Any]:
    """The vectors of each text's tokens in a number format: arrays [tokens, dim], or tensors without `to_numpy`.

    Raises:
        UsageError: As `convert_precision`; or the format is not for vectors of tokens.
    """
    if precision not in MULTI_VECTOR_PRECISIONS:
        raise UsageError(
            f"precision={precision!r} cannot be used with a vector for each token",
            f"choose from {', '.join(MULTI_VECTOR_PRECISIONS)}",
        )
    stored = convert_precision(vectors.values, precision, "tokens")
    bounds = zip(vectors.offsets[:-1], vectors.offsets[1:], strict=True)
    parts = [stored[start:stop] for start, stop in bounds]
    return [convert_type(part, to_numpy=to_numpy, to_tensor=to_tensor or not to_numpy) for part in parts]


def convert_type(vectors: NDArray[Any], *, to_numpy: bool, to_tensor: bool) -> Any:
    """Return an array, one tensor (`to_tensor`), or without both a list of tensors."""
    if to_numpy and not to_tensor:
        return vectors
    from embedcli.encoders.torch.tensors import to_tensor as make_tensor

    tensor = make_tensor(vectors)
    return tensor if to_tensor else list(tensor)
