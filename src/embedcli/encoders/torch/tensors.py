"""Convert between arrays and tensors, for the Python API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def to_tensor(array: NDArray[Any]) -> Any:
    """Return a `torch.Tensor` on the CPU that shares the memory of an array."""
    import torch

    return torch.from_numpy(array)
