"""Multi-vector models (ColBERT) on PyTorch: a vector for each token that the model's own mask keeps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.ragged import offsets_of
from embedcli.core.row_vectors import as_dense
from embedcli.encoders.token_pooling import pool_tokens
from embedcli.encoders.tokenize.fallback import PipelinePreprocessor
from embedcli.encoders.tokenize.fast import pad_rows, pad_token_types
from embedcli.encoders.tokenize.token_selection import QueryExpansion, TokenSelection
from embedcli.encoders.torch import attention_masks
from embedcli.encoders.torch.encoder import TorchEncoder
from embedcli.encoders.torch.export import TraceablePipeline, prepare_for_tracing
from embedcli.encoders.torch.transfer import PendingVectors
from embedcli.models.config import ModelConfig
from embedcli.models.files import ModelFiles

if TYPE_CHECKING:
    import torch

    from embedcli.core.encoder import Tokens
    from embedcli.core.types import Float32Array, Int64Array


MASK_MODULE = "MultiVectorMask"
# Modules that compute each token's vector from its own vector alone.
TOKENWISE_MODULES = ("Dense", "Normalize", "LayerNorm", "Dropout")


@dataclass(frozen=True)
class PendingTokenVectors:
    """The vectors of a batch's tokens on their way to the host.

    Attributes:
        vectors: [tokens, dim], row after row.
        lengths: int64 [rows]: vectors of each row.
        pool_factor: How many of them become one on the host, on average; None: they stay as they are.
    """

    vectors: PendingVectors
    lengths: Int64Array
    pool_factor: int | None = None


class MultiVectorTorchEncoder(TorchEncoder):
    """A MultiVectorEncoder pipeline on one device."""

    _expansion: QueryExpansion | None

    def __init__(self, job: Job, files: ModelFiles, config: ModelConfig, notify: Callable[[str], None]) -> None:
        super().__init__(job, files, config, notify)
        if self._expansion is not None and not self.equal_lengths:
            # Widths that occur, so that the token budget counts the mask tokens too.
            self.pad_to_multiple_of = self._expansion.width

    def forward(self, tokens: Tokens, rows: Int64Array) -> Any:
        """Start one batch, asynchronously on an accelerator. Raises DeviceOutOfMemoryError if it does not fit."""
        return super().forward(tokens, rows)

    def collect(self, output: Any) -> MultiVectors:
        """Wait for a batch: the vectors of its rows' tokens."""
        vectors = MultiVectors(offsets_of(output.lengths), as_dense(super().collect(output.vectors)))
        return vectors if output.pool_factor is None else pool_tokens(vectors, output.pool_factor)

    def has_verified_vectors(self, output: Any) -> bool:
        """Whether the device has checked the vectors of a collected batch, and every row has one."""
        return super().has_verified_vectors(output.vectors) and bool((output.lengths > 0).all())

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> MultiVectors:
        """Encode rows in float32, one by one."""
        nothing = MultiVectors(offsets_of([]), np.empty((0, self.dim), np.float32))
        vectors = super().encode_float32(tokens, rows) if len(rows) else nothing
        return vectors if isinstance(vectors, MultiVectors) else nothing

    def encode_padded(self, tokens: Tokens, rows: Int64Array, pad_to_multiple_of: int) -> Float32Array:
        """Encode one batch by the network as it was loaded: float32 [rows, dim], the mean of each row's vectors."""
        vectors = self._collect_padded(tokens, rows, pad_to_multiple_of)
        if not isinstance(vectors, MultiVectors):
            return as_dense(vectors)
        return np.stack([row.mean(axis=0) for row in np.split(vectors.values, vectors.offsets[1:-1])])

    def prepare_for_tracing(self) -> AbstractContextManager[TraceablePipeline]:
        """The pipeline up to the vectors of all tokens, for a converter; see `export.prepare_for_tracing`."""
        selection = read_token_selection(self.model, self.config.task, self._expansion)
        return prepare_for_tracing(self.model, self.fast_tokenizer, None, None, selection)

    def _load(self, dtype: str) -> Any:
        pipeline = super()._load(dtype)
        check_settings(pipeline, self._job, self._files, self.config)
        self._expansion = read_query_expansion(pipeline[0]) if self.config.task == "query" else None
        return pipeline

    def _start_batch(self, model: Any, tokens: Tokens, rows: Int64Array) -> Any:
        # Probes compare the network's own vectors: clusters of nearly equal ones could differ.
        pending: Any = super()._start_batch(model, tokens, rows)
        return replace(pending, pool_factor=self._job.pool_factor)

    def _run_model(self, model: Any, tokens: Tokens, rows: Int64Array) -> Any:
        import torch

        features, batch_context = self._build_features(tokens, rows)
        with torch.inference_mode(), batch_context:
            vectors, lengths = split_output(model(features, task=self.config.task))
            if self.config.normalize and self.dtype != "float32":
                # A half-precision Normalize module leaves lengths off by 1e-3.
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return PendingTokenVectors(self._transfer.to_host(vectors), lengths.cpu().numpy())

    def _build_features(self, tokens: Tokens, rows: Int64Array) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        if isinstance(self.text_tokenizer, PipelinePreprocessor):
            return self.text_tokenizer.build_features(tokens, rows, self.device), nullcontext()
        tokenizer, expansion = self.text_tokenizer, self._expansion
        ids, mask = pad_rows(
            tokens, rows, self.pad_to_multiple_of, tokenizer.pad_id, tokenizer.pads_left, self.config.max_positions,
            at_least=0 if expansion is None else expansion.width,
        )  # fmt: skip
        token_mask, features = mask, {}
        if expansion is not None:
            ids, mask, is_filled = expansion.fill_up(ids, mask)
            features["query_expansion_positions"] = self._transfer.to_device(is_filled)
        features["input_ids"] = self._transfer.to_device(ids)
        features["attention_mask"] = self._transfer.to_device(mask)
        if self._has_token_types:
            pad_type = 0 if tokens.token_types is None else tokenizer.pad_token_type
            types = pad_token_types(tokens, rows, token_mask, pad_type)
            features["token_type_ids"] = self._transfer.to_device(types)
        has_own_masks = bool(self.config.custom_code)
        context = nullcontext() if has_own_masks else attention_masks.batch_padding(not mask.all(), mask.shape[1])
        return features, context


def split_output(output: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the vectors of a batch that the model's own mask keeps.

    Args:
        output: What a MultiVectorEncoder returned: `token_embeddings` and the mask of those that count.

    Returns:
        float32 [tokens, dim], and int64 [rows], how many of them each row has.
    """
    mask = output["attention_mask"].bool()
    return output["token_embeddings"][mask].float(), mask.sum(dim=1)


def read_query_expansion(transformer: Any) -> QueryExpansion | None:
    """How the first module of a MultiVectorEncoder fills up queries; None if it does not.

    Raises:
        ModelError: It pads on the left and fills up to no fixed width, so that vectors would depend on the batch.
    """
    expansion = getattr(transformer, "query_expansion", None)
    if expansion is None:
        return None
    tokenizer = transformer.tokenizer
    if expansion["strategy"] != "fixed" and tokenizer.padding_side == "left":
        raise ModelError(
            "queries that are padded on the left and filled up to no fixed width depend on the batch",
            "save the model with the query expansion strategy 'fixed'",
        )
    if expansion["token"] is not None:
        token_id = tokenizer.convert_tokens_to_ids(expansion["token"])
    else:
        token_id = tokenizer.eos_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    return QueryExpansion(expansion["length"], int(token_id), expansion["attend"])


def read_token_selection(pipeline: Any, role: str | None, expansion: QueryExpansion | None) -> TokenSelection:
    """Which tokens' vectors a MultiVectorEncoder keeps: its masks are asked about every word of the vocabulary.

    Args:
        pipeline: The MultiVectorEncoder.
        role: "query" or "document".
        expansion: How it fills up the rows of this role.

    Raises:
        ValueError: It has a module that may change which vectors there are, such as a pooling of tokens.
    """
    import torch

    others = [type(module).__name__ for module in list(pipeline)[1:]]
    unknown = next((kind for kind in others if kind not in (*TOKENWISE_MODULES, MASK_MODULE)), None)
    if unknown is not None:
        raise ValueError(f"its module {unknown} may change which vectors a row has")
    words = torch.arange(len(pipeline.tokenizer))[None]
    is_token, is_expansion = torch.ones_like(words), torch.zeros_like(words)
    asked = [{"input_ids": words, "attention_mask": mask} for mask in (is_token, is_expansion)]
    asked[1]["query_expansion_positions"] = is_token
    for module in list(pipeline)[1:]:
        if type(module).__name__ == MASK_MODULE:
            asked = [module(features, task=role) for features in asked]
    is_kept, keeps_expansion = (features["attention_mask"][0].bool().cpu().numpy() for features in asked)
    return TokenSelection(expansion, bool(keeps_expansion.any()), tuple(np.flatnonzero(~is_kept).tolist()))


def check_settings(pipeline: Any, job: Job, files: ModelFiles, config: ModelConfig) -> None:
    """Check that the pipeline has the prompt and the limit that were read from the model's files before it was loaded.

    Raises:
        ModelError: sentence-transformers reads them otherwise.
    """
    transformer, role = pipeline[0], config.task
    expansion = getattr(transformer, "query_expansion", None) if role == "query" else None
    length = getattr(transformer, f"{role}_length", None)
    if expansion is not None:
        is_fixed = expansion["strategy"] == "fixed"
        length = expansion["length"] if is_fixed else length and max(length, expansion["length"])
    limit_differs = length is not None and config.max_seq_length != min(length, config.max_positions or length)
    asks_for_other_prompt = any(value is not None for value in (job.prompt, job.prompt_name)) or job.as_ == "none"
    prompt = pipeline.prompts.get(role) or ""
    prompt_differs = prompt not in ("", config.prompt) and not asks_for_other_prompt
    if (job.max_seq_length is None and limit_differs) or prompt_differs:
        raise ModelError(
            f"{files.name}: sentence-transformers reads {length} tokens after the prompt {prompt!r}, "
            f"and its files say {config.max_seq_length} after {config.prompt!r}",
            "use another model, and report this one: its settings are read differently",
        )
