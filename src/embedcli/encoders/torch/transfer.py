"""Copies to and from a device that nobody waits for, where an event can tell that they have arrived.

`torch` is handed in: one module owns that import.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Kinds of device whose torch module has streams and events. Not MPS: its copies to the host are not ordered with
# reads of the host's memory, and torch gives no event for them; there every copy waits.
DEVICES_WITH_EVENTS = ("cuda", "xpu")


@dataclass(frozen=True)
class PendingVectors:
    """Vectors, whether each of them is finite and not zero, and the event to wait for before either is read.

    Without an event the vectors may be read at once, and nobody has looked at them.
    """

    vectors: Any
    has_usable_vectors: Any = None
    ready_event: Any = None


class DeviceTransfer:
    """The copies of one device. With `half`, vectors come back as float16 where nobody waits for them."""

    def __init__(self, torch: Any, device: str, as_float16: bool = False) -> None:
        kind = device.partition(":")[0]
        self._torch, self._device, self._half = torch, device, as_float16
        self._module = getattr(torch, kind) if kind in DEVICES_WITH_EVENTS else None

    def to_device(self, array: Any) -> Any:
        """A numpy array on the device."""
        tensor = self._torch.from_numpy(array)
        if self._module is None:
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def to_host(self, vectors: Any) -> PendingVectors:
        """Float32 vectors [rows, dim] on their way to the host, looked at on the device where nobody waits for that."""
        if self._module is None:
            return PendingVectors(vectors)
        sound = self._torch.isfinite(vectors).all() & vectors.any(1).all()
        home = self._home(vectors.half() if self._half else vectors)
        fetched = PendingVectors(home, self._home(sound), self._module.Event())
        fetched.ready_event.record(self._module.current_stream(vectors.device))
        return fetched

    def _home(self, tensor: Any) -> Any:
        host = self._torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def release_cached_memory(self) -> None:
        """Give back what torch keeps of the device's memory."""
        module = getattr(self._torch, self._device.partition(":")[0], None)
        if module is not None and hasattr(module, "empty_cache"):
            module.empty_cache()
