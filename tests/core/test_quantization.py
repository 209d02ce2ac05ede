"""Quantization: the formulas of sentence-transformers, and back to float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embedcli.core import quantization

RNG = np.random.default_rng(7)
VECTORS = RNG.standard_normal((200, 24)).astype(np.float32)
RANGES = quantization.compute_ranges(VECTORS)


@pytest.mark.parametrize("kind", ["int8", "uint8", "binary", "ubinary"])
def test_equal_to_sentence_transformers(kind: Any) -> None:
    from sentence_transformers.util import quantize_embeddings

    expected = quantize_embeddings(VECTORS, kind, ranges=RANGES if kind.endswith("int8") else None)
    np.testing.assert_array_equal(quantization.quantize(VECTORS, kind, RANGES), expected)


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "uint8", "binary", "ubinary"])
def test_restored_vectors_are_stored_as_the_same_values(kind: Any) -> None:
    stored = quantization.quantize(VECTORS, kind, RANGES)
    assert stored.dtype == quantization.STORAGE_DTYPES[kind]
    assert stored.shape == (200, quantization.stored_width(24, kind))
    floats = quantization.dequantize(stored, kind, 24, RANGES)
    np.testing.assert_array_equal(quantization.quantize(floats, kind, RANGES), stored)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_restored_values_are_within_a_step(kind: Any) -> None:
    floats = quantization.dequantize(quantization.quantize(VECTORS, kind, RANGES), kind, 24, RANGES)
    assert (np.abs(floats - VECTORS) <= quantization.quantization_step(RANGES) * 1.001).all()


def test_values_outside_the_ranges_are_clipped_not_wrapped() -> None:
    ranges = np.array([[-1.0], [1.0]], np.float32)
    assert quantization.quantize(np.array([[-9.0], [9.0]], np.float32), "uint8", ranges).tolist() == [[0], [255]]
    assert quantization.quantize(np.array([[-9.0], [9.0]], np.float32), "int8", ranges).tolist() == [[-128], [127]]


def test_a_constant_dimension_does_not_divide_by_zero() -> None:
    ranges = np.array([[0.5], [0.5]], np.float32)
    assert quantization.quantize(np.array([[0.5]], np.float32), "uint8", ranges).tolist() == [[0]]


def test_bits_of_a_width_that_is_not_a_multiple_of_eight() -> None:
    vectors = np.array([[1, -1, 1, -1, 1, -1, 1, -1, 1, 1]], np.float32)
    stored = quantization.quantize(vectors, "ubinary")
    assert stored.tolist() == [[0b10101010, 0b11000000]]
    np.testing.assert_array_equal(quantization.dequantize(stored, "ubinary", 10), vectors)


@given(
    arrays(np.float32, (4, 3), elements=st.floats(-(2**20), 2**20, width=32) | st.floats(-(2**-20), 2**-20, width=32))
)
@example(np.array([[65519.99, 0, 0], [65520, 0, 0], [2**-25, 0, 0], [2**-25 * 1.0001, 0, 0]], np.float32))
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_storable_vectors_are_finite_and_not_zero_when_stored(vectors: Any) -> None:
    for kind in ("float32", "float16"):
        stored = np.asarray(vectors, kind)
        assert quantization.is_storable(vectors, kind).tolist() == (np.isfinite(stored).all(1) & stored.any(1)).tolist()


def test_int8_without_ranges_is_refused() -> None:
    with pytest.raises(ValueError, match="needs ranges"):
        quantization.quantize(VECTORS, "int8")
