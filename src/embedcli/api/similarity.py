"""Similarities of vectors, as sentence-transformers defines them."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedcli.core.errors import UsageError
from embedcli.core.vectors import normalize_rows


def compute_similarity(one: Any, two: Any, function: str) -> Any:
    """Compute the similarities of all pairs of vectors.

    Args:
        one: [n, dim] or [dim]: an array, a tensor, or a list of vectors.
        two: [m, dim] or [dim].
        function: "cosine", "dot", or "euclidean" or "manhattan" for the negative of the distance.

    Returns:
        float [n, m], higher for vectors that are more alike; a tensor if `one` or `two` is one, else an array.

    Raises:
        UsageError: The vectors have different dimensions, or a value is not a vector.
    """
    left, right = _read_matrix(one), _read_matrix(two)
    _check_dimensions(left, right)
    if function in ("euclidean", "manhattan"):
        order = 2 if function == "euclidean" else 1
        scores = np.empty((len(left), len(right)), np.result_type(left, right))
        for row, vector in enumerate(left):
            scores[row] = -np.linalg.norm(right - vector, ord=order, axis=1)
    else:
        scores = _scale(left, function) @ _scale(right, function).T
    return _as_given(scores, one, two)


def compute_pairwise_similarity(one: Any, two: Any, function: str) -> Any:
    """Compute the similarity of each vector with the one at the same index.

    Args:
        one: [n, dim], as in `compute_similarity`.
        two: [n, dim].
        function: As in `compute_similarity`.

    Returns:
        float [n]; a tensor if `one` or `two` is one, else an array.

    Raises:
        UsageError: The vectors differ in number or dimensions.
    """
    left, right = _read_matrix(one), _read_matrix(two)
    _check_dimensions(left, right)
    if len(left) != len(right):
        raise UsageError(f"{len(left)} and {len(right)} vectors cannot be paired", "give as many vectors on both sides")
    if function in ("euclidean", "manhattan"):
        scores = -np.linalg.norm(left - right, ord=2 if function == "euclidean" else 1, axis=1)
    else:
        scores = np.einsum("ij,ij->i", _scale(left, function), _scale(right, function))
    return _as_given(scores, one, two)


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of PyTorch, found without importing it."""
    return type(value).__module__.partition(".")[0] == "torch"


def _read_matrix(given: Any) -> Any:
    """The vectors as floats [n, dim]."""
    rows = [_to_array(vector) for vector in given] if isinstance(given, list | tuple) else _to_array(given)
    matrix = np.atleast_2d(np.asarray(rows))
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise UsageError("similarity takes vectors, and got something else", "give what encode returns")
    return matrix if matrix.dtype in (np.float32, np.float64) else matrix.astype(np.float32)


def _to_array(value: Any) -> Any:
    return value.detach().cpu().float().numpy() if is_tensor(value) else value


def _check_dimensions(left: Any, right: Any) -> None:
    if left.shape[1] != right.shape[1]:
        raise UsageError(
            f"vectors of {left.shape[1]} and {right.shape[1]} dimensions cannot be compared",
            "compare vectors of one model with the same truncate_dim and precision",
        )


def _scale(matrix: Any, function: str) -> Any:
    return normalize_rows(matrix) if function == "cosine" else matrix


def _as_given(scores: Any, one: Any, two: Any) -> Any:
    both = [value[0] if isinstance(value, list | tuple) and len(value) else value for value in (one, two)]
    if any(map(is_tensor, both)):
        from embedcli.encoders.torch.tensors import to_tensor

        return to_tensor(scores)
    return scores
