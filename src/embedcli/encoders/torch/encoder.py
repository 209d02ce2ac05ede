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

from embedcli.core.cpu import cores, quota
from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.errors import ModelError
from embedcli.core.job import Job
from embedcli.encoders.equivalence import cosines
from embedcli.encoders.errors import out_of_memory
from embedcli.encoders.tokenize.fallback import OwnWords, Texts, agrees
from embedcli.encoders.tokenize.fast import FastTokenizer, pad
from embedcli.encoders.torch import attention_masks, linear_prepack, memory_budget, varlen_attention
from embedcli.encoders.torch import compile as torch_compile
from embedcli.encoders.torch import device as torch_device
from embedcli.encoders.torch.device import choose_device
from embedcli.encoders.torch.errors import OUT_OF_MEMORY, device_faults, load_errors
from embedcli.encoders.torch.export import Traced, traced
from embedcli.encoders.torch.transfer import Copies, Fetched
from embedcli.models.config import Recipe, identity
from embedcli.models.files import ModelFiles

if TYPE_CHECKING:
    from embedcli.core.types import Floats, Rows

log = logging.getLogger(__name__)

# Padded tokens per batch. CPU: activations should stay in cache; rows per CPU second over `encode` with packed layers:
# 1024: 1.93, 1536: 2.08, 2048: 1.92, 3072: 1.97, and 16384 no gain. The accelerators' are not measured but chosen:
# wide enough to fill them, small beside their memory.
BATCH_TOKENS = {"cpu": 1536, "cuda": 65536, "xpu": 32768, "mps": 8192}
# Characters of a chunk that are tokenized and batched together, on all threads: about a million tokens.
PORTION = 1 << 22
# Lengths are padded up to a multiple, so that few shapes occur: MPS keeps a graph per shape, tensor cores like 8.
MULTIPLE = {"cpu": 8, "cuda": 8, "xpu": 8, "mps": 16}
# Threads that tokenize for a card: what they hand over goes through Python, one at a time. A CPU has other work.
MOST_THREADS = 4
PROBE = ("a", "The same model must give the same vector, whoever multiplies its matrices.", "向量 vecteur вектор")
SAME_COSINE = 0.999999
# In half precision another order of sums moves a vector by some 1e-5; wrong positions or masks by 1e-2 and more.
UNPADDED_COSINE = 0.9999
# With a row longer than the sliding windows of the networks that have them.
LONG_PROBE = (*PROBE, " ".join(PROBE * 30))


class TransformerEncoder(BaseEncoder):
    """A sentence-transformers pipeline on one device.

    `model` maps features to `sentence_embedding` as the job wants it (its Normalize module added or dropped);
    `tokenizer` is a FastTokenizer, or None where the model's own must be used. Both are what a converter needs;
    convert before the first `forward`, which packs the linear layers on a CPU.
    """

    lanes: int
    empty_reason = "no token left of the text"

    def __init__(self, job: Job, files: ModelFiles, recipe: Recipe, notify: Callable[[str], None]) -> None:
        if job.compile:
            torch_compile.prepare()
        import torch

        self.device = choose_device(job.device)
        self.dtype = torch_device.dtype(torch, job.dtype, self.device)
        self._job, self._files, self.recipe, self._notify = job, files, recipe, notify
        kind = self.device.partition(":")[0]
        self.lanes = 1 if kind == "cpu" else 2
        self.batch_tokens = BATCH_TOKENS.get(kind, 16384)
        self.multiple = MULTIPLE.get(kind, 8)
        self._copies = Copies(torch, self.device, half=_stored_in_half(job))
        _threads(job.threads or quota())
        self.model = self._load(self.dtype)
        self.words = self._choose_words()
        self.tokenizer = self.words if isinstance(self.words, FastTokenizer) else None
        self._typed = self.tokenizer is not None and "token_type_ids" in self.model.tokenizer.model_input_names
        self._exact_model: Any = None
        plain = kind == "cpu" and self.dtype == "float32" and not isinstance(self.words, Texts)
        self._packable = plain and linear_prepack.available(torch)
        self._flat: varlen_attention.Flat | None = None
        self._compile_errors: tuple[type[BaseException], ...] = ()
        self.dim = int(self._probe().shape[1])
        self._unpad(varlen_attention.kernels)
        if job.compile:
            self._compile()
        if kind in memory_budget.KINDS:
            self._fit(memory_budget.Gauge(torch, self.device))

    def space(self) -> dict[str, Any]:
        """What decides the vectors, with the device, dtype and library versions that made them."""
        import torch

        return {
            **identity(self._files, self.recipe, "float32" if self.dtype == "float32" else "half"),
            "dim": self.dim,
            "dtype": self.dtype,
            "engine": "torch",
            "device": self.device,
            "versions": {name: version(name) for name in ("sentence-transformers", "transformers", "tokenizers")}
            | {"torch": torch.__version__},
        }

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Each text once, prompt first, cut to the model's limit."""
        return self.words.tokenize(texts)

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]] | None:
        """Split a text as its fast tokenizer does; None without one."""
        return None if self.tokenizer is None else self.tokenizer.split_into_windows(text, overlap)

    def forward(self, tokens: Tokens, rows: Rows) -> Fetched:
        """Start one batch; on an accelerator nothing waits for it. Raises OutOfMemory if it does not fit."""
        if self._packable:
            self._packable = False
            self._pack()
        with device_faults(self.device):
            return self._run(self.model, tokens, rows)

    def collect(self, output: Fetched) -> Floats:
        """float32 [rows, dim], once the device has made them."""
        with device_faults(self.device):
            if output.ready is not None:
                output.ready.synchronize()
            made: Floats = output.vectors.float().cpu().numpy()
        return made

    def has_verified_vectors(self, output: Fetched) -> bool:
        """Whether the device has seen that every vector of a collected batch is finite and not zero."""
        return output.sound is not None and bool(output.sound)

    def exact(self, tokens: Tokens, rows: Rows) -> Floats:
        """The same rows in float32, one by one, so that no other row's padding or overflow touches them."""
        model = self.model if self.dtype == "float32" else self._exact()
        with device_faults(self.device):
            made = [self.collect(self._run(model, tokens, rows[i : i + 1])) for i in range(len(rows))]
        return np.concatenate(made) if made else np.empty((0, self.dim), np.float32)

    def close(self) -> None:
        """Give the model's memory back."""
        self.model = self._exact_model = None
        if self.tokenizer is not None:
            self.tokenizer.close()
        gc.collect()
        self._copies.empty_cache()

    def _load(self, dtype: str) -> Any:
        with _quiet(), load_errors(self._files):
            import torch
            from sentence_transformers import SentenceTransformer
            from transformers import AttentionMaskInterface

            attention_masks.install(AttentionMaskInterface)
            model = SentenceTransformer(
                str(self._files.folder),
                device=self.device,
                # Only where the files need it: with the flag a model that transformers knows would run its own copy.
                trust_remote_code=bool(self.recipe.custom_code),
                local_files_only=True,
                model_kwargs={"dtype": getattr(torch, dtype)},
            )
            return normalized(model.eval(), self.recipe)

    def _choose_words(self) -> FastTokenizer | OwnWords | Texts:
        """Our tokenizer where it gives the model's own ids, else the model's own, else its whole preprocessing."""
        recipe, model = self.recipe, self.model
        if not _takes_token_ids(model, recipe):
            return Texts(model, recipe)
        own = model.tokenizer
        backend = getattr(own, "backend_tokenizer", None)
        if backend is not None and agrees(own, recipe.max_seq_length):
            return FastTokenizer(
                backend,
                limit=recipe.max_seq_length,
                prompt=recipe.prompt,
                pad_id=own.pad_token_id or 0,
                pad_left=own.padding_side == "left",
                cut_left=own.truncation_side == "left",
                threads=self._job.threads or min(MOST_THREADS, cores()) if self.lanes > 1 else 1,
            )
        self._notify(f"{self._files.name} has no fast tokenizer: its own is used")
        return OwnWords(own, limit=recipe.max_seq_length, prompt=recipe.prompt)

    def _features(self, tokens: Tokens, rows: Rows) -> tuple[dict[str, Any], AbstractContextManager[None]]:
        """What the pipeline takes for a batch, on the device, and the context to run it in."""
        if isinstance(self.words, Texts):
            return self.words.features(tokens, rows, self.device), nullcontext()
        batch: AbstractContextManager[None]
        if self._flat is not None:
            features = self._flat.features(tokens, rows, self._copies.put)
            batch = self._flat.running(features)
        else:
            ids, mask = pad(tokens, rows, self.multiple, self.words.pad_id, self.words.pad_left, self.recipe.positions)
            features = {"input_ids": self._copies.put(ids), "attention_mask": self._copies.put(mask)}
            # A model's own code may mask more of a row than its padding.
            batch = nullcontext() if self.recipe.custom_code else attention_masks.running(padded=not mask.all())
        if self._typed:
            features["token_type_ids"] = features["input_ids"].new_zeros(features["input_ids"].shape)
        if self.prompt_length:
            features["prompt_length"] = self.prompt_length
        if self.recipe.task:
            features["task"] = self.recipe.task
        return features, batch

    @property
    def prompt_length(self) -> int | None:
        """The tokens of the prompt that pooling must leave out, or None when it takes all."""
        if self.recipe.include_prompt or isinstance(self.words, Texts):
            return None
        return self.words.prompt_length or None

    def traced(self) -> AbstractContextManager[Traced]:
        """The pipeline for a converter; see tracing.traced. Before the first `forward`, and with a `tokenizer`."""
        import torch
        from transformers import masking_utils

        return traced(self, torch, masking_utils)

    def _run(self, model: Any, tokens: Tokens, rows: Rows) -> Fetched:
        """Start a batch; if its shape cannot be compiled, nothing is compiled from here on."""
        try:
            return self._start(model, tokens, rows)
        except self._compile_errors as error:
            if out_of_memory(error, OUT_OF_MEMORY):
                raise
            self._uncompile(torch_compile.why(error))
        return self._start(model, tokens, rows)

    def _start(self, model: Any, tokens: Tokens, rows: Rows) -> Fetched:
        import torch

        features, batch = self._features(tokens, rows)
        with torch.inference_mode(), batch:
            vectors = model(features)["sentence_embedding"].float()
            if self.recipe.normalize and self.dtype != "float32":
                # A half-precision Normalize module leaves lengths off by 1e-3.
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return self._copies.fetch(vectors)

    def _probe(self, texts: Sequence[str] = PROBE) -> Floats:
        with load_errors(self._files):
            tokens = self.tokenize(texts)
            rows = np.flatnonzero(tokens.lengths)
            if not len(rows):
                return np.empty((0, int(self.model.get_embedding_dimension())), np.float32)
            return self.collect(self._start(self.model, tokens, rows))

    def _unpad(self, kernels: Callable[..., Sequence[varlen_attention.Kernel]]) -> None:
        """Leave padding out by the first kernel that keeps the vectors; after another, load the model anew."""
        import torch

        if isinstance(self.words, Texts) or not varlen_attention.pools(self.model):
            return
        for kernel in kernels(torch, self.device, self.dtype, self.model[0].auto_model):
            if self._unpadded_by(kernel):
                # Without padding a batch may be of any rows: a card begins while the rest of its chunk is tokenized.
                self.multiple, self.portion_characters = 0, PORTION
                return
            has_place, self._flat = self._flat is not None, None
            self.model = self._load(self.dtype)
            if not has_place:
                return

    def _unpadded_by(self, kernel: varlen_attention.Kernel) -> bool:
        """Whether the vectors stay with a kernel that leaves padding out."""
        import torch
        import transformers

        before, lowest = self._probe(LONG_PROBE), 0.0
        with suppress(
            varlen_attention.Unsupported, RuntimeError, TypeError, ValueError, KeyError, IndexError, ModelError
        ):
            self._flat = varlen_attention.install(torch, transformers, self.model[0], kernel)
            lowest = float(cosines(before, self._probe(LONG_PROBE)).min()) if self._flat is not None else 0.0
        if lowest < UNPADDED_COSINE:
            log.debug("without padding the lowest cosine is %s", lowest)
        return lowest >= UNPADDED_COSINE

    def _compile(self) -> None:
        """Compile the layers; where that fails or moves a vector, they run as they are, and that is said."""
        import torch

        self._notify("compiling the network with torch.compile: the first batches of each shape wait")
        least = SAME_COSINE if self.dtype == "float32" else UNPADDED_COSINE
        with _quiet():
            fault = torch_compile.install(torch, self.model, lambda: self._probe(LONG_PROBE), least)
        if fault is not None:
            self._uncompile(fault)
        else:
            self._packable, self._compile_errors = False, torch_compile.errors(torch)

    def _uncompile(self, reason: str) -> None:
        torch_compile.restore(self.model)
        self._compile_errors = ()
        self._notify(f"the network runs without torch.compile: {reason}")

    def _fit(self, gauge: memory_budget.Gauge) -> None:
        """Lower the token budget to what the device's memory holds."""
        if isinstance(self.words, Texts):
            return
        word = int(self.tokenize(PROBE).ids[-1])
        longest = self.recipe.max_seq_length or self.recipe.positions or 512

        def run(count: int) -> int:
            rows, every = memory_budget.rows_of(word, count // longest, longest), np.arange(count // longest)
            return gauge.peak_of(lambda: self.collect(self.forward(rows, every)))

        self.batch_tokens = memory_budget.fitting(self.batch_tokens, longest, gauge.free, run)

    def _pack(self) -> None:
        """Pack the linear layers; where that fails or changes a vector, the model is loaded again as it was."""
        import torch

        before = self._probe()
        try:
            count = linear_prepack.pack(torch, self.model)
            after = self._probe() if count else before
            lowest = float(cosines(before, after).min())
        except (RuntimeError, AttributeError, TypeError, ModelError) as error:
            log.debug("linear layers are not packed: %s", error)
            lowest = 0.0
        if lowest < SAME_COSINE:
            log.debug("packed linear layers differ (cosine %s): plain ones are used", lowest)
            self.model = self._load(self.dtype)

    def _exact(self) -> Any:
        if self._exact_model is None:
            self._exact_model = self._load("float32")
        return self._exact_model


def load(job: Job, files: ModelFiles, recipe: Recipe, notify: Callable[[str], None]) -> TransformerEncoder:
    """Load a model on the job's device.

    Raises UsageError for a device or dtype that is not here, ModelError where the model cannot be loaded or run.
    """
    return TransformerEncoder(job, files, recipe, notify)


def normalized(model: Any, recipe: Recipe) -> Any:
    """The pipeline with a Normalize module at its end if and only if the job wants vectors of length 1."""
    from sentence_transformers.sentence_transformer import modules

    ends_so = isinstance(model[-1], modules.Normalize)
    if ends_so and not recipe.normalize:
        del model[-1]
    elif recipe.normalize and not ends_so:
        model.append(modules.Normalize())
    return model


def _takes_token_ids(model: Any, recipe: Recipe) -> bool:
    """Whether the pipeline begins with a text transformer whose input is token ids and a mask, nothing else."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    first = model[0]
    if type(first) is not Transformer or model.tokenizer is None or "text" not in first.modality_config:
        return False
    # A saved pipeline with a chat template is fed through it; a raw folder's template was not made for embedding.
    return "message" not in first.modality_config or not recipe.saved


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
