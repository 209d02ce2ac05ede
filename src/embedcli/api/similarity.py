"""Similarities of vectors, as sentence-transformers defines them."""

from __future__ import annotations

from typing import Any

import numpy as np

from embedcli.analysis.similarities import maxsim
from embedcli.core.errors import UsageError
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.core.vectors import normalize_rows

MAXSIM_FUNCTIONS = ("maxsim", "meanmaxsim")


def compute_similarity(one: Any, two: Any, function: str) -> Any:
    """Compute the similarities of all pairs of vectors.

    Args:
        one: [n, dim] or [dim]: an array, a tensor, or a list of vectors. With "maxsim" and "meanmaxsim" a list of
            vectors of tokens, each [tokens, dim], or those of a single text.
        two: [m, dim] or [dim], or vectors of tokens as in `one`.
        function: "cosine", "dot", or "euclidean" or "manhattan" for the negative of the distance; "maxsim", the largest
            dot product of each vector in `one` with one in `two`, summed, or "meanmaxsim", their mean.

    Returns:
        float [n, m], higher for vectors that are more alike; a tensor if `one` or `two` is one, else an array.

    Raises:
        UsageError: The vectors have different dimensions, or a value is not a vector.
    """
    if function in MAXSIM_FUNCTIONS:
        return _as_given(_compute_maxsim(_read_token_vectors(one), _read_token_vectors(two), function), one, two)
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
    has_tokens = function in MAXSIM_FUNCTIONS
    left, right = map(_read_token_vectors if has_tokens else _read_matrix, (one, two))
    if len(left) != len(right):
        raise UsageError(f"{len(left)} and {len(right)} vectors cannot be paired", "give as many vectors on both sides")
    if has_tokens:
        pairs = [_compute_maxsim(left[i : i + 1], right[i : i + 1], function)[0, 0] for i in range(len(left))]
        return _as_given(np.array(pairs, np.float32), one, two)
    _check_dimensions(left, right)
    if function in ("euclidean", "manhattan"):
        scores = -np.linalg.norm(left - right, ord=2 if function == "euclidean" else 1, axis=1)
    else:
        scores = np.einsum("ij,ij->i", _scale(left, function), _scale(right, function))
    return _as_given(scores, one, two)


def _compute_maxsim(left: MultiVectors, right: MultiVectors, function: str) -> Any:
    """float32 [n, m]."""
    _check_dimensions(left, right)
    scores = maxsim(left, right)
    return scores / np.maximum(left.lengths[:, None], 1, dtype=np.float32) if function == "meanmaxsim" else scores


def _read_token_vectors(given: Any) -> MultiVectors:
    """The vectors of tokens of one or several texts."""
    arrays = [np.asarray(_to_array(vectors)) for vectors in given] if isinstance(given, list | tuple) else []
    if not isinstance(given, list | tuple):
        whole = np.asarray(_to_array(given))
        arrays = [whole] if whole.ndim == 2 else list(whole)
    if not arrays or any(array.ndim != 2 or array.dtype.kind not in "fiu" for array in arrays):
        raise UsageError("similarity takes the vectors of tokens, and got something else", "give what encode returns")
    if len({array.shape[1] for array in arrays}) > 1:
        raise UsageError("the vectors of these texts differ in dimensions", "give what one call of encode returns")
    values = np.concatenate(arrays).astype(np.float32, copy=False)
    return MultiVectors(offsets_of([len(array) for array in arrays]), values)


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
