"""Minimum, maximum and quantiles of a stream of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Quantiles are exact up to this many values; beyond, they are those of an evenly spaced sample of at least half of it.
MAX_HELD_VALUES = 1 << 20


class StreamingQuantiles:
    """Minimum, maximum and quantiles of a stream of numbers, in bounded memory."""

    def __init__(self) -> None:
        self.count = 0
        self.minimum = float("inf")
        self.maximum = float("-inf")
        self._step = 1
        self._held: list[NDArray[Any]] = []
        self._size = 0

    def add(self, values: NDArray[Any]) -> None:
        if not len(values):
            return
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        sample = values[-self.count % self._step :: self._step]
        self.count += len(values)
        self._held.append(np.array(sample))
        self._size += len(sample)
        while self._size > MAX_HELD_VALUES:
            self._held = [np.concatenate(self._held)[::2]]
            self._size = len(self._held[0])
            self._step *= 2

    def held_values(self) -> NDArray[Any]:
        """Return all numbers, or the evenly spaced sample of them."""
        return np.concatenate(self._held) if self._held else np.empty(0)

    def quantile(self, q: float) -> float:
        """Return the value below which a fraction `q` of the numbers is."""
        return float(np.quantile(self.held_values(), q))

    def summary(self, **quantiles: float) -> dict[str, float] | None:
        """Return `min`, the named quantiles and `max`; None without numbers."""
        if not self.count:
            return None
        values = {name: self.quantile(q) for name, q in quantiles.items()}
        return {"min": self.minimum, **values, "max": self.maximum}
