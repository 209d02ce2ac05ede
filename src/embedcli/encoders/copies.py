"""Copies to and from a device that nobody waits for, where an event can tell that they have arrived.

`torch` is handed in: one module owns that import.
"""

from __future__ import annotations

from typing import Any

# Kinds of device whose torch module has streams and events. Not MPS: its copies to the host are not ordered with
# reads of the host's memory, and torch gives no event for them; there every copy waits.
EVENTS = ("cuda", "xpu")


class Copies:
    """The copies of one device."""

    def __init__(self, torch: Any, device: str) -> None:
        kind = device.partition(":")[0]
        self._torch, self._device = torch, device
        self._module = getattr(torch, kind) if kind in EVENTS else None

    def put(self, array: Any) -> Any:
        """A numpy array on the device."""
        tensor = self._torch.from_numpy(array)
        if self._module is None:
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def fetch(self, vectors: Any) -> tuple[Any, Any]:
        """Float32 vectors on their way to the host, and the event to wait for; None if they may be read at once."""
        if self._module is None:
            return vectors, None
        host = self._torch.empty(vectors.shape, dtype=self._torch.float32, pin_memory=True)
        host.copy_(vectors, non_blocking=True)
        ready = self._module.Event()
        ready.record(self._module.current_stream(vectors.device))
        return host, ready

    def empty_cache(self) -> None:
        """Give back what torch keeps of the device's memory."""
        module = getattr(self._torch, self._device.partition(":")[0], None)
        if module is not None and hasattr(module, "empty_cache"):
            module.empty_cache()
