"""PyTorch: sentence-transformers pipelines and raw Hugging Face models, fed with our own batches."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.cpu import count_usable_cores, cpu_quota
from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.encoders.equivalence import row_cosines
from embedcli.encoders.errors import is_out_of_memory
from embedcli.encoders.tokenize.fallback import PipelinePreprocessor, TransformersTokenizer, matches_reference
from embedcli.encoders.tokenize.fast import FastTokenizer, pad_rows
from embedcli.encoders.torch import attention_masks, linear_prepack, memory_budget, varlen_attention
from embedcli.encoders.torch import compile as torch_compile
from embedcli.encoders.torch import device as torch_device
from embedcli.encoders.torch.device import choose_device
from embedcli.encoders.torch.errors import TORCH_OUT_OF_MEMORY_SIGNS, translate_device_errors, translate_load_errors
from embedcli.encoders.torch.export import TraceablePipeline, prepare_for_tracing
from embedcli.encoders.torch.transfer import DeviceTransfer, PendingVectors
from embedcli.models.config import ModelConfig, model_identity
from embedcli.models.files import ModelFiles

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, Int64Array

log = logging.getLogger(__name__)

# Padded tokens per batch. CPU: activations should stay in cache; rows per CPU second over `encode` with packed layers:
# 1024: 1.93, 1536: 2.08, 2048: 1.92, 3072: 1.97, and 16384 no gain. The accelerators' are not measured but chosen:
# wide enough to fill them, small beside their memory.
TORCH_BATCH_TOKENS = {"cpu": 1536, "cuda": 65536, "xpu": 32768, "mps": 8192}
# Characters of a chunk that are tokenized and batched together, on all threads: about a million tokens.
PORTION_CHARACTERS = 1 << 22
# Lengths are padded up to a multiple, so that few shapes occur: MPS keeps a graph per shape, tensor cores like 8.
TORCH_PAD_MULTIPLES = {"cpu": 8, "cuda": 8, "xpu": 8, "mps": 16}
# Threads that tokenize for a card: what they hand over goes through Python, one at a time. A CPU has other work.
MAX_TOKENIZER_THREADS = 4
PROBE_TEXTS = ("a", "The same model must give the same vector, whoever multiplies its matrices.", "向量 vecteur вектор")
MIN_FLOAT32_COSINE = 0.999999
# In half precision another order of sums moves a vector by some 1e-5; wrong positions or masks by 1e-2 and more.
MIN_HALF_COSINE = 0.9999
# With a row longer than the sliding windows of the networks that have them.
LONG_PROBE_TEXTS = (*PROBE_TEXTS, " ".join(PROBE_TEXTS * 30))


class TorchEncoder(BaseEncoder):
    """A sentence-transformers pipeline on one device.

    `model` maps features to `sentence_embedding` as the job wants it (its Normalize module added or dropped);
    `tokenizer` is a FastTokenizer, or None where the model's own must be used. Both are what a converter needs;
    convert before the first `forward`, which packs the linear layers on a CPU.
    """

    max_in_flight: int
    empty_reason = "no token left of the text"

    def __init__(self, job: Job, files: ModelFiles, recipe: ModelConfig, notify: Callable[[str], None]) -> None:
        if job.compile:
            torch_compile.configure_environment()
        import torch

        self.device = choose_device(job.device)
        self.dtype = torch_device.select_dtype(torch, job.dtype, self.device)
        self._job, self._files, self.config, self._notify = job, files, recipe, notify
        kind = self.device.partition(":")[0]
        self.max_in_flight = 1 if kind == "cpu" else 2
        self.batch_tokens = TORCH_BATCH_TOKENS.get(kind, 16384)
        self.pad_to_multiple_of = TORCH_PAD_MULTIPLES.get(kind, 8)
        self._copies = DeviceTransfer(torch, self.device, as_float16=_stored_in_half(job))
        _threads(job.threads or cpu_quota())
        self.model = self._load(self.dtype)
        self.text_tokenizer = self._choose_words()
        self.fast_tokenizer = self.text_tokenizer if isinstance(self.text_tokenizer, FastTokenizer) else None
        self._typed = self.fast_tokenizer is not None and "token_type_ids" in self.model.tokenizer.model_input_names
        self._exact_model: Any = None
        plain = kind == "cpu" and self.dtype == "float32" and not isinstance(self.text_tokenizer, PipelinePreprocessor)
        self._packable = plain and linear_prepack.is_prepack_available(torch)
        self._flat: varlen_attention.VarlenBatcher | None = None
        self._compile_errors: tuple[type[BaseException], ...] = ()
        self.dim = int(self._probe().shape[1])
        self._unpad(varlen_attention.find_kernels)
        if job.compile:
            self._compile()
        if kind in memory_budget.MEASURABLE_DEVICES:
            self._fit(memory_budget.DeviceMemoryProbe(torch, self.device))

    def vector_space(self) -> dict[str, Any]:
        """What decides the vectors, with the device, dtype and library versions that made them."""
        import torch

        return {
            **model_identity(self._files, self.config, "float32" if self.dtype == "float32" else "half"),
            "dim": self.dim,
            "dtype": self.dtype,
            "engine": "torch",
            "device": self.device,
            "versions": {name: version(name) for name in ("sentence-transformers", "transformers", "tokenizers")}
            | {"torch": torch.__version__},
        }

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Each text once, prompt first, cut to the model's limit."""
        return self.text_tokenizer.tokenize(texts)

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]] | None:
        """Split a text as its fast tokenizer does; None without one."""
        return None if self.fast_tokenizer is None else self.fast_tokenizer.split_into_windows(text, overlap)

    def forward(self, tokens: Tokens, rows: Int64Array) -> PendingVectors:
        """Start one batch; on an accelerator nothing waits for it. Raises OutOfMemory if it does not fit."""
        if self._packable:
            self._packable = False
            self._pack()
        with translate_device_errors(self.device):
            return self._run(self.model, tokens, rows)

    def collect(self, output: PendingVectors) -> Float32Array:
        """float32 [rows, dim], once the device has made them."""
        with translate_device_errors(self.device):
            if output.ready_event is not None:
                output.ready_event.synchronize()
            made: Float32Array = output.vectors.float().cpu().numpy()
        return made

    def has_verified_vectors(self, output: PendingVectors) -> bool:
        """Whether the device has seen that every vector of a collected batch is finite and not zero."""
        return output.has_usable_vectors is not None and bool(output.has_usable_vectors)

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> Float32Array:
        """The same rows in float32, one by one, so that no other row's padding or overflow touches them."""
        model = self.model if self.dtype == "float32" else self._exact()
        with translate_device_errors(self.device):
            made = [self.collect(self._run(model, tokens, rows[i : i + 1])) for i in range(len(rows))]
        return np.concatenate(made) if made else np.empty((0, self.dim), np.float32)

    def close(self) -> None:
        """Give the model's memory back."""
        self.model = self._exact_model = None
        if self.fast_tokenizer is not None:
            self.fast_tokenizer.close()
        gc.collect()
        self._copies.release_cached_memory()

    def _load(self, dtype: str) -> Any:
        with _quiet(), translate_load_errors(self._files):
            import torch
            from sentence_transformers import SentenceTransformer
            from transformers import AttentionMaskInterface

            attention_masks.install_mask_functions(AttentionMaskInterface)
            model = SentenceTransformer(
                str(self._files.path),
                device=self.device,
                # Only where the files need it: with the flag a model that transformers knows would run its own copy.
                trust_remote_code=bool(self.config.custom_code),
                local_files_only=True,
                model_kwargs={"dtype": getattr(torch, dtype)},
            )
            return adjust_normalize_module(model.eval(), self.config)

    def _choose_words(self) -> FastTokenizer | TransformersTokenizer | PipelinePreprocessor:
        """Our tokenizer where it gives the model's own ids, else the model's own, else its whole preprocessing."""
        recipe, model = self.config, self.model
        if not _takes_token_ids(model, recipe):
            return PipelinePreprocessor(model, recipe)
        own = model.tokenizer
        backend = getattr(own, "backend_tokenizer", None)
        if backend is not None and matches_reference(own, recipe.max_seq_length):
            return FastTokenizer(
                backend,
                limit=recipe.max_seq_length,
                prompt=recipe.prompt,
                pad_id=own.pad_token_id or 0,
                pads_left=own.padding_side == "left",
                cut_left=own.truncation_side == "left",
                threads=self._job.threads or min(MAX_TOKENIZER_THREADS, count_usable_cores())
                if self.max_in_flight > 1
                else 1,
            )
        self._notify(f"{self._files.name} has no fast tokenizer: its own is used")
        return TransformersTokenizer(own, limit=recipe.max_seq_length, prompt=recipe.prompt)

    def _features(self, tokens: Tokens, rows: Int64Array) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        """What the pipeline takes for a batch, on the device, and the context to run it in."""
        if isinstance(self.text_tokenizer, PipelinePreprocessor):
            return self.text_tokenizer.build_features(tokens, rows, self.device), nullcontext()
        batch: AbstractContextManager[None]
        if self._flat is not None:
            features = self._flat.build_features(tokens, rows, self._copies.to_device)
            batch = self._flat.batch_context(features)
        else:
            ids, mask = pad_rows(
                tokens,
                rows,
                self.pad_to_multiple_of,
                self.text_tokenizer.pad_id,
                self.text_tokenizer.pads_left,
                self.config.max_positions,
            )
            features = {"input_ids": self._copies.to_device(ids), "attention_mask": self._copies.to_device(mask)}
            # A model's own code may mask more of a row than its padding.
            batch = nullcontext() if self.config.custom_code else attention_masks.batch_padding(padded=not mask.all())
        if self._typed:
            features["token_type_ids"] = features["input_ids"].new_zeros(features["input_ids"].shape)
        if self.prompt_length:
            features["prompt_length"] = self.prompt_length
        if self.config.task:
            features["task"] = self.config.task
        return features, batch

    @property
    def prompt_length(self) -> int | None:
        """The tokens of the prompt that pooling must leave out, or None when it takes all."""
        if self.config.pools_prompt or isinstance(self.text_tokenizer, PipelinePreprocessor):
            return None
        return self.text_tokenizer.prompt_length or None

    def prepare_for_tracing(self) -> AbstractContextManager[TraceablePipeline]:
        """The pipeline for a converter; see tracing.traced. Before the first `forward`, and with a `tokenizer`."""
        import torch
        from transformers import masking_utils

        return prepare_for_tracing(self, torch, masking_utils)

    def _run(self, model: Any, tokens: Tokens, rows: Int64Array) -> PendingVectors:
        """Start a batch; if its shape cannot be compiled, nothing is compiled from here on."""
        try:
            return self._start(model, tokens, rows)
        except self._compile_errors as error:
            if is_out_of_memory(error, TORCH_OUT_OF_MEMORY_SIGNS):
                raise
            self._uncompile(torch_compile.root_cause(error))
        return self._start(model, tokens, rows)

    def _start(self, model: Any, tokens: Tokens, rows: Int64Array) -> PendingVectors:
        import torch

        features, batch = self._features(tokens, rows)
        with torch.inference_mode(), batch:
            vectors = model(features)["sentence_embedding"].float()
            if self.config.normalize and self.dtype != "float32":
                # A half-precision Normalize module leaves lengths off by 1e-3.
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return self._copies.to_host(vectors)

    def _probe(self, texts: Sequence[str] = PROBE_TEXTS) -> Float32Array:
        with translate_load_errors(self._files):
            tokens = self.tokenize(texts)
            rows = np.flatnonzero(tokens.lengths)
            if not len(rows):
                return np.empty((0, int(self.model.get_embedding_dimension())), np.float32)
            return self.collect(self._start(self.model, tokens, rows))

    def _unpad(self, kernels: Callable[..., Sequence[varlen_attention.AttentionKernel]]) -> None:
        """Leave padding out by the first kernel that keeps the vectors; after another, load the model anew."""
        import torch

        if isinstance(self.text_tokenizer, PipelinePreprocessor) or not varlen_attention.has_standard_pooling(
            self.model
        ):
            return
        for kernel in kernels(torch, self.device, self.dtype, self.model[0].auto_model):
            if self._unpadded_by(kernel):
                # Without padding a batch may be of any rows: a card begins while the rest of its chunk is tokenized.
                self.pad_to_multiple_of, self.portion_characters = 0, PORTION_CHARACTERS
                return
            has_place, self._flat = self._flat is not None, None
            self.model = self._load(self.dtype)
            if not has_place:
                return

    def _unpadded_by(self, kernel: varlen_attention.AttentionKernel) -> bool:
        """Whether the vectors stay with a kernel that leaves padding out."""
        import torch
        import transformers

        before, lowest = self._probe(LONG_PROBE_TEXTS), 0.0
        with suppress(
            varlen_attention.UnsupportedAttentionError,
            RuntimeError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            ModelError,
        ):
            self._flat = varlen_attention.install_varlen_attention(torch, transformers, self.model[0], kernel)
            lowest = float(row_cosines(before, self._probe(LONG_PROBE_TEXTS)).min()) if self._flat is not None else 0.0
        if lowest < MIN_HALF_COSINE:
            log.debug("without padding the lowest cosine is %s", lowest)
        return lowest >= MIN_HALF_COSINE

    def _compile(self) -> None:
        """Compile the layers; where that fails or moves a vector, they run as they are, and that is said."""
        import torch

        self._notify("compiling the network with torch.compile: the first batches of each shape wait")
        least = MIN_FLOAT32_COSINE if self.dtype == "float32" else MIN_HALF_COSINE
        with _quiet():
            fault = torch_compile.compile_layers(torch, self.model, lambda: self._probe(LONG_PROBE_TEXTS), least)
        if fault is not None:
            self._uncompile(fault)
        else:
            self._packable, self._compile_errors = False, torch_compile.compile_error_types(torch)

    def _uncompile(self, reason: str) -> None:
        torch_compile.restore_layers(self.model)
        self._compile_errors = ()
        self._notify(f"the network runs without torch.compile: {reason}")

    def _fit(self, gauge: memory_budget.DeviceMemoryProbe) -> None:
        """Lower the token budget to what the device's memory holds."""
        if isinstance(self.text_tokenizer, PipelinePreprocessor):
            return
        word = int(self.tokenize(PROBE_TEXTS).ids[-1])
        longest = self.config.max_seq_length or self.config.max_positions or 512

        def run(count: int) -> int:
            rows, every = memory_budget.repeat_token_rows(word, count // longest, longest), np.arange(count // longest)
            return gauge.measure_peak(lambda: self.collect(self.forward(rows, every)))

        self.batch_tokens = memory_budget.fit_token_budget(self.batch_tokens, longest, gauge.read_free_bytes, run)

    def _pack(self) -> None:
        """Pack the linear layers; where that fails or changes a vector, the model is loaded again as it was."""
        import torch

        before = self._probe()
        try:
            count = linear_prepack.prepack_linear_layers(torch, self.model)
            after = self._probe() if count else before
            lowest = float(row_cosines(before, after).min())
        except (RuntimeError, AttributeError, TypeError, ModelError) as error:
            log.debug("linear layers are not packed: %s", error)
            lowest = 0.0
        if lowest < MIN_FLOAT32_COSINE:
            log.debug("packed linear layers differ (cosine %s): plain ones are used", lowest)
            self.model = self._load(self.dtype)

    def _exact(self) -> Any:
        if self._exact_model is None:
            self._exact_model = self._load("float32")
        return self._exact_model


def load_torch_encoder(job: Job, files: ModelFiles, recipe: ModelConfig, notify: Callable[[str], None]) -> TorchEncoder:
    """Load a model on the job's device.

    Raises UsageError for a device or dtype that is not here, ModelError where the model cannot be loaded or run.
    """
    return TorchEncoder(job, files, recipe, notify)


def adjust_normalize_module(model: Any, recipe: ModelConfig) -> Any:
    """The pipeline with a Normalize module at its end if and only if the job wants vectors of length 1."""
    from sentence_transformers.sentence_transformer import modules

    ends_so = isinstance(model[-1], modules.Normalize)
    if ends_so and not recipe.normalize:
        del model[-1]
    elif recipe.normalize and not ends_so:
        model.append(modules.Normalize())
    return model


def _takes_token_ids(model: Any, recipe: ModelConfig) -> bool:
    """Whether the pipeline begins with a text transformer whose input is token ids and a mask, nothing else."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    first = model[0]
    if type(first) is not Transformer or model.tokenizer is None or "text" not in first.modality_config:
        return False
    # A saved pipeline with a chat template is fed through it; a raw folder's template was not made for embedding.
    return "message" not in first.modality_config or not recipe.is_saved_pipeline


def _stored_in_half(job: Job) -> bool:
    """Whether a vector becomes float16 and nothing else: no other number is computed from it."""
    return job.precision == "float16" and job.truncate_dim is None and job.overflow != "pool"


def _threads(count: int | None) -> None:
    if count:
        import torch

        torch.set_num_threads(count)


@contextmanager
def _quiet() -> Iterator[None]:
    """While loading: no progress bars, and the libraries' warnings go to logging, which prints only with -v."""
    from transformers.utils import logging as told

    told.disable_progress_bar()  # type: ignore[no-untyped-call]
    told.disable_default_handler()
    told.enable_propagation()
    for name in ("transformers", "sentence_transformers", "huggingface_hub"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
