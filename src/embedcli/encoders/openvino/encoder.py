"""A compiled pipeline as an encoder: tokens in, batches to the infer requests, vectors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.job import Job
from embedcli.core.vectors import normalize_rows
from embedcli.encoders.errors import translate_memory_errors
from embedcli.encoders.openvino import cache
from embedcli.encoders.openvino.infer_requests import InferRequestPool
from embedcli.encoders.tokenize.fast import FastTokenizer, pad_rows
from embedcli.models.config import ModelConfig, model_identity
from embedcli.models.files import ModelFiles

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, Int64Array

# Padded tokens per batch: activations should stay in cache. Useful GFLOP/s in float32/bfloat16, all-MiniLM-L6-v2 on
# two cores, per processor second: 512: 171/300, 1024: 175/285, 2048: 159/261, 4096: 144/261, 8192: 128/236,
# 16384: 115/206. A network twice as wide loses 4 % at 1024 against 512, and rows of 17 tokens gain.
OPENVINO_BATCH_TOKENS = 1024
# Kernels are made per shape and kept, so lengths are padded up.
OPENVINO_PAD_MULTIPLE = 8


@dataclass(frozen=True)
class LoadRequest:
    """What is to be loaded, and for which job."""

    files: ModelFiles
    recipe: ModelConfig
    job: Job

    @property
    def dtype(self) -> str:
        return "float32" if self.job.dtype == "auto" else self.job.dtype

    @property
    def folder(self) -> Path:
        return cache.cache_folder() / cache.cache_key(self.files, self.recipe)


@dataclass(frozen=True)
class ConvertedNetwork:
    """A converted pipeline: the network (in memory, else in `folder`), its facts, and its words as JSON."""

    facts: Mapping[str, Any]
    tokenizer_json: str
    folder: Path | None = None
    graph: Any = None

    def build_tokenizer(self, recipe: ModelConfig, limit: int | None) -> FastTokenizer:
        from tokenizers import Tokenizer

        facts = self.facts
        return FastTokenizer(
            Tokenizer.from_str(self.tokenizer_json),
            limit=limit,
            prompt=recipe.prompt,
            pad_id=facts["pad_id"],
            pads_left=facts["pad_left"],
            cut_left=facts["cut_left"],
        )


class OpenVinoEncoder(BaseEncoder):
    """A compiled sentence-transformers pipeline on the CPU, with `lanes` batches in flight.

    `compile(network, dtype)` gives OpenVINO's compiled model.
    """

    empty_reason = "no token left of the text"
    batch_tokens = OPENVINO_BATCH_TOKENS
    pad_to_multiple_of = OPENVINO_PAD_MULTIPLE

    def __init__(
        self, asked: LoadRequest, network: ConvertedNetwork, compile: Callable[[ConvertedNetwork, str], Any]
    ) -> None:
        self._asked, self._network, self._compile = asked, network, compile
        self._recipe = asked.recipe
        self.tokenizer = network.build_tokenizer(asked.recipe, asked.recipe.max_seq_length)
        self.dim = int(network.facts["dim"])
        self.dtype = asked.dtype
        self._main = InferRequestPool(compile(network, self.dtype))
        self._exact = self._main if self.dtype == "float32" else None
        self.max_in_flight = self._main.count

    def vector_space(self) -> dict[str, Any]:
        """What decides the vectors, with the dtype and library versions that made them."""
        return {
            **model_identity(self._asked.files, self._recipe, "float32" if self.dtype == "float32" else "half"),
            "dim": self.dim,
            "dtype": self.dtype,
            "engine": "openvino",
            "device": "cpu",
            "versions": {name: cache.installed_version(name) for name in ("openvino", "tokenizers")},
        }

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Each text once, prompt first, cut to the model's limit."""
        return self.tokenizer.tokenize(texts)

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]]:
        """Split a text as its tokenizer does."""
        return self.tokenizer.split_into_windows(text, overlap)

    def forward(self, tokens: Tokens, rows: Int64Array) -> Any:
        """Start one batch and return at once. Raises OutOfMemory if it does not fit."""
        with translate_memory_errors():
            return self._main.start(*self._padded(tokens, rows))

    def collect(self, output: Any) -> Float32Array:
        """float32 [rows, dim], once they are there. Raises OutOfMemory if they did not fit."""
        return self._finished(self._main.finish(output))

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> Float32Array:
        """The same rows in float32, one by one, so that no other row's padding touches them."""
        if self._exact is None:
            self._exact = InferRequestPool(self._compile(self._network, "float32"))
        requests = self._exact
        made = [requests.finish(requests.start(*self._padded(tokens, rows[i : i + 1]))) for i in range(len(rows))]
        return self._finished(np.concatenate(made)) if made else np.empty((0, self.dim), np.float32)

    def close(self) -> None:
        """Wait for what still runs, and give the memory back."""
        for requests in (self._main, self._exact):
            if requests is not None:
                requests.close()
        self.tokenizer.close()

    def _padded(self, tokens: Tokens, rows: Int64Array) -> tuple[Any, Any]:
        words = self.tokenizer
        return pad_rows(
            tokens, rows, self.pad_to_multiple_of, words.pad_id, words.pads_left, self._recipe.max_positions
        )

    def _finished(self, vectors: Float32Array) -> Float32Array:
        if not self._recipe.normalize:
            return vectors
        return normalize_rows(vectors, min_length=1e-12)  # as torch.nn.functional.normalize
