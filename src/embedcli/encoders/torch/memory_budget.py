"""How many tokens a batch may have on a card: measured with its longest rows before the first one comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from embedcli.core.encoder import Tokens
from embedcli.core.errors import DeviceOutOfMemoryError

# The trial batch: enough that fixed costs do not count, and small on any card that holds the model.
PROBE_BATCH_TOKENS = 8192
# The kinds of device whose memory torch counts.
MEASURABLE_DEVICES = ("cuda", "xpu")
# Of the free memory: the rest is for the batch in flight behind this one, and for what others take meanwhile.
MAX_MEMORY_SHARE = 0.4


def fit_token_budget(wanted: int, longest: int, free: Callable[[], int | None], peak: Callable[[int], int]) -> int:
    """Tokens per batch: `wanted`, or what fits into SHARE of the `free` bytes, but at least one row of `longest`.

    Where nobody knows what is free, it is `wanted`: what does not fit is halved when it comes.

    `peak(tokens)` runs a batch of that many tokens in rows of `longest` and returns the bytes that it needed. If even
    the trial batch does not fit, batches are of one row, and what is too long for that is told when it comes.
    """
    trial = max(1, min(wanted, PROBE_BATCH_TOKENS) // longest) * longest
    try:
        needed = peak(trial)
    except DeviceOutOfMemoryError:
        return longest
    room = free()
    if needed <= 0 or room is None:
        return wanted
    return max(longest, min(wanted, int(MAX_MEMORY_SHARE * room * trial / needed)))


def repeat_token_rows(token: int, count: int, length: int) -> Tokens:
    """`count` rows of `length` times the same token."""
    ids = np.full(count * length, token, np.int32)
    return Tokens(ids, np.arange(count + 1, dtype=np.int64) * length, np.full(count, length, np.int32))


class DeviceMemoryProbe:
    """The memory of a device of one of KINDS, as torch counts it. `torch` is handed in: one module owns that import."""

    def __init__(self, torch: Any, device: str) -> None:
        self._module, self._device = getattr(torch, device.partition(":")[0]), device

    def read_free_bytes(self) -> int | None:
        """Bytes that nobody has, and those that torch keeps for itself without using them; None if nobody knows."""
        kept = self._module.memory_reserved(self._device) - self._module.memory_allocated(self._device)
        try:
            return int(self._module.mem_get_info(self._device)[0] + kept)
        except RuntimeError:  # drivers of some Intel cards do not tell
            return None

    def measure_peak(self, work: Callable[[], object]) -> int:
        """Bytes that `work` needed at most beyond what was there before."""
        before = self._module.memory_allocated(self._device)
        self._module.reset_peak_memory_stats(self._device)
        work()
        return int(self._module.max_memory_allocated(self._device) - before)
