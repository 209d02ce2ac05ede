"""The network that embedcli compiled for OpenVINO, to be run by itself on rows in embedcli's batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli import encoders
from embedcli.benchmark.dataset import read_texts
from embedcli.cli.bench import make_request
from embedcli.cli.entrypoint import set_environment
from embedcli.core.batching import pack_batches
from embedcli.core.cpu import cpu_quota
from embedcli.core.encoder import Tokens
from embedcli.core.vectors import normalize_rows
from embedcli.encoders.openvino.cache import read_cached_model
from embedcli.encoders.openvino.encoder import LoadRequest
from embedcli.encoders.openvino.infer_requests import InferRequestPool
from embedcli.encoders.openvino.runtime import COMPILE_OPTIONS, compile_graph
from embedcli.encoders.tokenize.fast import pad_rows
from embedcli.models import resolve

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, Int64Array

BATCH_TOKENS, PAD_MULTIPLE = 2048, 8


class Network:
    """A compiled network that encodes rows of the workbench's tokens."""

    def __init__(self, graph: Any, options: dict[str, Any], tokens: Tokens, pad_id: int) -> None:
        import openvino

        self.compiled = compile_graph(openvino.Core(), graph, {**COMPILE_OPTIONS, **options})
        self._requests, self._tokens, self._pad_id = InferRequestPool(self.compiled), tokens, pad_id

    def pad_batches(self, rows: Int64Array) -> Iterator[tuple[Int64Array, Any]]:
        """The rows of each batch, and their padded ids and mask."""
        for batch in pack_batches(self._tokens.lengths[rows], lambda: BATCH_TOKENS, PAD_MULTIPLE):
            yield batch, pad_rows(self._tokens, rows[batch], PAD_MULTIPLE, self._pad_id, left=False)

    def encode(self, rows: Int64Array) -> Float32Array:
        """Normalized vectors, float32 [rows, dim], with as many batches at a time as the network takes."""
        parts: list[tuple[Int64Array, Float32Array]] = []
        running: deque[tuple[Int64Array, Any]] = deque()
        for batch, inputs in self.pad_batches(rows):
            if len(running) == self._requests.count:
                first, request = running.popleft()
                parts.append((first, self._requests.finish(request)))
            running.append((batch, self._requests.start(*inputs)))
        parts.extend((first, self._requests.finish(request)) for first, request in running)
        order = np.argsort(np.concatenate([batch for batch, _ in parts]))
        return normalize_rows(np.concatenate([vectors for _, vectors in parts])[order], min_length=1e-12)

    def measure_seconds(self, rows: Int64Array) -> tuple[float, float]:
        """Seconds and processor seconds of encoding the rows."""
        start, processor_start = time.perf_counter(), time.process_time()
        self.encode(rows)
        return time.perf_counter() - start, time.process_time() - processor_start

    def close(self) -> None:
        """Release the memory."""
        self._requests.close()


class CachedNetwork:
    """The converted network of a model, and the tokens of rows.

    Args:
        paths: The inputs with the rows.
        flags: The options of the command line.
        rows: Use only the first rows; None for all.

    Attributes:
        tokens: The tokens of the texts.
    """

    def __init__(self, paths: list[str], flags: dict[str, Any], rows: int | None) -> None:
        set_environment(flags)
        job = make_request(paths, flags | {"device": "cpu", "engine": "openvino"}).job
        texts = list(read_texts(job, rows))
        files = resolve.resolve_model(job)
        encoder = encoders.load_encoder(job)  # converts the model if the cache does not have it
        self.tokens, self._threads = encoder.tokenize(texts), job.threads
        encoder.close()
        self._folder = LoadRequest(files, encoders.resolve_model_config(job, files), job).folder
        self._pad_id = int((read_cached_model(self._folder) or {})["pad_id"])

    def read_graph(self) -> Any:
        """Read the graph; each call returns another one."""
        import openvino

        return openvino.Core().read_model(str(self._folder / "model.xml"))

    def compile(self, graph: Any, options: dict[str, Any]) -> Network:
        """Compile a graph as embedcli does, but for `options`."""
        threads = {"INFERENCE_NUM_THREADS": self._threads or cpu_quota()}
        options = {"INFERENCE_PRECISION_HINT": "f32", **options, **{key: n for key, n in threads.items() if n}}
        return Network(graph, options, self.tokens, self._pad_id)


def find_linear_layers(graph: Any) -> list[Any]:
    """The matrix products with constant weights, in the order of the network."""
    return [
        node
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "MatMul" and node.input_value(1).get_node().get_type_name() == "Constant"
    ]
