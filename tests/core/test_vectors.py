"""Normalised vectors have length 1, whatever their number format; rows of zeros stay zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedcli.core.vectors import normalize_rows


@pytest.mark.parametrize("number_format", [np.float32, np.float64])
def test_rows_get_length_one_in_float32(number_format: Any) -> None:
    normalized = normalize_rows(np.array([[3, 4], [0, 0], [-1e-15, 0], [0, 1e15]], number_format))
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, np.array([[0.6, 0.8], [0, 0], [-1, 0], [0, 1]]), rtol=1e-6)


def test_rows_shorter_than_the_minimum_stay_short() -> None:
    normalized = normalize_rows(np.array([[1e-13, 0], [0, 1e-11]], np.float32), min_length=1e-12)
    np.testing.assert_allclose(normalized, np.array([[0.1, 0], [0, 1]]), rtol=1e-6)
