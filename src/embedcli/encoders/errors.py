"""Errors of inference engines as errors of embedcli."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from embedcli.core.errors import OutOfMemory

if TYPE_CHECKING:
    pass


OUT_OF_MEMORY = (
    "failed to allocate",
    "can not allocate",
    "cannot allocate",
    "can't alloc",
    "bad_alloc",
    "out of memory",
    "not enough memory",
)


# OpenVINO puts places in its own source before what happened.
PLACE = "Exception from "


def out_of_memory(error: BaseException, signs: tuple[str, ...] = OUT_OF_MEMORY) -> bool:
    """Whether an error says that memory could not be had; `signs` are the words by which a library says it."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in signs)


@contextmanager
def memory(signs: tuple[str, ...] = OUT_OF_MEMORY) -> Iterator[None]:
    """Turn a refusal to allocate into OutOfMemory; `signs` as in `out_of_memory`."""
    refused = ""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        refused = told(error)
        if not out_of_memory(error, signs):
            raise
    if refused:
        # Raised outside the handler: inside, the error's frames would keep the batch's memory.
        raise OutOfMemory(refused)


def told(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if lines[0].startswith(PLACE) else 0][:300]
