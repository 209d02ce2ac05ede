"""Errors of inference engines as errors of embedcli."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from embedcli.core.errors import DeviceOutOfMemoryError

if TYPE_CHECKING:
    pass


OPENVINO_OUT_OF_MEMORY_SIGNS = (
    "failed to allocate",
    "can not allocate",
    "cannot allocate",
    "can't alloc",
    "bad_alloc",
    "out of memory",
    "not enough memory",
)


# OpenVINO puts places in its own source before what happened.
EXCEPTION_LOCATION_PREFIX = "Exception from "


def is_out_of_memory(error: BaseException, signs: tuple[str, ...] = OPENVINO_OUT_OF_MEMORY_SIGNS) -> bool:
    """Whether an error says that memory could not be had; `signs` are the words by which a library says it."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in signs)


@contextmanager
def translate_memory_errors(signs: tuple[str, ...] = OPENVINO_OUT_OF_MEMORY_SIGNS) -> Iterator[None]:
    """Turn a refusal to allocate into OutOfMemory; `signs` as in `out_of_memory`."""
    refused = ""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        refused = first_line(error)
        if not is_out_of_memory(error, signs):
            raise
    if refused:
        # Raised outside the handler: inside, the error's frames would keep the batch's memory.
        raise DeviceOutOfMemoryError(refused)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if lines[0].startswith(EXCEPTION_LOCATION_PREFIX) else 0][:300]
