"""The PyTorch engine: sentence-transformers pipelines and raw Hugging Face models, fed with packed batches."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.cpu import count_usable_cores, cpu_quota
from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.core.row_vectors import as_dense, concat_encoded
from embedcli.encoders.equivalence import row_cosines
from embedcli.encoders.errors import is_out_of_memory
from embedcli.encoders.tokenize.fallback import PipelinePreprocessor, TransformersTokenizer
from embedcli.encoders.tokenize.fast import FastTokenizer, pad_rows, pad_token_types
from embedcli.encoders.torch import attention_masks, linear_prepack, memory_budget, varlen_attention
from embedcli.encoders.torch import compile as torch_compile
from embedcli.encoders.torch.device import select_device, select_dtype, set_thread_count, torch_version
from embedcli.encoders.torch.errors import TORCH_OUT_OF_MEMORY_SIGNS, translate_device_errors, translate_load_errors
from embedcli.encoders.torch.export import TraceablePipeline, prepare_for_tracing
from embedcli.encoders.torch.pipeline import (
    choose_tokenizer,
    declared_attention_type,
    has_token_types,
    load_pipeline,
    quiet_libraries,
    restore_attention_type,
)
from embedcli.encoders.torch.transfer import DeviceTransfer, PendingVectors
from embedcli.models.config import ModelConfig, model_identity, native_types
from embedcli.models.files import ModelFiles
from embedcli.models.refusals import refuse_without_torch
from embedcli.models.traits import ModelTraits

if TYPE_CHECKING:
    import torch

    from embedcli.core.row_vectors import EncodedVectors
    from embedcli.core.types import Float32Array, Int64Array

log = logging.getLogger(__name__)

# Padded tokens per batch. CPU: activations should stay in cache; rows per CPU second over `encode` with packed layers:
# 1024: 1.93, 1536: 2.08, 2048: 1.92, 3072: 1.97, and 16384 no gain. The accelerators' are not measured but chosen:
# wide enough to fill them, small beside their memory.
TORCH_BATCH_TOKENS = {"cpu": 1536, "cuda": 65536, "xpu": 32768, "mps": 8192}
# Sparse vectors are as wide as the vocabulary.
SPARSE_CPU_BATCH_TOKENS = 512
# Characters of a chunk that are tokenized and batched together, on all threads: about a million tokens.
PORTION_CHARACTERS = 1 << 22
# Lengths are padded up to a multiple, so that few shapes occur: MPS keeps a graph per shape, tensor cores like 8.
TORCH_PAD_MULTIPLES = {"cpu": 8, "cuda": 8, "xpu": 8, "mps": 16}
# Threads that tokenize for an accelerator: they pass their results through Python one at a time. On a CPU one thread
# tokenizes, as the others compute.
MAX_TOKENIZER_THREADS = 4
PROBE_TEXTS = ("a", "The same model must give the same vector on every device, in every batch.", "向量 vecteur вектор")
MIN_FLOAT32_COSINE = 0.999999
# In half precision another order of sums moves a vector by some 1e-5; wrong positions or masks by 1e-2 and more.
MIN_HALF_COSINE = 0.9999
# With a row longer than the sliding windows of the networks that have them.
LONG_PROBE_TEXTS = (*PROBE_TEXTS, " ".join(PROBE_TEXTS * 30))
# What a network may raise when its attention is replaced.
ATTENTION_ERRORS = (
    varlen_attention.UnsupportedAttentionError, RuntimeError, TypeError, ValueError, KeyError, IndexError, ModelError,
)  # fmt: skip


class TorchEncoder(BaseEncoder):
    """A sentence-transformers pipeline on one device.

    A converter reads `model` and `fast_tokenizer` before the first `forward`, which packs linear layers on a CPU.

    Attributes:
        model: The pipeline, from features to `sentence_embedding`, normalised if the job wants that.
        text_tokenizer: Tokenizes the texts.
        fast_tokenizer: The same if it is a FastTokenizer, else None.
        config: The model's settings, resolved for the job.
    """

    max_in_flight: int
    empty_reason = "no token left of the text"

    def __init__(self, job: Job, files: ModelFiles, config: ModelConfig, notify: Callable[[str], None]) -> None:
        self._job, self._files, self.config, self._notify = job, files, config, notify
        self.device = select_device(job.device)
        self.dtype = select_dtype(job.dtype, self.device)
        kind = self.device.partition(":")[0]
        self.max_in_flight = 1 if kind == "cpu" else 2
        self.batch_tokens = TORCH_BATCH_TOKENS.get(kind, 16384)
        self.pad_to_multiple_of = TORCH_PAD_MULTIPLES.get(kind, 8)
        self.kind = config.kind
        if self.kind == "sparse" and kind == "cpu" and not config.heads:
            self.batch_tokens = SPARSE_CPU_BATCH_TOKENS
        self._transfer = DeviceTransfer(self.device, as_float16=_is_stored_as_float16(job))
        set_thread_count(job.threads or cpu_quota())
        self.model = self._load(self.dtype)
        self._attention_type = declared_attention_type(self.model)
        self._float32_model: Any = None
        self.text_tokenizer = choose_tokenizer(self.model, config, self._tokenizer_threads())
        self.fast_tokenizer = self.text_tokenizer if isinstance(self.text_tokenizer, FastTokenizer) else None
        if isinstance(self.text_tokenizer, TransformersTokenizer):
            notify(f"{files.name} has no fast tokenizer; the slower one of transformers is used")
        self._has_token_input = not isinstance(self.text_tokenizer, PipelinePreprocessor)
        self._has_token_types = self._has_token_input and has_token_types(self.model)
        self._should_prepack = (
            kind == "cpu"
            and self.dtype == "float32"
            and self._has_token_input
            and linear_prepack.is_prepack_available()
        )
        self._varlen: varlen_attention.VarlenBatcher | None = None
        self._compile_errors: tuple[type[BaseException], ...] = ()
        # Before they are measured, the usable positions may be fewer than the tokens of a longer text.
        self.dim = int(self._encode_probe(PROBE_TEXTS[:1] if config.traits is None else PROBE_TEXTS).shape[1])
        if config.traits is not None:
            self._adapt_batches(config.traits)
            self._install_faster_variants(kind)

    def _adapt_batches(self, traits: ModelTraits) -> None:
        """Pack no rows together that would change each other's vectors."""
        if traits.needs_equal_lengths:
            self.equal_lengths, self.pad_to_multiple_of = True, 1
        if traits.needs_single_rows:
            self.batch_tokens = 1

    def _install_faster_variants(self, kind: str) -> None:
        if self._has_token_input and not self.equal_lengths and varlen_attention.has_standard_pooling(self.model):
            network = self.model[0].auto_model
            self._remove_padding(varlen_attention.find_kernels(self.device, self.dtype, network))
        if self._job.compile:
            self._compile()
        if self._has_token_input and self.batch_tokens > 1 and kind in memory_budget.MEASURABLE_DEVICES:
            self._fit_token_budget(memory_budget.DeviceMemoryProbe(self.device))

    def vector_space(self) -> dict[str, Any]:
        """What decides the vectors, with the device, dtype and library versions that made them."""
        libraries = ("sentence-transformers", "transformers", "tokenizers")
        return {
            **model_identity(self._files, self.config, "float32" if self.dtype == "float32" else "half"),
            **native_types(self.config),
            "dim": self.dim,
            "dtype": self.dtype,
            "engine": "torch",
            "device": self.device,
            "versions": {name: version(name) for name in libraries} | {"torch": torch_version()},
        }

    # Texts to tokens

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenize each text once, prompt first, truncated to the model's limit."""
        return self.text_tokenizer.tokenize(texts)

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]] | None:
        """Split a text by its fast tokenizer; None without one."""
        return None if self.fast_tokenizer is None else self.fast_tokenizer.split_into_windows(text, overlap)

    # Tokens to vectors

    def forward(self, tokens: Tokens, rows: Int64Array) -> PendingVectors:
        """Start one batch, asynchronously on an accelerator. Raises DeviceOutOfMemoryError if it does not fit."""
        if self._should_prepack:
            self._should_prepack = False
            self._prepack()
        with translate_device_errors(self.device):
            return self._start_batch(self.model, tokens, rows)

    def collect(self, output: PendingVectors) -> EncodedVectors:
        """Wait for a batch: float32 [rows, dim]."""
        with translate_device_errors(self.device):
            if output.ready_event is not None:
                output.ready_event.synchronize()
            vectors: Float32Array = output.vectors.float().cpu().numpy()
        return vectors

    def has_verified_vectors(self, output: PendingVectors) -> bool:
        """Whether the device has checked that every vector of a collected batch is finite and not zero."""
        return output.has_usable_vectors is not None and bool(output.has_usable_vectors)

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> EncodedVectors:
        """Encode rows in float32, one by one, so that padding and overflow of other rows do not reach them."""
        model = self.model if self.dtype == "float32" else self._load_float32_model()
        with translate_device_errors(self.device):
            vectors = [self.collect(self._start_batch(model, tokens, rows[i : i + 1])) for i in range(len(rows))]
        return concat_encoded(vectors) if vectors else np.empty((0, self.dim), np.float32)

    def close(self) -> None:
        """Release the model's memory."""
        self.model = self._float32_model = None
        if self.fast_tokenizer is not None:
            self.fast_tokenizer.close()
        gc.collect()
        self._transfer.release_cached_memory()

    def _start_batch(self, model: Any, tokens: Tokens, rows: Int64Array) -> PendingVectors:
        """Start a batch; if its shape cannot be compiled, run the network without compiled code from now on."""
        try:
            return self._run_model(model, tokens, rows)
        except self._compile_errors as error:
            if is_out_of_memory(error, TORCH_OUT_OF_MEMORY_SIGNS):
                raise
            self._restore_layers(torch_compile.root_cause(error))
        return self._run_model(model, tokens, rows)

    def _run_model(self, model: Any, tokens: Tokens, rows: Int64Array) -> PendingVectors:
        import torch

        if self._attention_type is not None:
            restore_attention_type(model, self._attention_type)
        features, batch_context = self._build_features(tokens, rows)
        with torch.inference_mode(), batch_context:
            vectors: torch.Tensor = model(features)["sentence_embedding"].float()
            if self.config.normalize and self.dtype != "float32":
                # A half-precision Normalize module leaves lengths off by 1e-3.
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return self._transfer.to_host(vectors)

    def encode_padded(self, tokens: Tokens, rows: Int64Array, pad_to_multiple_of: int) -> Float32Array:
        """Encode one batch, padded to a multiple of so many tokens, by the network as it was loaded."""
        return as_dense(self._collect_padded(tokens, rows, pad_to_multiple_of))

    def _collect_padded(self, tokens: Tokens, rows: Int64Array, pad_to_multiple_of: int) -> EncodedVectors:
        multiple, self.pad_to_multiple_of = self.pad_to_multiple_of, pad_to_multiple_of
        try:
            with translate_device_errors(self.device):
                return self.collect(self._run_model(self.model, tokens, rows))
        finally:
            self.pad_to_multiple_of = multiple

    def _build_features(self, tokens: Tokens, rows: Int64Array) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        """The input of the pipeline for a batch, on the device, and the context to run it in."""
        if isinstance(self.text_tokenizer, PipelinePreprocessor):
            return self.text_tokenizer.build_features(tokens, rows, self.device), nullcontext()
        batch_context: AbstractContextManager[None]
        if self._varlen is not None:
            features = self._varlen.build_features(tokens, rows, self._transfer.to_device)
            batch_context = self._varlen.batch_context(features)
            mask = np.ones(tuple(features["input_ids"].shape), np.int64)
        else:
            tokenizer = self.text_tokenizer
            ids, mask = pad_rows(
                tokens, rows, self.pad_to_multiple_of, tokenizer.pad_id, tokenizer.pads_left, self.config.max_positions
            )
            features = {"input_ids": self._transfer.to_device(ids), "attention_mask": self._transfer.to_device(mask)}
            # A model's own code may mask more of a row than its padding.
            has_own_masks = bool(self.config.custom_code)
            batch_context = (
                nullcontext() if has_own_masks else attention_masks.batch_padding(not mask.all(), mask.shape[1])
            )
        if tokens.token_types is not None and self._has_token_types:
            types = pad_token_types(tokens, rows, mask, self.text_tokenizer.pad_token_type)
            features["token_type_ids"] = self._transfer.to_device(types)
        elif self._has_token_types:
            features["token_type_ids"] = features["input_ids"].new_zeros(features["input_ids"].shape)
        if self.prompt_length:
            features["prompt_length"] = self.prompt_length
        if self.config.task:
            features["task"] = self.config.task
        return features, batch_context

    @property
    def prompt_length(self) -> int | None:
        """The number of prompt tokens that pooling leaves out; None if it takes all tokens."""
        if self.config.pools_prompt or isinstance(self.text_tokenizer, PipelinePreprocessor):
            return None
        return self.text_tokenizer.prompt_length or None

    # Models

    def prepare_for_tracing(self) -> AbstractContextManager[TraceablePipeline]:
        """The pipeline for a converter; see `export.prepare_for_tracing`."""
        return prepare_for_tracing(self.model, self.fast_tokenizer, self.prompt_length, self.config.task)

    def _load(self, dtype: str) -> Any:
        return load_pipeline(self._files, self.config, self.device, dtype)

    def _load_float32_model(self) -> Any:
        if self._float32_model is None:
            self._float32_model = self._load("float32")
        return self._float32_model

    def _tokenizer_threads(self) -> int:
        if self.max_in_flight == 1:
            return 1
        return self._job.threads or min(MAX_TOKENIZER_THREADS, count_usable_cores())

    def _encode_probe(self, texts: Sequence[str] = PROBE_TEXTS) -> Float32Array:
        with translate_load_errors(self._files):
            tokens = self.tokenize(texts)
            rows = np.flatnonzero(tokens.lengths)
            if not len(rows):
                return np.empty((0, int(self.model.get_embedding_dimension())), np.float32)
            return as_dense(self.collect(self._run_model(self.model, tokens, rows)))

    # Faster variants of the model, each dropped if it changes the vectors

    def _remove_padding(self, kernels: Sequence[varlen_attention.AttentionKernel]) -> None:
        """Run batches without padding by the first kernel that keeps the vectors; after a failed try, load again."""
        for kernel in kernels:
            if self._keeps_vectors(kernel):
                # Batches without padding may mix lengths: a device starts while the rest of the chunk is tokenized.
                self.pad_to_multiple_of, self.portion_characters = 0, PORTION_CHARACTERS
                return
            is_installed, self._varlen = self._varlen is not None, None
            self.model = self._load(self.dtype)
            if not is_installed:
                return

    def _keeps_vectors(self, kernel: varlen_attention.AttentionKernel) -> bool:
        """Install a kernel and compare the vectors with those of padded batches."""
        vectors_before, lowest = self._encode_probe(LONG_PROBE_TEXTS), 0.0
        with suppress(*ATTENTION_ERRORS):
            self._varlen = varlen_attention.install_varlen_attention(self.model[0].auto_model, kernel)
            if self._varlen is not None:
                lowest = float(row_cosines(vectors_before, self._encode_probe(LONG_PROBE_TEXTS)).min())
        if lowest < MIN_HALF_COSINE:
            log.debug("without padding the lowest cosine is %s", lowest)
        return lowest >= MIN_HALF_COSINE

    def _compile(self) -> None:
        self._notify("compiling the network with torch.compile: the first batches of each shape wait")
        min_cosine = MIN_FLOAT32_COSINE if self.dtype == "float32" else MIN_HALF_COSINE
        with quiet_libraries():
            problem = torch_compile.compile_layers(self.model, lambda: self._encode_probe(LONG_PROBE_TEXTS), min_cosine)
        if problem is not None:
            self._restore_layers(problem)
        else:
            self._should_prepack, self._compile_errors = False, torch_compile.compile_error_types()

    def _restore_layers(self, reason: str) -> None:
        torch_compile.restore_layers(self.model)
        self._compile_errors = ()
        self._notify(f"the network runs without torch.compile: {reason}")

    def _prepack(self) -> None:
        """Pack the linear layers; if that fails or changes a vector, load the model again."""
        vectors_before = self._encode_probe()
        try:
            count = linear_prepack.prepack_linear_layers(self.model)
            lowest = float(row_cosines(vectors_before, self._encode_probe()).min()) if count else 1.0
        except (RuntimeError, AttributeError, TypeError, ModelError) as error:
            log.debug("linear layers are not packed: %s", error)
            lowest = 0.0
        if lowest < MIN_FLOAT32_COSINE:
            log.debug("packed linear layers differ (cosine %s): plain ones are used", lowest)
            self.model = self._load(self.dtype)

    def _fit_token_budget(self, memory: memory_budget.DeviceMemoryProbe) -> None:
        """Lower the token budget to what fits into the device's memory."""
        token = int(self.tokenize(PROBE_TEXTS).ids[-1])
        longest = self.config.max_seq_length or self.config.max_positions or 512

        def peak_bytes(token_count: int) -> int:
            row_count = token_count // longest
            tokens = memory_budget.repeat_token_rows(token, row_count, longest)
            return memory.measure_peak(lambda: self.collect(self.forward(tokens, np.arange(row_count))))

        self.batch_tokens = memory_budget.fit_token_budget(
            self.batch_tokens, longest, memory.read_free_bytes, peak_bytes
        )


def load_torch_encoder(job: Job, files: ModelFiles, config: ModelConfig, notify: Callable[[str], None]) -> TorchEncoder:
    """Load a model on the job's device.

    Args:
        job: The job.
        files: The model's files.
        config: The model's settings, resolved for the job.
        notify: Gets one line for each thing that the user should know.

    Raises:
        UsageError: This machine has no such device, or no instructions for the dtype.
        ModelError: The model cannot be loaded or run, or a package that it needs is not installed.
    """
    refuse_without_torch(files)
    if job.compile:
        torch_compile.configure_environment()
    if config.heads or config.kind == "multi_vector":
        # They are subclasses of the encoder in this module.
        from embedcli.encoders.torch import heads, multi_vector

        encoder_class = heads.HeadsTorchEncoder if config.heads else multi_vector.MultiVectorTorchEncoder
        return encoder_class(job, files, config, notify)
    return TorchEncoder(job, files, config, notify)


def _is_stored_as_float16(job: Job) -> bool:
    """Whether float16 is all that becomes of a vector: no other number is computed from it."""
    return job.precision == "float16" and job.truncate_dim is None and job.overflow != "pool"
