"""The error family. Every error that a user can meet has a message, a hint and an exit code.

EmbedcliError              exit 1
  UsageError               exit 2   an option, a column or a path is wrong
    ResumeError            exit 2   the output belongs to another job
  InputError               exit 1   the input cannot be read
  ModelError               exit 1   the model cannot be loaded or run
    EncodingStoppedError   exit 1   the run was stopped while a hosted model waited for its server
  OutputError              exit 1   the output cannot be written
    OutputLocked           exit 1   another process is writing the output
  TooManyRejectsError      exit 1   more rejects than --max-rejects allows
  TooManyRemovedError      exit 1   the new output lacks more rows than --max-removed allows
DeviceOutOfMemoryError     internal: the pipeline retries with smaller batches
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcli.core.types import RejectSummary


class EmbedcliError(Exception):
    """An error to show to the user without a traceback.

    Attributes:
        message: What went wrong and where.
        hint: What to do next; may be empty.
        exit_code: The exit code of the process.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # a traceback shows it below the message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint)


class UsageError(EmbedcliError):
    """An option, a column or a path is wrong."""

    exit_code = 2


class ResumeError(UsageError):
    """The output belongs to another job."""


class InputError(EmbedcliError):
    """The input cannot be read. The message begins with the file and, where known, the line."""


class ModelError(EmbedcliError):
    """The model cannot be loaded or run."""


class EncodingStoppedError(ModelError):
    """The run was stopped while a hosted model waited for its server. Runs turn it into their result."""


class OutputError(EmbedcliError):
    """The output cannot be written."""


class OutputLocked(OutputError):
    """Another process is writing the output."""


class TooManyRejectsError(EmbedcliError):
    """More rows were rejected than --max-rejects allows.

    Attributes:
        rejects: The rejects so far; None where they were not counted by kind.
    """

    rejects: RejectSummary | None = None


class TooManyRemovedError(EmbedcliError):
    """The new output has fewer rows than the one it would replace, by more than --max-removed allows."""


class DeviceOutOfMemoryError(Exception):
    """A batch did not fit on the device. Raised by `BaseEncoder.forward` or `collect`, handled by the engine."""


MAX_LINE_CHARACTERS = 300
# OpenVINO puts lines with places in its own source before what happened.
SOURCE_LOCATION_PREFIX = "Exception from "


def first_line(error: BaseException) -> str:
    """The first line of an error's text, to be quoted in a message; the name of its type if it has no text.

    A line that ends with a colon is quoted with the next one.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith(SOURCE_LOCATION_PREFIX):
        return lines[-1][:MAX_LINE_CHARACTERS]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:MAX_LINE_CHARACTERS]
