"""OpenVINO: a transformer compiled once for the CPU, checked against PyTorch, and started without importing torch."""

from __future__ import annotations

import gc
import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.contracts import Job, ModelError, OutOfMemory, Tokens, UsageError
from embedcli.encoders import compiled_cache as cache
from embedcli.encoders import probe
from embedcli.encoders.compiled_cache import Cached, cached, clear
from embedcli.encoders.files import ModelFiles
from embedcli.encoders.inference import Requests, memory, told
from embedcli.encoders.recipe import Recipe, identity
from embedcli.encoders.tokens import FastTokenizer, pad

if TYPE_CHECKING:
    from embedcli.contracts import Encoder, Floats, Rows

    Build = Callable[[Job], Any]
    Notify = Callable[[str], None]

__all__ = ["Cached", "CompiledEncoder", "cached", "clear", "load"]

log = logging.getLogger(__name__)

# Padded tokens per batch, so that activations stay in cache.
BATCH_TOKENS = 1024
# Kernels are made per shape and kept, so lengths are padded up.
MULTIPLE = 8
# Streams that take one batch each, as many as suit the cores. Not pinned: several processes would pin to the same
# cores, and on two cores pinning gains nothing. A blob without its weights is small, and starts as fast.
OPTIONS = {"PERFORMANCE_HINT": "THROUGHPUT", "ENABLE_CPU_PINNING": False, "CACHE_MODE": "OPTIMIZE_SIZE"}
# OpenVINO would take bfloat16 by itself where the CPU has it, and instead of a float16 that it has not.
PRECISION = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
CAPABILITY = {"bfloat16": "BF16", "float16": "FP16"}
QUOTA = Path("/sys/fs/cgroup/cpu.max")


class NotConvertible(Exception):
    """The model cannot run compiled, and why. `lasting`: it will not tomorrow either, with the same libraries."""

    def __init__(self, reason: str, lasting: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting


class CompiledEncoder:
    """A compiled sentence-transformers pipeline on the CPU. `lanes` batches run at the same time."""

    empty_reason = "no token left of the text"
    batch_tokens = BATCH_TOKENS
    multiple = MULTIPLE

    def __init__(self, asked: Asked, runtime: Runtime, network: Network) -> None:
        self._asked, self._runtime, self._network = asked, runtime, network
        self._recipe = asked.recipe
        self.words = network.tokenizer(asked.recipe, asked.recipe.max_seq_length)
        self.dim = int(network.facts["dim"])
        self.dtype = asked.dtype
        self._main = Requests(runtime.compile(network, self.dtype))
        self._exact = self._main if self.dtype == "float32" else None
        self.lanes = self._main.lanes

    def space(self) -> dict[str, Any]:
        """What decides the vectors, with the dtype and library versions that made them."""
        return {
            **identity(self._asked.files, self._recipe, "float32" if self.dtype == "float32" else "half"),
            "dim": self.dim,
            "dtype": self.dtype,
            "engine": "openvino",
            "device": "cpu",
            "versions": {name: cache.installed(name) for name in ("openvino", "tokenizers")},
        }

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Each text once, prompt first, cut to the model's limit."""
        return self.words.tokenize(texts)

    def forward(self, tokens: Tokens, rows: Rows) -> Any:
        """Start one batch and return at once. Raises OutOfMemory if it does not fit."""
        return self._main.start(*self._padded(tokens, rows))

    def collect(self, output: Any) -> Floats:
        """float32 [rows, dim], once they are there. Raises OutOfMemory if they did not fit."""
        return self._finished(self._main.finish(output))

    def exact(self, tokens: Tokens, rows: Rows) -> Floats:
        """The same rows in float32, one by one, so that no other row's padding touches them."""
        if self._exact is None:
            self._exact = Requests(self._runtime.compile(self._network, "float32"))
        requests = self._exact
        made = [requests.finish(requests.start(*self._padded(tokens, rows[i : i + 1]))) for i in range(len(rows))]
        return self._finished(np.concatenate(made)) if made else np.empty((0, self.dim), np.float32)

    def close(self) -> None:
        """Wait for what still runs, and give the memory back."""
        for requests in (self._main, self._exact):
            if requests is not None:
                requests.close()

    def _padded(self, tokens: Tokens, rows: Rows) -> tuple[Any, Any]:
        words = self.words
        return pad(tokens, rows, self.multiple, words.pad_id, words.pad_left, self._recipe.positions)

    def _finished(self, vectors: Floats) -> Floats:
        if not self._recipe.normalize:
            return vectors
        # As torch.nn.functional.normalize: a length below 1e-12 counts as 1e-12.
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        made: Floats = vectors / np.maximum(lengths, np.float32(1e-12))
        return made


@dataclass(frozen=True)
class Asked:
    """What is to be loaded, and for which job."""

    files: ModelFiles
    recipe: Recipe
    job: Job

    @property
    def dtype(self) -> str:
        return "float32" if self.job.dtype == "auto" else self.job.dtype

    @property
    def folder(self) -> Path:
        return cache.home() / cache.key(self.files, self.recipe)


@dataclass(frozen=True)
class Network:
    """A converted pipeline: the network (in memory, else in `folder`), its facts, and its words as JSON."""

    facts: Mapping[str, Any]
    words: str
    folder: Path | None = None
    graph: Any = None

    def tokenizer(self, recipe: Recipe, limit: int | None) -> FastTokenizer:
        from tokenizers import Tokenizer

        facts = self.facts
        return FastTokenizer(
            Tokenizer.from_str(self.words),
            limit=limit,
            prompt=recipe.prompt,
            pad_id=facts["pad_id"],
            pad_left=facts["pad_left"],
            cut_left=facts["cut_left"],
        )


class Runtime:
    """OpenVINO's CPU, for one job. Raises UsageError for a dtype it has not."""

    def __init__(self, asked: Asked) -> None:
        self._openvino = _openvino()
        self._core = self._openvino.Core()
        self._threads = asked.job.threads or _quota()
        capability = CAPABILITY.get(asked.dtype)
        if capability and capability not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UsageError(f"this CPU has no {asked.dtype} instructions", "use --dtype float32")

    def convert(self, traced: Any) -> Any:
        """The graph of a traced pipeline. Raises NotConvertible."""
        try:
            with memory(), _undisturbed():
                return self._openvino.convert_model(traced.module, example_input=traced.example)
        except OutOfMemory as error:
            raise NotConvertible(f"the memory does not suffice to convert it ({error})", lasting=False) from error
        except Exception as error:
            raise NotConvertible(f"OpenVINO cannot convert it: {told(error)}") from error

    def save(self, graph: Any, folder: Path) -> None:
        self._openvino.save_model(graph, str(folder / "model.xml"), compress_to_fp16=False)

    def compile(self, network: Network, dtype: str) -> Any:
        """The network, ready to run. Raises RuntimeError or OutOfMemory."""
        options: dict[str, Any] = {**OPTIONS, "INFERENCE_PRECISION_HINT": PRECISION[dtype]}
        if self._threads:
            options["INFERENCE_NUM_THREADS"] = self._threads
        with memory():
            if network.folder is None:
                return self._core.compile_model(network.graph, "CPU", options)
            return self._compile_stored(network.folder, options)

    def _compile_stored(self, folder: Path, options: dict[str, Any]) -> Any:
        blob = folder / f"{self._machine(options)}.blob"
        contents = cache.recall(blob)
        if contents is not None:
            try:
                weights = {"WEIGHTS_PATH": str(folder / "model.bin")}
                return self._core.import_model(contents, "CPU", options | weights)
            except RuntimeError as error:
                log.debug("%s is not used: %s", blob, error)
        compiled = self._core.compile_model(str(folder / "model.xml"), "CPU", options)
        cache.store(blob, compiled.export_model().getvalue())
        return compiled

    def _machine(self, options: dict[str, Any]) -> str:
        """What a blob was made for, as a short name."""
        facts = [self._core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        return hashlib.sha256(repr((facts, sorted(options.items()))).encode()).hexdigest()[:16]


class Torch:
    """The PyTorch side, built when it is first needed and once only where one will do."""

    def __init__(self, asked: Asked, build: Build) -> None:
        self._asked, self._build = asked, build
        self._float32: Any = None

    def float32(self) -> Any:
        if self._float32 is None:
            self._float32 = self._build(replace(self._asked.job, dtype="float32"))
        return self._float32

    def wanted(self) -> Any:
        """As the job wants it."""
        if self._asked.dtype == "float32":
            return self.float32()
        self.close()
        return self._build(self._asked.job)

    def close(self) -> None:
        if self._float32 is not None:
            self._float32.close()
            self._float32 = None
            gc.collect()


def load(files: ModelFiles, recipe: Recipe, job: Job, build: Build, notify: Notify) -> Encoder:
    """The compiled model, from the cache or compiled now; where it cannot be, the PyTorch side and a line on why.

    `build(job)` loads the PyTorch side (a TransformerEncoder); it is called on a cache miss only. Raises UsageError
    for a dtype this CPU has not, ModelError where --engine openvino is asked for and cannot be.
    """
    asked = Asked(files, recipe, job)
    torch = Torch(asked, build)
    try:
        encoder: Encoder = _load(asked, torch, notify)
    except OutOfMemory as error:
        raise ModelError(f"{files.name} does not fit in memory: {error}", "use a smaller model") from error
    except NotConvertible as error:
        reason = error.reason
        if error.lasting:
            cache.remember(asked.folder, files.name, reason)
    else:
        torch.close()
        return encoder
    if job.engine == "openvino":
        raise ModelError(f"{files.name} cannot run with --engine openvino: {reason}", "leave --engine openvino out")
    notify(f"{files.name} runs on PyTorch: {reason}")
    fallback: Encoder = torch.wanted()
    return fallback


def _load(asked: Asked, torch: Torch, notify: Notify) -> CompiledEncoder:
    folder = asked.folder
    try:
        facts = cache.read(folder)
        if facts and facts.get("reason"):
            raise NotConvertible(facts["reason"], lasting=False)
        runtime = Runtime(asked)
        if facts:
            return _open(asked, runtime, facts)
    except cache.Unusable as error:
        log.debug("%s: compiled again", error)
        with suppress(OSError):
            cache.discard(folder)
        runtime = Runtime(asked)
    return _convert(asked, runtime, torch, notify)


def _open(asked: Asked, runtime: Runtime, facts: Mapping[str, Any]) -> CompiledEncoder:
    """What is in the cache. Raises Unusable."""
    folder = asked.folder
    try:
        network = Network(facts, (folder / "tokenizer.json").read_text("utf-8"), folder)
        return CompiledEncoder(asked, runtime, network)
    except (OSError, RuntimeError) as error:
        raise cache.Unusable(f"{folder} cannot be opened: {told(error)}") from error


def _convert(asked: Asked, runtime: Runtime, torch: Torch, notify: Notify) -> CompiledEncoder:
    """Convert, compare with PyTorch, keep, and use what is kept; where nothing can be kept, what is in memory."""
    notify(f"compiling {asked.files.name} for this CPU, once")
    network, wanted = _converted(asked, runtime, torch)
    try:
        with cache.draft() as work:
            runtime.save(network.graph, work)
            (work / "tokenizer.json").write_text(network.words, "utf-8")
            _check(asked, runtime, replace(network, folder=work, graph=None), wanted, torch)
            cache.seal(work, network.facts)
            cache.publish(work, asked.folder)
        facts = cache.read(asked.folder)
        if facts and not facts.get("reason"):
            return _open(asked, runtime, facts)
        trouble = f"{asked.folder} is in the way"
    except (OSError, RuntimeError, NotConvertible, cache.Unusable) as error:
        trouble = told(error)
    # A full disk may show as a network that differs, so only the one in memory says that the model does.
    _check(asked, runtime, network, wanted, torch)
    notify(f"{asked.files.name} will be compiled again at the next start, as it cannot be kept: {trouble}")
    return CompiledEncoder(asked, runtime, network)


def _converted(asked: Asked, runtime: Runtime, torch: Torch) -> tuple[Network, probe.Probe]:
    """The network in memory, and the probe with PyTorch's vectors. Raises NotConvertible."""
    built = torch.float32()
    if built.tokenizer is None:
        raise NotConvertible("it has no fast tokenizer, or reads more than token ids")
    with built.traced() as traced:
        graph = runtime.convert(traced)
    own = built.model.tokenizer
    facts = {
        "name": asked.files.name,
        "pad_id": own.pad_token_id or 0,
        "pad_left": own.padding_side == "left",
        "cut_left": own.truncation_side == "left",
    }
    network = Network(facts, own.backend_tokenizer.to_str(), graph=graph)
    most = probe.longest(asked.recipe.positions, traced.size)
    wanted = probe.probe(network.tokenizer(asked.recipe, None), built, most)
    if traced.length_dependent and wanted.longest < (asked.recipe.positions or np.inf):
        raise NotConvertible(f"its position encoding changes with a row's length beyond {wanted.longest} tokens")
    facts |= {"dim": int(wanted.wanted.shape[1]), "checked_tokens": wanted.longest}
    return network, wanted


def _check(asked: Asked, runtime: Runtime, network: Network, wanted: probe.Probe, torch: Torch) -> None:
    """Compare with PyTorch in float32. Raises NotConvertible."""
    exactly = replace(asked, job=replace(asked.job, dtype="float32"))
    try:
        encoder = CompiledEncoder(exactly, runtime, network)
        if not probe.same_words(encoder, torch.float32(), wanted.texts):
            raise NotConvertible("its tokenizer gives other tokens once it is stored")
        difference = probe.difference(wanted, encoder)
        encoder.close()
    except OutOfMemory as error:
        raise NotConvertible(f"the memory does not suffice to check it ({error})", lasting=False) from error
    except RuntimeError as error:
        raise NotConvertible(f"OpenVINO cannot run it: {told(error)}") from error
    if difference:
        raise NotConvertible(difference)


def _openvino() -> Any:
    """OpenVINO, unable to report its use: importing it and converting both would otherwise try to reach its maker."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise NotConvertible(f"OpenVINO cannot be imported: {told(error)}", lasting=False) from error
    return openvino


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The converter sets up the root logger for itself, and with --verbose among the arguments writes to stdout."""
    root = logging.getLogger()
    level, handlers, filters = root.level, root.handlers, root.filters
    root.handlers, root.filters = [*handlers, logging.NullHandler()], list(filters)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        root.setLevel(level)
        root.handlers, root.filters = handlers, filters


def _quota() -> int | None:
    """The CPUs a container may use, rounded up, where its limit is on time and not on cores."""
    try:
        quota, period = QUOTA.read_text("ascii").split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None
