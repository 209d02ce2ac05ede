"""Stored precision: the formulas of sentence-transformers, and back again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedcli import precision

RNG = np.random.default_rng(7)
VECTORS = RNG.standard_normal((200, 24)).astype(np.float32)
RANGES = precision.ranges_of(VECTORS)


@pytest.mark.parametrize("kind", ["int8", "uint8", "binary", "ubinary"])
def test_equal_to_sentence_transformers(kind: Any) -> None:
    from sentence_transformers.util import quantize_embeddings

    theirs = quantize_embeddings(VECTORS, kind, ranges=RANGES if kind.endswith("int8") else None)
    np.testing.assert_array_equal(precision.store(VECTORS, kind, RANGES), theirs)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
def test_what_is_restored_is_stored_as_the_same_again(kind: Any) -> None:
    stored = precision.store(VECTORS, kind, RANGES)
    assert stored.dtype == precision.DTYPES[kind]
    assert stored.shape == (200, precision.width(24, kind))
    floats = precision.restore(stored, kind, 24, RANGES)
    np.testing.assert_array_equal(precision.store(floats, kind, RANGES), stored)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_restored_values_are_within_a_step(kind: Any) -> None:
    floats = precision.restore(precision.store(VECTORS, kind, RANGES), kind, 24, RANGES)
    assert (np.abs(floats - VECTORS) <= precision.step(RANGES) * 1.001).all()


def test_values_outside_the_ranges_are_clipped_not_wrapped() -> None:
    ranges = np.array([[-1.0], [1.0]], np.float32)
    assert precision.store(np.array([[-9.0], [9.0]], np.float32), "uint8", ranges).tolist() == [[0], [255]]
    assert precision.store(np.array([[-9.0], [9.0]], np.float32), "int8", ranges).tolist() == [[-128], [127]]


def test_a_constant_column_does_not_divide_by_zero() -> None:
    ranges = np.array([[0.5], [0.5]], np.float32)
    assert precision.store(np.array([[0.5]], np.float32), "uint8", ranges).tolist() == [[0]]


def test_bits_of_a_width_that_is_no_multiple_of_eight() -> None:
    vectors = np.array([[1, -1, 1, -1, 1, -1, 1, -1, 1, 1]], np.float32)
    stored = precision.store(vectors, "ubinary")
    assert stored.tolist() == [[0b10101010, 0b11000000]]
    np.testing.assert_array_equal(precision.restore(stored, "ubinary", 10), vectors)


def test_int8_without_ranges_is_refused() -> None:
    with pytest.raises(ValueError, match="needs ranges"):
        precision.store(VECTORS, "int8")
