"""Copies between host and device, asynchronous where the device has events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

# Kinds of device whose torch module has streams and events. MPS has none: its copies to the host are not ordered with
# reads of the host's memory, so every copy waits there.
DEVICES_WITH_EVENTS = ("cuda", "xpu")


@dataclass(frozen=True)
class PendingVectors:
    """Vectors on their way to the host.

    Attributes:
        vectors: [rows, dim], float32 or float16.
        has_usable_vectors: Whether every vector is finite and not zero, computed on the device. None: not checked.
        ready_event: Wait for it before reading the others. None: they are ready.
    """

    vectors: torch.Tensor
    has_usable_vectors: torch.Tensor | None = None
    ready_event: Any = None


class DeviceTransfer:
    """The copies of one device. With `as_float16`, asynchronous copies bring vectors back as float16."""

    def __init__(self, device: str, as_float16: bool = False) -> None:
        self._device, self._as_float16 = device, as_float16
        self._kind = device.partition(":")[0]
        self._has_events = self._kind in DEVICES_WITH_EVENTS

    def to_device(self, array: NDArray[Any]) -> torch.Tensor:
        """Copy a numpy array to the device."""
        import torch

        tensor = torch.from_numpy(array)
        if not self._has_events:
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def to_host(self, vectors: torch.Tensor) -> PendingVectors:
        """Start copying float32 vectors [rows, dim] to the host; asynchronous copies check them on the device."""
        import torch

        if not self._has_events:
            return PendingVectors(vectors)
        is_usable = torch.isfinite(vectors).all() & vectors.any(1).all()
        on_host = self._copy_to_host(vectors.half() if self._as_float16 else vectors)
        module = getattr(torch, self._kind)
        pending = PendingVectors(on_host, self._copy_to_host(is_usable), module.Event())
        pending.ready_event.record(module.current_stream(vectors.device))
        return pending

    def _copy_to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        import torch

        on_host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return on_host.copy_(tensor, non_blocking=True)

    def release_cached_memory(self) -> None:
        """Give the device memory that torch keeps for reuse back to the driver."""
        import torch

        module = getattr(torch, self._kind, None)
        if module is not None and hasattr(module, "empty_cache"):
            module.empty_cache()
