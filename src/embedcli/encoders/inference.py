"""Infer requests of a compiled network, many at a time, and what its errors mean. OpenVINO's objects are handed in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.contracts import OutOfMemory

if TYPE_CHECKING:
    from embedcli.contracts import Floats, Rows

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


@dataclass(frozen=True, eq=False)
class Running:
    """A request under way, with the arrays it reads."""

    request: Any
    inputs: Mapping[str, Any]


class Requests:
    """The infer requests of one compiled network; each runs one batch at a time."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._names = {name for port in compiled.inputs for name in port.names}
        self._running: set[Running] = set()
        # Two for each stream: as one ends, the next has its batch.
        self.lanes = 2 * int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        with memory():
            # Made now: making one waits for those that run.
            self._idle = [compiled.create_infer_request() for _ in range(self.lanes)]

    def start(self, ids: Rows, mask: Rows) -> Running:
        inputs = {"input_ids": ids, "attention_mask": mask}
        inputs = {name: array for name, array in inputs.items() if name in self._names}
        with memory():
            running = Running(self._idle.pop() if self._idle else self._compiled.create_infer_request(), inputs)
            running.request.start_async(inputs, share_inputs=True)
        self._running.add(running)
        return running

    def finish(self, running: Running) -> Floats:
        self._running.discard(running)
        with memory():
            running.request.wait()
            made: Floats = np.array(running.request.get_output_tensor(0).data, np.float32)
        self._idle.append(running.request)
        return made

    def close(self) -> None:
        while self._running:
            with suppress(RuntimeError):
                self._running.pop().request.wait()
        self._idle.clear()
        self._compiled = None


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
