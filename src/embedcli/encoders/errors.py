"""Out-of-memory errors of inference libraries as errors of embedcli."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from embedcli.core.errors import DeviceOutOfMemoryError, first_line

OPENVINO_OUT_OF_MEMORY_SIGNS = (
    "failed to allocate",
    "can not allocate",
    "cannot allocate",
    "can't alloc",
    "bad_alloc",
    "out of memory",
    "not enough memory",
)


def is_out_of_memory(error: BaseException, signs: tuple[str, ...] = OPENVINO_OUT_OF_MEMORY_SIGNS) -> bool:
    """Whether an error means that an allocation failed.

    Args:
        error: Any error.
        signs: Phrases, in lower case, by which a library without an error type of its own reports it.
    """
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs)


@contextmanager
def translate_memory_errors(signs: tuple[str, ...] = OPENVINO_OUT_OF_MEMORY_SIGNS) -> Iterator[None]:
    """Raise DeviceOutOfMemoryError where the body fails for lack of memory; `signs` as in `is_out_of_memory`."""
    reason = ""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = first_line(error)
        if not is_out_of_memory(error, signs):
            raise
    if reason:
        # Raised outside the handler: inside, the error's frames would keep the batch's memory.
        raise DeviceOutOfMemoryError(reason)
