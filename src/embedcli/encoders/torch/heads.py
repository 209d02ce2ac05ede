"""The heads of BGE-M3 on PyTorch: sparse weights and vectors of tokens from the hidden states of one network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import concat_ranges, offsets_of
from embedcli.core.row_vectors import as_dense
from embedcli.core.sparse_vectors import SparseVectors, empty_sparse, merge_repeated
from embedcli.encoders.tokenize.fallback import PipelinePreprocessor
from embedcli.encoders.torch.encoder import PROBE_TEXTS, TorchEncoder
from embedcli.encoders.torch.errors import translate_load_errors
from embedcli.encoders.torch.head_layers import TOKEN_VECTORS, TOKEN_WEIGHTS
from embedcli.encoders.torch.multi_vector import pool_tokens
from embedcli.encoders.torch.transfer import PendingVectors
from embedcli.models.config import ModelConfig
from embedcli.models.files import ModelFiles

if TYPE_CHECKING:
    from embedcli.core.encoder import Tokens
    from embedcli.core.row_vectors import EncodedVectors
    from embedcli.core.types import Float32Array, Int32Array, Int64Array


@dataclass(frozen=True)
class PendingHead:
    """The numbers or vectors of a batch's tokens on their way to the host.

    Attributes:
        values: [tokens, 1] or [tokens, dim], row after row.
        lengths: int64 [rows]: tokens of each row.
        token_ids: int32 [tokens]: the token of each number; None for vectors.
    """

    values: PendingVectors
    lengths: Int64Array
    token_ids: Int32Array | None = None


class HeadsTorchEncoder(TorchEncoder):
    """A head of one network on one device, in place of the model's own vectors.

    The vectors are those of M3Embedder of FlagEmbedding: the sparse vector has the largest weight of each token of the
    vocabulary that occurs in the text, without special and unknown tokens, and each token but the first has a vector.
    """

    def __init__(self, job: Job, files: ModelFiles, config: ModelConfig, notify: Callable[[str], None]) -> None:
        super().__init__(job, files, config, notify)
        own = self.model.tokenizer
        special = [own.cls_token_id, own.eos_token_id, own.pad_token_id, own.unk_token_id]
        self._special_ids = np.array([token for token in special if token is not None], np.int64)
        if self.kind == "sparse":
            self.dim = int(self.model[0].model.config.vocab_size)
        else:
            self.dim = int(self.model[-1].layers[TOKEN_VECTORS].out_features)

    def forward(self, tokens: Tokens, rows: Int64Array) -> Any:
        """Start one batch, asynchronously on an accelerator. Raises DeviceOutOfMemoryError if it does not fit."""
        return super().forward(tokens, rows)

    def collect(self, output: Any) -> EncodedVectors:
        """Wait for a batch: SparseVectors or MultiVectors of its rows."""
        values = as_dense(super().collect(output.values))
        offsets = offsets_of(output.lengths)
        if output.token_ids is not None:
            return merge_repeated(SparseVectors(offsets, output.token_ids, values[:, 0], self.dim))
        vectors = MultiVectors(offsets, values)
        return vectors if self._job.pool_factor is None else pool_tokens(vectors, self._job.pool_factor)

    def has_verified_vectors(self, output: Any) -> bool:
        """Whether the device has checked the vectors of a collected batch, and every row has one."""
        return super().has_verified_vectors(output.values) and bool((output.lengths > 0).all())

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> EncodedVectors:
        """Encode rows in float32, one by one."""
        if len(rows):
            return super().encode_float32(tokens, rows)
        if self.kind == "sparse":
            return empty_sparse(self.dim)
        return MultiVectors(offsets_of([]), np.empty((0, self.dim), np.float32))

    def _run_model(self, model: Any, tokens: Tokens, rows: Int64Array) -> Any:
        import torch

        features, batch_context = self._build_features(tokens, rows)
        with torch.inference_mode(), batch_context:
            output = model(features)
            if self.kind == "sparse":
                return self._select_weights(output, tokens, rows)
            return self._select_vectors(output, tokens, rows)

    def _select_weights(self, output: dict[str, Any], tokens: Tokens, rows: Int64Array) -> PendingHead:
        """The weights of all tokens but special ones."""
        lengths, numbers = tokens.lengths[rows], concat_ranges(tokens.offsets[rows], tokens.lengths[rows])
        ids = tokens.ids[numbers]
        is_word = ~np.isin(ids, self._special_ids)
        row_of_token = np.repeat(np.arange(len(rows)), lengths)
        places = self._locate_tokens(output, lengths)
        values = self._take_tokens(output[TOKEN_WEIGHTS], places[is_word])
        counts = np.bincount(row_of_token[is_word], minlength=len(rows))
        return PendingHead(self._transfer.to_host(values.float()), counts, ids[is_word])

    def _select_vectors(self, output: dict[str, Any], tokens: Tokens, rows: Int64Array) -> PendingHead:
        """The vectors of all tokens but the first of each row, in length 1."""
        import torch

        lengths = tokens.lengths[rows]
        is_first = np.zeros(int(lengths.sum()), bool)
        is_first[offsets_of(lengths)[:-1][lengths > 0]] = True
        values = self._take_tokens(output[TOKEN_VECTORS], self._locate_tokens(output, lengths)[~is_first])
        vectors = torch.nn.functional.normalize(values.float(), dim=-1)
        return PendingHead(self._transfer.to_host(vectors), np.maximum(lengths - 1, 0))

    def _locate_tokens(self, output: dict[str, Any], lengths: Int64Array) -> Int64Array:
        """Where the tokens of a batch are among all places of its rows, padding included: int64 [tokens]."""
        if self._varlen is not None:
            return np.arange(int(lengths.sum()))
        tokenizer, width = self.text_tokenizer, int(output["token_embeddings"].shape[1])
        if isinstance(tokenizer, PipelinePreprocessor):
            raise ModelError(
                f"{self._files.name} takes its texts in another form than token ids, which its heads need",
                "leave --heads out",
            )
        starts = np.arange(len(lengths)) * width + (width - lengths if tokenizer.pads_left else 0)
        return concat_ranges(starts, lengths)

    def _take_tokens(self, states: Any, places: Int64Array) -> Any:
        """[places, numbers] of the states [rows, width, numbers] of a batch, without waiting for the device."""
        return states.flatten(0, 1)[self._transfer.to_device(places)]

    def _encode_probe(self, texts: Sequence[str] = PROBE_TEXTS) -> Float32Array:
        """All that the network and its heads compute for the tokens of some texts: float32 [tokens, numbers]."""
        import torch

        with translate_load_errors(self._files):
            tokens = self.tokenize(texts)
            rows = np.flatnonzero(tokens.lengths)
            features, batch_context = self._build_features(tokens, rows)
            with torch.inference_mode(), batch_context:
                output = self.model(features)
                names = [name for name in ("token_embeddings", TOKEN_WEIGHTS, TOKEN_VECTORS) if name in output]
                places = self._locate_tokens(output, tokens.lengths[rows])
                found = torch.cat([self._take_tokens(output[name], places) for name in names], dim=-1)
                numbers: Float32Array = found.float().cpu().numpy()
        return numbers
