"""OpenVINO: a transformer compiled once for the CPU, checked against PyTorch, and started without importing torch."""

from __future__ import annotations

import gc
import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.cpu import quota
from embedcli.core.errors import ModelError, OutOfMemory, UsageError
from embedcli.core.job import Job
from embedcli.encoders import equivalence
from embedcli.encoders.errors import memory, told
from embedcli.encoders.openvino import cache
from embedcli.encoders.openvino.cache import Cached, cached, clear
from embedcli.encoders.openvino.encoder import Asked, CompiledEncoder, Network
from embedcli.models.config import Recipe
from embedcli.models.files import ModelFiles

if TYPE_CHECKING:
    from embedcli.core.encoder import BaseEncoder

    Build = Callable[[Job], Any]
    Notify = Callable[[str], None]

__all__ = ["Cached", "CompiledEncoder", "cached", "clear", "load"]

log = logging.getLogger(__name__)

# Streams that take one batch each, as many as suit the cores. Not pinned: several processes would pin to the same
# cores, and on two cores pinning gains nothing. A blob without its weights is small, and starts as fast.
OPTIONS = {"PERFORMANCE_HINT": "THROUGHPUT", "ENABLE_CPU_PINNING": False, "CACHE_MODE": "OPTIMIZE_SIZE"}
# OpenVINO would take bfloat16 by itself where the CPU has it, and instead of a float16 that it has not.
PRECISION = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
CAPABILITY = {"bfloat16": "BF16", "float16": "FP16"}
CONVERTER = "openvino.tools.ovc"


class NotConvertible(Exception):
    """The model cannot run compiled, and why. `lasting`: it will not tomorrow either, with the same libraries."""

    def __init__(self, reason: str, lasting: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lasting = lasting


class Runtime:
    """OpenVINO's CPU, for one job. Raises UsageError for a dtype it has not."""

    def __init__(self, asked: Asked) -> None:
        self._openvino = _openvino()
        self._core = self._openvino.Core()
        self._threads = asked.job.threads or quota()
        capability = CAPABILITY.get(asked.dtype)
        if capability and capability not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UsageError(f"this CPU has no {asked.dtype} instructions", "use --dtype float32")

    def convert(self, traced: Any) -> Any:
        """The graph of a traced pipeline. Raises whatever the model's own code raises."""
        with memory(), _undisturbed():
            from openvino.tools.ovc import convert_model

            return convert_model(traced.module, example_input=traced.example)

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


def load(files: ModelFiles, recipe: Recipe, job: Job, build: Build, notify: Notify) -> BaseEncoder:
    """The compiled model, from the cache or compiled now; where it cannot be, the PyTorch side and a line on why.

    `build(job)` loads the PyTorch side (a TransformerEncoder); it is called on a cache miss only. Raises UsageError
    for a dtype this CPU has not, ModelError where --engine openvino is asked for and cannot be.
    """
    asked = Asked(files, recipe, job)
    torch = Torch(asked, build)
    try:
        encoder: BaseEncoder = _load(asked, torch, notify)
    except OutOfMemory as error:
        reason = f"the memory does not suffice to compile it ({error})"
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
    fallback: BaseEncoder = torch.wanted()
    return fallback


def _load(asked: Asked, torch: Torch, notify: Notify) -> CompiledEncoder:
    kept = _kept(asked)
    if kept is not None:
        return kept
    runtime = Runtime(asked)
    with cache.turn(asked.folder.name):
        # Another process may have compiled it while this one waited.
        return _kept(asked) or _convert(asked, runtime, torch, notify)


def _kept(asked: Asked) -> CompiledEncoder | None:
    """What is in the cache, or None. Raises NotConvertible where the cache says so."""
    folder = asked.folder
    try:
        facts = cache.read(folder)
        if facts is None:
            return None
        if facts.get("reason"):
            raise NotConvertible(facts["reason"], lasting=False)
        _fits(asked, facts)
        return _open(asked, Runtime(asked), facts)
    except cache.Unusable as error:
        log.debug("%s: compiled again", error)
    with suppress(OSError):
        cache.discard(folder)
    return None


def _open(asked: Asked, runtime: Runtime, facts: Mapping[str, Any]) -> CompiledEncoder:
    """What is in the cache. Raises Unusable."""
    folder = asked.folder
    try:
        network = Network(facts, (folder / "tokenizer.json").read_text("utf-8"), folder)
        return CompiledEncoder(asked, network, runtime.compile)
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
    return CompiledEncoder(asked, network, runtime.compile)


def _converted(asked: Asked, runtime: Runtime, torch: Torch) -> tuple[Network, equivalence.Probe]:
    """The network in memory, and the probe with PyTorch's vectors. Raises NotConvertible."""
    built = torch.float32()
    if built.tokenizer is None:
        raise NotConvertible("it has no fast tokenizer, or reads more than token ids")
    with _otherwise("OpenVINO cannot convert it"), built.traced() as traced:
        graph = runtime.convert(traced)
    own = built.model.tokenizer
    facts = {
        "name": asked.files.name,
        "pad_id": own.pad_token_id or 0,
        "pad_left": own.padding_side == "left",
        "cut_left": own.truncation_side == "left",
    }
    network = Network(facts, own.backend_tokenizer.to_str(), graph=graph)
    wanted, whole = _probe(asked, network, built, traced.size)
    facts |= {"dim": int(wanted.wanted.shape[1]), "most_tokens": None if whole else wanted.longest}
    _fits(asked, facts)
    if traced.length_dependent and wanted.longest < (asked.recipe.positions or np.inf):
        raise NotConvertible(f"its position encoding changes with a row's length beyond {wanted.longest} tokens")
    return network, wanted


def _probe(asked: Asked, network: Network, built: Any, size: int) -> tuple[equivalence.Probe, bool]:
    """The probe with PyTorch's vectors. It has a row of all positions the model claims to have, if that is true."""
    words = network.tokenizer(asked.recipe, None)
    most = equivalence.longest(asked.recipe.positions, size)
    try:
        return equivalence.probe(words, built, most), True
    except (RuntimeError, IndexError) as error:
        log.debug("%s does not take %s tokens: %s", asked.files.name, most, error)
    with _otherwise("it fails in PyTorch"):
        return equivalence.probe(words, built, min(most, asked.recipe.max_seq_length or most)), False


def _fits(asked: Asked, facts: Mapping[str, Any]) -> None:
    """Beyond its real positions PyTorch fails, and OpenVINO reads zeros: such a limit is not for it."""
    most, limit = facts.get("most_tokens"), asked.recipe.max_seq_length
    if most and (limit is None or limit > most):
        raise NotConvertible(f"it is known to take {most} tokens, and the limit is {limit}", lasting=False)


def _check(asked: Asked, runtime: Runtime, network: Network, wanted: equivalence.Probe, torch: Torch) -> None:
    """Compare with PyTorch in float32. Raises NotConvertible."""
    exactly = replace(asked, job=replace(asked.job, dtype="float32"))
    try:
        encoder = CompiledEncoder(exactly, network, runtime.compile)
        if not equivalence.same_words(encoder, torch.float32(), wanted.texts):
            raise NotConvertible("its tokenizer gives other tokens once it is stored")
        difference = equivalence.difference(wanted, encoder)
        encoder.close()
    except RuntimeError as error:
        raise NotConvertible(f"OpenVINO cannot run it: {told(error)}") from error
    if difference:
        raise NotConvertible(difference)


@contextmanager
def _otherwise(reason: str) -> Iterator[None]:
    """Whatever a model's own code may raise means that it runs on PyTorch."""
    try:
        yield
    except (NotConvertible, OutOfMemory):
        raise
    except Exception as error:
        raise NotConvertible(f"{reason}: {told(error)}") from error


def _openvino() -> Any:
    """OpenVINO, unable to report its use: importing it and converting both would otherwise try to reach its maker."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    if "openvino" not in sys.modules:
        # It does without its converter, whose import takes as long as a third of its own; `convert` imports it.
        sys.modules[CONVERTER] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise NotConvertible(f"OpenVINO cannot be imported: {told(error)}", lasting=False) from error
    finally:
        if CONVERTER in sys.modules and sys.modules[CONVERTER] is None:
            del sys.modules[CONVERTER]
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
