"""Fit the token budget of a batch to a device's memory, measured with a trial batch before the first real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from embedcli.core.encoder import Tokens
from embedcli.core.errors import DeviceOutOfMemoryError

# The trial batch: large enough that fixed costs do not count, and small for any device that holds the model.
PROBE_BATCH_TOKENS = 8192
# The kinds of device whose memory torch counts.
MEASURABLE_DEVICES = ("cuda", "xpu")
# Of the free memory; the rest is for the next batch in flight and for other processes.
MAX_MEMORY_SHARE = 0.4


def fit_token_budget(
    preferred: int, longest: int, free_bytes: Callable[[], int | None], peak_bytes: Callable[[int], int]
) -> int:
    """Choose how many tokens a batch may have.

    Args:
        preferred: The token budget where memory does not limit it.
        longest: Tokens of the longest possible row.
        free_bytes: Reads the free memory; None if the device does not report it.
        peak_bytes: Runs a batch of so many tokens, in rows of `longest`, and returns the bytes that it needed.

    Returns:
        `preferred`, or what fits into MAX_MEMORY_SHARE of the free memory, but at least one row. Where the free memory
        is not known it is `preferred`, and the engine halves batches that do not fit.
    """
    trial_tokens = max(1, min(preferred, PROBE_BATCH_TOKENS) // longest) * longest
    try:
        needed = peak_bytes(trial_tokens)
    except DeviceOutOfMemoryError:
        return longest
    free = free_bytes()
    if needed <= 0 or free is None:
        return preferred
    return max(longest, min(preferred, int(MAX_MEMORY_SHARE * free * trial_tokens / needed)))


def repeat_token_rows(token: int, count: int, length: int) -> Tokens:
    """`count` rows of `length` times the same token."""
    ids = np.full(count * length, token, np.int32)
    return Tokens(ids, np.arange(count + 1, dtype=np.int64) * length, np.full(count, length, np.int32))


class DeviceMemoryProbe:
    """The memory of a device of one of MEASURABLE_DEVICES, as torch counts it."""

    def __init__(self, device: str) -> None:
        import torch

        self._module: Any = getattr(torch, device.partition(":")[0])
        self._device = device

    def read_free_bytes(self) -> int | None:
        """Free bytes, with those that torch reserves and does not use; None if the driver does not report them."""
        unused = self._module.memory_reserved(self._device) - self._module.memory_allocated(self._device)
        try:
            return int(self._module.mem_get_info(self._device)[0] + unused)
        except RuntimeError:  # drivers of some Intel cards
            return None

    def measure_peak(self, work: Callable[[], object]) -> int:
        """The largest number of bytes that `work` needed beyond those allocated before it."""
        before = self._module.memory_allocated(self._device)
        self._module.reset_peak_memory_stats(self._device)
        work()
        return int(self._module.max_memory_allocated(self._device) - before)
