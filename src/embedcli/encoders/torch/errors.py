"""What PyTorch and its drivers say when they refuse or fail, as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from embedcli.core.errors import ModelError, UsageError
from embedcli.encoders.errors import first_line, translate_memory_errors
from embedcli.models.files import ModelFiles

TORCH_OUT_OF_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")
# A device that has failed once answers nothing any more in this process.
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
    """Turn a refusal to allocate into OutOfMemory, and a device that fails into a ModelError."""
    try:
        with translate_memory_errors(TORCH_OUT_OF_MEMORY_SIGNS):
            yield
    except RuntimeError as error:
        if device == "cpu" or not any(words in str(error).lower() for words in DEVICE_FAILURE_SIGNS):
            raise
        raise ModelError(
            f"the device {device} failed: {first_line(error)}",
            "run the same command again to go on; if it fails again, look at the driver, or use --device cpu",
        ) from error


@contextmanager
def translate_load_errors(files: ModelFiles) -> Iterator[None]:
    """Turn whatever loading a model raises into a ModelError that names its folder."""
    try:
        yield
    except (ModelError, UsageError):
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ModelError(
            f"{files.name} cannot be loaded from {files.path}: {first}",
            "check that the folder is whole and that the installed transformers knows its architecture (-v shows more)",
        ) from error
