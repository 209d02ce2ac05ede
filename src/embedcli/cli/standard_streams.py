"""stdin, stdout and stderr of the program: closed ones stay unused, and nothing is printed without escapes."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any

from embedcli.core.terminal import EscapingStream


def set_up_standard_streams() -> None:
    """Prepare the standard streams of this process, before anything is opened or printed.

    A closed stdin stays None, as Python sets it: commands that read it say so. Text on stdout and stderr is escaped;
    data goes to `sys.stdout.buffer`. Text that cannot be written to stderr is dropped: it has no other destination.
    """
    occupy_closed_descriptors()
    if sys.stdout is None:
        sys.stdout = ClosedStream("stdout")
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdout = EscapingStream(sys.stdout, "stdout")
    if not isinstance(sys.stderr, EscapingStream):
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        file: Any = LossyFile(2, "w", closefd=False)
        text = io.TextIOWrapper(file, encoding, "backslashreplace", write_through=True)
        sys.stderr = EscapingStream(text, "stderr")


def occupy_closed_descriptors() -> None:
    """Open /dev/null for each closed one of the descriptors 0, 1 and 2, so that no file of a job gets its number.

    They are opened the wrong way round: reading stdin or writing stdout fails, as if they were still closed.
    """
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            with suppress(OSError):
                opened = os.open(os.devnull, mode)
                if opened != descriptor:
                    os.dup2(opened, descriptor)
                    os.close(opened)
                os.set_inheritable(descriptor, True)


class ClosedStream(io.TextIOBase):
    """Stands for an output stream that was closed when the program started; it can be flushed, not written."""

    buffer = None

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.name)

    def writable(self) -> bool:
        return True


class LossyFile(io.FileIO):
    """A file whose writes never fail: what cannot be written is lost."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        with suppress(OSError):
            while left:
                left = left[super().write(left) or len(left) :]
        return size
