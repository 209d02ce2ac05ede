"""Run several infer requests of a compiled OpenVINO network at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.encoders.errors import translate_memory_errors

if TYPE_CHECKING:
    from embedcli.core.types import BoolArray, Float32Array, Int64Array


@dataclass(frozen=True, eq=False)
class RunningRequest:
    """A request in flight, with the arrays it reads from."""

    request: Any
    inputs: Mapping[str, Any]


class InferRequestPool:
    """The infer requests of one compiled network; each runs one batch at a time.

    Attributes:
        count: How many batches may be in flight.
    """

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._names = {name for port in compiled.inputs for name in port.names}
        self._running: set[RunningRequest] = set()
        # Two for each stream: when one ends, the stream goes on with the other.
        self.count = 2 * int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        with translate_memory_errors():
            # Created up front: creating a request waits for all running ones.
            self._idle = [compiled.create_infer_request() for _ in range(self.count)]

    def start(self, ids: Int64Array, mask: Int64Array) -> RunningRequest:
        """Start one batch and return at once.

        Args:
            ids: int64 [batch, width]; the padded token ids.
            mask: int64 [batch, width]; 1 for a token, 0 for padding.

        Raises:
            DeviceOutOfMemoryError: The batch does not fit into memory.
        """
        inputs = {"input_ids": ids, "attention_mask": mask}
        inputs = {name: array for name, array in inputs.items() if name in self._names}
        with translate_memory_errors():
            running = RunningRequest(self._idle.pop() if self._idle else self._compiled.create_infer_request(), inputs)
            running.request.start_async(inputs, share_inputs=True)
        self._running.add(running)
        return running

    def finish(self, running: RunningRequest, is_kept: BoolArray | None = None) -> Float32Array:
        """Wait for a batch and return its vectors.

        Args:
            running: What `start` returned.
            is_kept: bool [batch, width]: of a network with a vector for each token, which of them are wanted.

        Returns:
            float32 [batch, dim], or [kept tokens, dim], row after row.

        Raises:
            DeviceOutOfMemoryError: The batch did not fit into memory.
        """
        self._running.discard(running)
        with translate_memory_errors():
            running.request.wait()
            output = running.request.get_output_tensor(0).data
            vectors: Float32Array = np.array(output, np.float32) if is_kept is None else output[is_kept]
        self._idle.append(running.request)
        return vectors

    def close(self) -> None:
        """Wait for all batches in flight and release the network."""
        while self._running:
            with suppress(RuntimeError):
                self._running.pop().request.wait()
        self._idle.clear()
        self._compiled = None
