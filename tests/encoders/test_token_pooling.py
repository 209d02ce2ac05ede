"""Merging similar vectors of a row: the clusters of sentence-transformers, without importing it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.encoders.token_pooling import pool_tokens

LENGTHS = (0, 1, 2, 3, 4, 17, 64, 200)


def random_vectors() -> MultiVectors:
    random = np.random.default_rng(0)
    values = random.standard_normal((sum(LENGTHS), 24)).astype(np.float32)
    values[40:50] = values[30:40] + random.standard_normal((10, 24)).astype(np.float32) * 0.01
    return MultiVectors(offsets_of(LENGTHS), values / np.linalg.norm(values, axis=1, keepdims=True))


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_vectors_are_those_of_sentence_transformers(factor: int) -> None:
    import torch
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    vectors = random_vectors()
    rows = np.split(vectors.values, vectors.offsets[1:-1])
    expected = [HierarchicalTokenPooling(factor).pool([torch.from_numpy(row)])[0].numpy() for row in rows]
    ours = pool_tokens(vectors, factor)
    assert np.diff(ours.offsets).tolist() == [len(row) for row in expected]
    np.testing.assert_allclose(ours.values, np.concatenate(expected), atol=1e-6)
    assert ours.values.dtype == np.float32


def test_rows_that_are_not_finite_stay_as_they_are() -> None:
    vectors = random_vectors()
    vectors.values[-1, 0] = np.nan
    pooled = pool_tokens(vectors, 2)
    np.testing.assert_array_equal(pooled.values[pooled.offsets[-2] :], vectors.values[vectors.offsets[-2] :])


def test_pytorch_is_not_imported() -> None:
    program = (
        "import sys, numpy as np\n"
        "from embedcli.core.multi_vectors import MultiVectors\n"
        "from embedcli.encoders.token_pooling import pool_tokens\n"
        "pool_tokens(MultiVectors(np.array([0, 9]), np.eye(9, dtype=np.float32)), 2)\n"
        "print([name for name in ('torch', 'sentence_transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
