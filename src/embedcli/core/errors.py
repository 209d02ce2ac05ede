"""The error family and its exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int32]
    Rows = NDArray[np.int64]
    Bools = NDArray[np.bool_]


class EmbedcliError(Exception):
    """One sentence on what happened and where, and a hint on what to type next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint)


class UsageError(EmbedcliError):
    exit_code = 2


class ResumeError(UsageError):
    pass


class InputError(EmbedcliError):
    pass


class ModelError(EmbedcliError):
    pass


class OutputError(EmbedcliError):
    pass


class OutputLocked(OutputError):
    """Another process is writing the output."""


class TooManyRejectsError(EmbedcliError):
    pass


class DeviceOutOfMemoryError(Exception):
    """A batch did not fit on the device. Raised by `BaseEncoder.forward` or `collect`, handled by the engine."""


MAX_LINE_CHARACTERS = 300
# OpenVINO puts lines with places in its own source before what happened.
SOURCE_LOCATION_PREFIX = "Exception from "


def first_line(error: BaseException) -> str:
    """The first line of an error's text, to be quoted in a message; the name of its type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if lines[0].startswith(SOURCE_LOCATION_PREFIX) else 0][:MAX_LINE_CHARACTERS]
