"""The encoder of the OpenVINO engine: runs a compiled sentence-transformers pipeline on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.batching import pack_batches
from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.job import Job
from embedcli.core.row_vectors import DenseBuffer, MultiVectorBuffer, as_dense, concat_encoded
from embedcli.core.vectors import normalize_rows
from embedcli.encoders.errors import translate_memory_errors
from embedcli.encoders.openvino import cache
from embedcli.encoders.openvino.infer_requests import InferRequestPool
from embedcli.encoders.tokenize.fast import FastTokenizer, pad_rows
from embedcli.models.config import ModelConfig, model_identity, native_types
from embedcli.models.files import ModelFiles
from embedcli.models.traits import installed_version

if TYPE_CHECKING:
    from embedcli.core.multi_vectors import MultiVectors
    from embedcli.core.row_vectors import EncodedVectors
    from embedcli.core.types import Float32Array, Int64Array

# Padded tokens per batch, few enough that activations stay in the CPU cache. Measured with all-MiniLM-L6-v2 on two
# cores, useful GFLOP per processor second in float32/bfloat16: 512 tokens 171/300, 1024: 175/285, 2048: 159/261,
# 4096: 144/261, 8192: 128/236, 16384: 115/206. With 1024 instead of 512 a network twice as wide loses 4 %, and rows of
# 17 tokens gain.
OPENVINO_BATCH_TOKENS = 1024
# Sparse vectors are as wide as the vocabulary: 160 MB less than with 1,024 tokens, at the same speed.
SPARSE_BATCH_TOKENS = 512
# OpenVINO compiles and caches kernels per shape, so lengths are rounded up.
OPENVINO_PAD_MULTIPLE = 8


@dataclass(frozen=True)
class LoadRequest:
    """A model to load, its settings and the job it is for.

    Attributes:
        files: The model.
        config: Its settings for the job.
        job: The job.
        pool_tokens: Merges similar vectors of a row, for --pool-factor: about 1 of as many as the number says is left.
        few_texts: Whether so few texts will be encoded that a fast start matters more than many batches at once.
    """

    files: ModelFiles
    config: ModelConfig
    job: Job
    pool_tokens: Callable[[MultiVectors, int], MultiVectors] | None = None
    few_texts: bool = False

    @property
    def dtype(self) -> str:
        """The number format to compute in: "float32", "bfloat16" or "float16"."""
        return "float32" if self.job.dtype == "auto" else self.job.dtype

    @property
    def folder(self) -> Path:
        """Where the cache stores the compiled model."""
        return cache.cache_folder() / cache.cache_key(self.files, self.config)


@dataclass(frozen=True)
class ConvertedNetwork:
    """A pipeline converted to an OpenVINO network.

    Attributes:
        metadata: What the cache stores about the network: pad_id, pad_left, cut_left, dim, name, and of a multi-vector
            model token_selection.
        tokenizer_json: The tokenizer, in the format of `tokenizers`.
        folder: The folder the network is stored in; None if it is only in memory.
        graph: The network in memory; None if it is in `folder`.
    """

    metadata: Mapping[str, Any]
    tokenizer_json: str
    folder: Path | None = None
    graph: Any = None

    def build_tokenizer(self, config: ModelConfig, limit: int | None) -> FastTokenizer:
        """The network's tokenizer with the prompt of `config`, truncating to `limit` tokens."""
        from tokenizers import Tokenizer

        metadata = self.metadata
        return FastTokenizer(
            Tokenizer.from_str(self.tokenizer_json),
            limit=limit,
            prompt=config.prompt,
            pad_id=metadata["pad_id"],
            pads_left=metadata["pad_left"],
            cut_left=metadata["cut_left"],
        )


class OpenVinoEncoder(BaseEncoder):
    """A compiled sentence-transformers pipeline on the CPU, with `max_in_flight` batches at a time."""

    empty_reason = "no token left of the text"
    batch_tokens = OPENVINO_BATCH_TOKENS
    pad_to_multiple_of = OPENVINO_PAD_MULTIPLE

    def __init__(
        self,
        request: LoadRequest,
        network: ConvertedNetwork,
        compile_network: Callable[[ConvertedNetwork, str], Any],
    ) -> None:
        """Compile the network.

        Args:
            request: The model and the job.
            network: The converted pipeline.
            compile_network: Given a network and a dtype, returns a compiled model of OpenVINO.
        """
        self._request, self._network, self._compile_network = request, network, compile_network
        self._config = request.config
        self.tokenizer = network.build_tokenizer(request.config, request.config.max_seq_length)
        self.dim = int(network.metadata["dim"])
        self.kind = request.config.kind
        if self.kind == "sparse":
            self.batch_tokens = SPARSE_BATCH_TOKENS
        self.dtype = request.dtype
        traits = request.config.traits
        if traits is not None and traits.needs_equal_lengths:
            self.equal_lengths, self.pad_to_multiple_of = True, 1
        if traits is not None and traits.needs_single_rows:
            self.batch_tokens = 1
        self._requests = InferRequestPool(compile_network(network, self.dtype))
        self._float32_requests = self._requests if self.dtype == "float32" else None
        self.max_in_flight = self._requests.count

    def vector_space(self) -> dict[str, Any]:
        """The vector space metadata, with the dtype and the library versions used."""
        return {
            **model_identity(self._request.files, self._config, "float32" if self.dtype == "float32" else "half"),
            **native_types(self._config),
            "dim": self.dim,
            "dtype": self.dtype,
            "engine": "openvino",
            "device": "cpu",
            "versions": {name: installed_version(name) for name in ("openvino", "tokenizers")},
        }

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenize each text once, prompt first, truncated to the token limit."""
        return self.tokenizer.tokenize(texts)

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]]:
        """Split a text into windows, as (start, stop) in characters; see `FastTokenizer.split_into_windows`."""
        return self.tokenizer.split_into_windows(text, overlap)

    def forward(self, tokens: Tokens, rows: Int64Array) -> Any:
        """Start one batch and return at once. Raises DeviceOutOfMemoryError if it does not fit."""
        return self._start(self._requests, tokens, rows)

    def collect(self, output: Any) -> EncodedVectors:
        """Wait for the float32 [batch, dim] vectors. Raises DeviceOutOfMemoryError if the batch did not fit."""
        return self._adjust(self._finish(self._requests, output))

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> EncodedVectors:
        """Encode rows in float32, one at a time, so that no row is padded to another's length."""
        if self._float32_requests is None:
            self._float32_requests = InferRequestPool(self._compile_network(self._network, "float32"))
        requests = self._float32_requests
        vectors = [self._finish(requests, self._start(requests, tokens, rows[i : i + 1])) for i in range(len(rows))]
        return self._adjust(concat_encoded(vectors)) if vectors else self._make_buffer(0).finish()

    def encode_unnormalized(self, tokens: Tokens) -> Float32Array:
        """What the network returns for the rows that have tokens, in the job's dtype: float32 [rows, dim]."""
        rows, lengths = np.flatnonzero(tokens.lengths), tokens.lengths[tokens.lengths > 0]
        buffer = self._make_buffer(len(rows))
        for batch in pack_batches(lengths, lambda: self.batch_tokens, self.pad_to_multiple_of, self.equal_lengths):
            buffer.put(batch, self._finish(self._requests, self._start(self._requests, tokens, rows[batch])))
        return as_dense(buffer.finish())

    def close(self) -> None:
        """Wait for batches in flight and release the memory."""
        for requests in (self._requests, self._float32_requests):
            if requests is not None:
                requests.close()
        self.tokenizer.close()

    def _make_buffer(self, count: int) -> DenseBuffer | MultiVectorBuffer:
        """An empty buffer for the vectors of `count` rows."""
        return DenseBuffer(count, self.dim)

    def _start(self, requests: InferRequestPool, tokens: Tokens, rows: Int64Array) -> Any:
        """Start one batch; the result is for `_finish`."""
        with translate_memory_errors():
            return requests.start(*self._pad(tokens, rows))

    def _finish(self, requests: InferRequestPool, output: Any) -> EncodedVectors:
        """Wait for a batch: what the network returns for its rows."""
        return requests.finish(output)

    def _pad(self, tokens: Tokens, rows: Int64Array, at_least: int = 0) -> tuple[Any, Any]:
        tokenizer, most = self.tokenizer, self._config.max_positions
        return pad_rows(tokens, rows, self.pad_to_multiple_of, tokenizer.pad_id, tokenizer.pads_left, most, at_least)

    def _adjust(self, vectors: EncodedVectors) -> EncodedVectors:
        """Normalize the vectors if the job wants that."""
        if not self._config.normalize:
            return vectors
        return normalize_rows(as_dense(vectors), min_length=1e-12)  # as torch.nn.functional.normalize
