"""What an accelerator's driver says when it refuses or fails, as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from embedcli.contracts import ModelError, OutOfMemory

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
# A device that has failed once answers nothing any more in this process.
FAILED = ("cuda error", "cuda driver", "cudnn", "cublas", "device-side", "hip error", "mps backend", "xpu", "sycl")


@contextmanager
def device_faults(device: str) -> Iterator[None]:
    """Turn a refusal to allocate into OutOfMemory, and a device that fails into a ModelError."""
    refused = ""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = str(error).lower()
        if isinstance(error, MemoryError) or any(words in told for words in OUT_OF_MEMORY):
            refused = str(error) or "out of memory"
        elif device != "cpu" and any(words in told for words in FAILED):
            line = next(line for line in str(error).splitlines() if line.strip())
            raise ModelError(
                f"the device {device} failed: {line[:300]}",
                "run the same command again to go on; if it fails again, look at the driver, or use --device cpu",
            ) from error
        else:
            raise
    if refused:
        # Raised outside the handler: inside, the error's frames would keep the batch's memory.
        raise OutOfMemory(refused)
