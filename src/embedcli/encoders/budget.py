"""How many tokens a batch may have on a card: measured with its longest rows before the first one comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from embedcli.contracts import OutOfMemory, Tokens

# The trial batch: enough that fixed costs do not count, and small on any card that holds the model.
TRIAL_TOKENS = 8192
# Of the free memory: the rest is for the batch in flight behind this one, and for what others take meanwhile.
SHARE = 0.4


def fitting(wanted: int, longest: int, free: Callable[[], int], peak: Callable[[int], int]) -> int:
    """Tokens per batch: `wanted`, or what fits into SHARE of the `free` bytes, but at least one row of `longest`.

    `peak(tokens)` runs a batch of that many tokens in rows of `longest` and returns the bytes that it needed. If even
    the trial batch does not fit, batches are of one row, and what is too long for that is told when it comes.
    """
    trial = max(1, min(wanted, TRIAL_TOKENS) // longest) * longest
    try:
        needed = peak(trial)
    except OutOfMemory:
        return longest
    if needed <= 0:
        return wanted
    return max(longest, min(wanted, int(SHARE * free() * trial / needed)))


def rows_of(token: int, count: int, length: int) -> Tokens:
    """`count` rows of `length` times the same token."""
    ids = np.full(count * length, token, np.int32)
    return Tokens(ids, np.arange(count + 1, dtype=np.int64) * length, np.full(count, length, np.int32))


class Gauge:
    """The memory of a CUDA device, as torch counts it. `torch` is handed in: one module owns that import."""

    def __init__(self, torch: Any, device: str) -> None:
        self._cuda, self._device = torch.cuda, device

    def free(self) -> int:
        """Bytes that nobody has, and those that torch keeps for itself without using them."""
        kept = self._cuda.memory_reserved(self._device) - self._cuda.memory_allocated(self._device)
        return int(self._cuda.mem_get_info(self._device)[0] + kept)

    def peak_of(self, work: Callable[[], object]) -> int:
        """Bytes that `work` needed at most beyond what was there before."""
        before = self._cuda.memory_allocated(self._device)
        self._cuda.reset_peak_memory_stats(self._device)
        work()
        return int(self._cuda.max_memory_allocated(self._device) - before)
