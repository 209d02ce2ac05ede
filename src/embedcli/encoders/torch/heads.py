"""The heads of BGE-M3 on PyTorch: three kinds of vectors from one pass of one network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.encoder import NOT_FINITE_REASON
from embedcli.core.errors import ModelError
from embedcli.core.head_vectors import HeadVectors, join_heads
from embedcli.core.job import Job
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import concat_ranges, offsets_of
from embedcli.core.row_vectors import as_dense
from embedcli.core.sparse_vectors import SparseVectors, merge_repeated
from embedcli.encoders.token_pooling import pool_tokens
from embedcli.encoders.tokenize.fallback import PipelinePreprocessor
from embedcli.encoders.torch.encoder import PROBE_TEXTS, TorchEncoder
from embedcli.encoders.torch.errors import translate_load_errors
from embedcli.encoders.torch.head_layers import TOKEN_VECTORS, TOKEN_WEIGHTS
from embedcli.encoders.torch.transfer import PendingVectors
from embedcli.models.config import ModelConfig, describe_heads
from embedcli.models.files import ModelFiles

if TYPE_CHECKING:
    from embedcli.core.encoder import Tokens
    from embedcli.core.row_vectors import EncodedVectors
    from embedcli.core.types import BoolArray, Float32Array, Int32Array, Int64Array, VectorKind

# The states of a batch that show whether a change of the network has changed what it computes.
PROBED_STATES = ("token_embeddings", TOKEN_WEIGHTS, TOKEN_VECTORS)


@dataclass(frozen=True)
class BatchTokens:
    """The tokens of a batch, row after row.

    Attributes:
        ids: int32 [tokens].
        lengths: int64 [rows]: tokens of each row.
        places: int64 [tokens]: where each of them is among all places of the batch, padding included.
    """

    ids: Int32Array
    lengths: Int64Array
    places: Int64Array

    def keep(self, is_kept: BoolArray) -> BatchTokens:
        """Only some of the tokens, by bool [tokens]."""
        rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        counts = np.bincount(rows[is_kept], minlength=len(self.lengths))
        return BatchTokens(self.ids[is_kept], counts, self.places[is_kept])

    def find_first(self) -> BoolArray:
        """bool [tokens]: True for the first token of a row."""
        is_first = np.zeros(len(self.ids), bool)
        is_first[offsets_of(self.lengths)[:-1][self.lengths > 0]] = True
        return is_first


@dataclass(frozen=True)
class PendingHead:
    """What a head gave for a batch, on its way to the host.

    Attributes:
        values: [rows, dim], or for each of `tokens` a number, [tokens, 1], or a vector, [tokens, dim].
        tokens: The tokens that have a number or vector; None where each row has a vector.
    """

    values: PendingVectors
    tokens: BatchTokens | None = None


class HeadsTorchEncoder(TorchEncoder):
    """One or several heads of one network on one device.

    The vectors are those of M3Embedder of FlagEmbedding: the sparse vector has the largest weight of each token of the
    vocabulary that occurs in the text, without special and unknown tokens, and each token but the first has a vector.
    """

    def __init__(self, job: Job, files: ModelFiles, config: ModelConfig, notify: Callable[[str], None]) -> None:
        super().__init__(job, files, config, notify)
        own = self.model.tokenizer
        special = [own.cls_token_id, own.eos_token_id, own.pad_token_id, own.unk_token_id]
        self._special_ids = np.array([token for token in special if token is not None], np.int64)
        self._dims = self._read_dims()
        self.dim = self._dims[self.kind]
        self.heads: Mapping[VectorKind, Mapping[str, Any]] = {}
        if len(config.heads) > 1:
            self.heads = describe_heads(config, self._dims)

    def forward(self, tokens: Tokens, rows: Int64Array) -> Any:
        """Start one batch, asynchronously on an accelerator. Raises DeviceOutOfMemoryError if it does not fit."""
        return super().forward(tokens, rows)

    def collect(self, output: Any) -> EncodedVectors:
        """Wait for a batch: SparseVectors or MultiVectors of its rows, or HeadVectors if there are several heads."""
        return join_heads({head: self._collect_head(head, pending) for head, pending in output.items()})

    def has_verified_vectors(self, output: Any) -> bool:
        """Whether the device has checked all vectors of a collected batch, and every row has them."""
        # Weights may be zero: rows without any are found on the host.
        return all(
            head != "sparse"
            and super(HeadsTorchEncoder, self).has_verified_vectors(pending.values)
            and (pending.tokens is None or bool((pending.tokens.lengths > 0).all()))
            for head, pending in output.items()
        )

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> EncodedVectors:
        """Encode rows in float32, one by one."""
        return super().encode_float32(tokens, rows) if len(rows) else self.collect(self._encode_nothing())

    def unusable_reason(self, vector: EncodedVectors) -> str:
        """Why a row is rejected whose vectors were not usable in the second attempt either."""
        return NOT_FINITE_REASON if isinstance(vector, HeadVectors) else super().unusable_reason(vector)

    def _collect_head(self, head: VectorKind, pending: PendingHead) -> Float32Array | SparseVectors | MultiVectors:
        values = as_dense(super().collect(pending.values))
        if pending.tokens is None:
            return values
        offsets = offsets_of(pending.tokens.lengths)
        if head == "sparse":
            return merge_repeated(SparseVectors(offsets, pending.tokens.ids, values[:, 0], self._dims[head]))
        vectors = MultiVectors(offsets, values)
        return vectors if self._job.pool_factor is None else pool_tokens(vectors, self._job.pool_factor)

    def _run_model(self, model: Any, tokens: Tokens, rows: Int64Array) -> Any:
        import torch

        features, batch_context = self._build_features(tokens, rows)
        with torch.inference_mode(), batch_context:
            output = model(features)
            batch = self._list_tokens(output, tokens, rows)
            return {head: self._select(head, output, batch) for head in self.config.heads}

    def _select(self, head: VectorKind, output: dict[str, Any], batch: BatchTokens) -> PendingHead:
        """Start copying what a head gave for a batch to the host."""
        import torch

        if head == "dense":
            vectors = output["sentence_embedding"].float()
            if self.config.normalize and self.dtype != "float32":
                # A half-precision Normalize module leaves lengths off by 1e-3.
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return PendingHead(self._transfer.to_host(vectors))
        if head == "sparse":
            words = batch.keep(~np.isin(batch.ids, self._special_ids))
            weights = self._take_tokens(output[TOKEN_WEIGHTS], words).float()
            return PendingHead(self._transfer.to_host(weights), words)
        others = batch.keep(~batch.find_first())
        vectors = torch.nn.functional.normalize(self._take_tokens(output[TOKEN_VECTORS], others).float(), dim=-1)
        return PendingHead(self._transfer.to_host(vectors), others)

    def _list_tokens(self, output: dict[str, Any], tokens: Tokens, rows: Int64Array) -> BatchTokens:
        lengths = tokens.lengths[rows]
        ids = tokens.ids[concat_ranges(tokens.offsets[rows], lengths)]
        if self._varlen is not None:
            return BatchTokens(ids, lengths, np.arange(len(ids)))
        tokenizer, width = self.text_tokenizer, int(output["token_embeddings"].shape[1])
        if isinstance(tokenizer, PipelinePreprocessor):
            raise ModelError(
                f"{self._files.name} takes its texts in another form than token ids, which its heads need",
                "leave --heads out",
            )
        starts = np.arange(len(lengths)) * width + (width - lengths if tokenizer.pads_left else 0)
        return BatchTokens(ids, lengths, concat_ranges(starts, lengths))

    def _take_tokens(self, states: Any, tokens: BatchTokens) -> Any:
        """[tokens, numbers] of the states [rows, width, numbers] of a batch, without waiting for the device."""
        return states.flatten(0, 1)[self._transfer.to_device(tokens.places)]

    def _read_dims(self) -> dict[VectorKind, int]:
        """The dimensions of each head."""
        network, layers = self.model[0].model.config, self.model[-1].layers
        dims: dict[VectorKind, int] = {"dense": int(self.model.get_embedding_dimension())}
        dims["sparse"] = int(network.vocab_size)
        dims["multi_vector"] = int(layers[TOKEN_VECTORS].out_features) if TOKEN_VECTORS in layers else 0
        return {head: dims[head] for head in self.config.heads}

    def _encode_nothing(self) -> dict[VectorKind, PendingHead]:
        """What the heads give for a batch without rows."""
        import torch

        nothing = np.empty(0, np.int64)
        none = BatchTokens(nothing.astype(np.int32), nothing, nothing)
        widths = {head: 1 if head == "sparse" else dim for head, dim in self._dims.items()}
        return {
            head: PendingHead(PendingVectors(torch.empty(0, width)), None if head == "dense" else none)
            for head, width in widths.items()
        }

    def _encode_probe(self, texts: Sequence[str] = PROBE_TEXTS) -> Float32Array:
        """All that the network and its heads compute for the tokens of some texts: float32 [tokens, numbers]."""
        import torch

        with translate_load_errors(self._files):
            tokens = self.tokenize(texts)
            rows = np.flatnonzero(tokens.lengths)
            features, batch_context = self._build_features(tokens, rows)
            with torch.inference_mode(), batch_context:
                output = self.model(features)
                batch = self._list_tokens(output, tokens, rows)
                states = [self._take_tokens(output[name], batch) for name in PROBED_STATES if name in output]
                numbers: Float32Array = torch.cat(states, dim=-1).float().cpu().numpy()
        return numbers
