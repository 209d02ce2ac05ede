"""Merge similar vectors of a row, for --pool-factor: fewer vectors of tokens in the output of a multi-vector model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.errors import ModelError
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.models.refusals import is_installed

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array

# A vector of a shorter length is not scaled, as in torch.nn.functional.normalize.
MIN_LENGTH = 1e-12


def require_scipy() -> None:
    """Raise ModelError if SciPy, which finds the clusters, is not installed."""
    if not is_installed("scipy"):
        raise ModelError("--pool-factor needs SciPy, which is not installed", "pip install scipy")


def pool_tokens(vectors: MultiVectors, factor: int) -> MultiVectors:
    """Merge similar vectors of a row into their mean, scaled to length 1: about 1 of `factor` is left.

    Clusters are those of Ward's method on cosine distances, as in `HierarchicalTokenPooling` of sentence-transformers,
    whose import takes seconds. The first vector of a row and rows that are not finite stay as they are.

    Args:
        vectors: Vectors of documents, each of length 1.
        factor: 2 or more.
    """
    rows = np.split(vectors.values, vectors.offsets[1:-1]) if len(vectors) else []
    pooled = [_pool_row(row, factor) if np.isfinite(row).all() else row for row in rows]
    return MultiVectors(offsets_of([len(row) for row in pooled]), np.concatenate([vectors.values[:0], *pooled]))


def _pool_row(row: Float32Array, factor: int) -> Float32Array:
    first, others = row[:1], row[1:]
    count = max(len(others) // factor, 1)
    if count < len(others):
        clusters = _find_clusters(others, count)
        sums = np.zeros((int(clusters.max()) + 1, row.shape[1]), np.float32)
        np.add.at(sums, clusters, others)
        row = np.concatenate([first, sums / np.bincount(clusters).astype(np.float32)[:, None]])
    lengths = np.sqrt(np.square(row).sum(axis=1, keepdims=True))
    scaled: Float32Array = row / np.maximum(lengths, np.float32(MIN_LENGTH))
    return scaled


def _find_clusters(vectors: Float32Array, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The number of each vector's cluster, from 0 and without gaps; at most `count` clusters."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distances = np.clip(1 - vectors @ vectors.T, 0, 2)
    tree = linkage(squareform(distances, checks=False), method="ward")
    _, clusters = np.unique(fcluster(tree, t=count, criterion="maxclust"), return_inverse=True)
    return clusters.astype(np.int64)
