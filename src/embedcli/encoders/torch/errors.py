"""Errors of PyTorch and its drivers as errors of embedcli."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from embedcli.core.errors import ModelError, UsageError, first_line
from embedcli.encoders.errors import translate_memory_errors
from embedcli.models.files import ModelFiles

TORCH_OUT_OF_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")
# After one of these failures a device does not respond again in the same process.
DEVICE_FAILURE_SIGNS = (
    "cuda error",
    "cuda driver",
    "cudnn",
    "cublas",
    "device-side",
    "hip error",
    "mps backend",
    "xpu",
    "sycl",
)


@contextmanager
def translate_device_errors(device: str) -> Iterator[None]:
    """Raise DeviceOutOfMemoryError for a failed allocation, and ModelError for a device that fails."""
    try:
        with translate_memory_errors(TORCH_OUT_OF_MEMORY_SIGNS):
            yield
    except RuntimeError as error:
        if device == "cpu" or not any(sign in str(error).lower() for sign in DEVICE_FAILURE_SIGNS):
            raise
        raise ModelError(
            f"the device {device} failed: {first_line(error)}",
            "run the same command again to resume; if it fails again, check the driver or use --device cpu",
        ) from error


def _is_caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an error, or one that it was raised from or after, is of a kind."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def translate_load_errors(files: ModelFiles) -> Iterator[None]:
    """Raise ModelError, which names the model's folder, for any error while loading it."""
    try:
        yield
    except (ModelError, UsageError):
        raise
    except Exception as error:
        if _is_caused_by(error, UnpicklingError):
            raise ModelError(
                f"the weights in {files.path} are a pickle with more than tensors in it, which could run code",
                "use a model with safetensors, or convert it where you trust it: model.save(PATH)",
            ) from error
        raise ModelError(
            f"{files.name} cannot be loaded from {files.path}: {first_line(error)}",
            "check that the folder is complete and that the installed transformers supports its architecture"
            " (-v shows more)",
        ) from error
