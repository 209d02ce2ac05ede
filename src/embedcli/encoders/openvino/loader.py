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

from embedcli.core.cpu import cpu_quota
from embedcli.core.errors import DeviceOutOfMemoryError, ModelError, UsageError, first_line
from embedcli.core.job import Job
from embedcli.encoders import equivalence
from embedcli.encoders.errors import translate_memory_errors
from embedcli.encoders.openvino import cache
from embedcli.encoders.openvino.cache import CachedModel, clear_cached_models, list_cached_models
from embedcli.encoders.openvino.encoder import ConvertedNetwork, LoadRequest, OpenVinoEncoder
from embedcli.models.config import ModelConfig
from embedcli.models.files import ModelFiles

if TYPE_CHECKING:
    from embedcli.core.encoder import BaseEncoder

    TorchEncoderFactory = Callable[[Job], Any]
    Notify = Callable[[str], None]

__all__ = ["CachedModel", "OpenVinoEncoder", "clear_cached_models", "list_cached_models", "load_openvino_encoder"]

log = logging.getLogger(__name__)

# Streams that take one batch each, as many as suit the cores. Not pinned: several processes would pin to the same
# cores, and on two cores pinning gains nothing. A blob without its weights is small, and starts as fast.
COMPILE_OPTIONS = {"PERFORMANCE_HINT": "THROUGHPUT", "ENABLE_CPU_PINNING": False, "CACHE_MODE": "OPTIMIZE_SIZE"}
# OpenVINO would take bfloat16 by itself where the CPU has it, and instead of a float16 that it has not.
OPENVINO_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
CPU_CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16"}
CONVERTER_MODULE = "openvino.tools.ovc"


class NotConvertibleError(Exception):
    """The model cannot run compiled, and why. `lasting`: it will not tomorrow either, with the same libraries."""

    def __init__(self, reason: str, is_permanent: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_permanent = is_permanent


class OpenVinoRuntime:
    """OpenVINO's CPU, for one job. Raises UsageError for a dtype it has not."""

    def __init__(self, asked: LoadRequest) -> None:
        self._openvino = _openvino()
        self._core = self._openvino.Core()
        self._threads = asked.job.threads or cpu_quota()
        capability = CPU_CAPABILITIES.get(asked.dtype)
        if capability and capability not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UsageError(f"this CPU has no {asked.dtype} instructions", "use --dtype float32")

    def convert(self, traced: Any) -> Any:
        """The graph of a traced pipeline. Raises whatever the model's own code raises."""
        with translate_memory_errors(), _undisturbed():
            from openvino.tools.ovc import convert_model

            return convert_model(traced.module, example_input=traced.example)

    def save(self, graph: Any, folder: Path) -> None:
        self._openvino.save_model(graph, str(folder / "model.xml"), compress_to_fp16=False)

    def compile(self, network: ConvertedNetwork, dtype: str) -> Any:
        """The network, ready to run. Raises RuntimeError or OutOfMemory."""
        options: dict[str, Any] = {**COMPILE_OPTIONS, "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[dtype]}
        if self._threads:
            options["INFERENCE_NUM_THREADS"] = self._threads
        with translate_memory_errors():
            if network.folder is None:
                return self._core.compile_model(network.graph, "CPU", options)
            return self._compile_stored(network.folder, options)

    def _compile_stored(self, folder: Path, options: dict[str, Any]) -> Any:
        blob = folder / f"{self._machine(options)}.blob"
        contents = cache.read_checked_file(blob)
        if contents is not None:
            try:
                weights = {"WEIGHTS_PATH": str(folder / "model.bin")}
                return self._core.import_model(contents, "CPU", options | weights)
            except RuntimeError as error:
                log.debug("%s is not used: %s", blob, error)
        compiled = self._core.compile_model(str(folder / "model.xml"), "CPU", options)
        cache.write_checked_file(blob, compiled.export_model().getvalue())
        return compiled

    def _machine(self, options: dict[str, Any]) -> str:
        """What a blob was made for, as a short name."""
        facts = [self._core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
        return hashlib.sha256(repr((facts, sorted(options.items()))).encode()).hexdigest()[:16]


class LazyTorchEncoder:
    """The PyTorch side, built when it is first needed and once only where one will do."""

    def __init__(self, asked: LoadRequest, build: TorchEncoderFactory) -> None:
        self._asked, self._build = asked, build
        self._float32: Any = None

    def float32_encoder(self) -> Any:
        if self._float32 is None:
            self._float32 = self._build(replace(self._asked.job, dtype="float32"))
        return self._float32

    def requested_encoder(self) -> Any:
        """As the job wants it."""
        if self._asked.dtype == "float32":
            return self.float32_encoder()
        self.close()
        return self._build(self._asked.job)

    def close(self) -> None:
        if self._float32 is not None:
            self._float32.close()
            self._float32 = None
            gc.collect()


def load_openvino_encoder(
    files: ModelFiles, recipe: ModelConfig, job: Job, build: TorchEncoderFactory, notify: Notify
) -> BaseEncoder:
    """The compiled model, from the cache or compiled now; where it cannot be, the PyTorch side and a line on why.

    `build(job)` loads the PyTorch side (a TransformerEncoder); it is called on a cache miss only. Raises UsageError
    for a dtype this CPU has not, ModelError where --engine openvino is asked for and cannot be.
    """
    asked = LoadRequest(files, recipe, job)
    torch = LazyTorchEncoder(asked, build)
    try:
        encoder: BaseEncoder = _load(asked, torch, notify)
    except DeviceOutOfMemoryError as error:
        reason = f"the memory does not suffice to compile it ({error})"
    except NotConvertibleError as error:
        reason = error.reason
        if error.is_permanent:
            cache.record_not_convertible(asked.folder, files.name, reason)
    else:
        torch.close()
        return encoder
    if job.engine == "openvino":
        raise ModelError(f"{files.name} cannot run with --engine openvino: {reason}", "leave --engine openvino out")
    notify(f"{files.name} runs on PyTorch: {reason}")
    fallback: BaseEncoder = torch.requested_encoder()
    return fallback


def _load(asked: LoadRequest, torch: LazyTorchEncoder, notify: Notify) -> OpenVinoEncoder:
    kept = _kept(asked)
    if kept is not None:
        return kept
    runtime = OpenVinoRuntime(asked)
    with cache.exclusive_lock(asked.folder.name):
        # Another process may have compiled it while this one waited.
        return _kept(asked) or _convert(asked, runtime, torch, notify)


def _kept(asked: LoadRequest) -> OpenVinoEncoder | None:
    """What is in the cache, or None. Raises NotConvertible where the cache says so."""
    folder = asked.folder
    try:
        facts = cache.read_cached_model(folder)
        if facts is None:
            return None
        if facts.get("reason"):
            raise NotConvertibleError(facts["reason"], is_permanent=False)
        _fits(asked, facts)
        return _open(asked, OpenVinoRuntime(asked), facts)
    except cache.UnusableCacheEntryError as error:
        log.debug("%s: compiled again", error)
    with suppress(OSError):
        cache.delete_cached_model(folder)
    return None


def _open(asked: LoadRequest, runtime: OpenVinoRuntime, facts: Mapping[str, Any]) -> OpenVinoEncoder:
    """What is in the cache. Raises Unusable."""
    folder = asked.folder
    try:
        network = ConvertedNetwork(facts, (folder / "tokenizer.json").read_text("utf-8"), folder)
        return OpenVinoEncoder(asked, network, runtime.compile)
    except (OSError, RuntimeError) as error:
        raise cache.UnusableCacheEntryError(f"{folder} cannot be opened: {first_line(error)}") from error


def _convert(asked: LoadRequest, runtime: OpenVinoRuntime, torch: LazyTorchEncoder, notify: Notify) -> OpenVinoEncoder:
    """Convert, compare with PyTorch, keep, and use what is kept; where nothing can be kept, what is in memory."""
    notify(f"compiling {asked.files.name} for this CPU, once")
    network, wanted = _converted(asked, runtime, torch)
    try:
        with cache.draft_folder() as work:
            runtime.save(network.graph, work)
            (work / "tokenizer.json").write_text(network.tokenizer_json, "utf-8")
            _check(asked, runtime, replace(network, folder=work, graph=None), wanted, torch)
            cache.write_manifest(work, network.facts)
            cache.publish_draft(work, asked.folder)
        facts = cache.read_cached_model(asked.folder)
        if facts and not facts.get("reason"):
            return _open(asked, runtime, facts)
        trouble = f"{asked.folder} is in the way"
    except (OSError, RuntimeError, NotConvertibleError, cache.UnusableCacheEntryError) as error:
        trouble = first_line(error)
    # A full disk may show as a network that differs, so only the one in memory says that the model does.
    _check(asked, runtime, network, wanted, torch)
    notify(f"{asked.files.name} will be compiled again at the next start, as it cannot be kept: {trouble}")
    return OpenVinoEncoder(asked, network, runtime.compile)


def _converted(
    asked: LoadRequest, runtime: OpenVinoRuntime, torch: LazyTorchEncoder
) -> tuple[ConvertedNetwork, equivalence.EquivalenceProbe]:
    """The network in memory, and the probe with PyTorch's vectors. Raises NotConvertible."""
    built = torch.float32_encoder()
    if built.fast_tokenizer is None:
        raise NotConvertibleError("it has no fast tokenizer, or reads more than token ids")
    with _otherwise("OpenVINO cannot convert it"), built.prepare_for_tracing() as traced:
        graph = runtime.convert(traced)
    own = built.model.tokenizer
    facts = {
        "name": asked.files.name,
        "pad_id": own.pad_token_id or 0,
        "pad_left": own.padding_side == "left",
        "cut_left": own.truncation_side == "left",
    }
    network = ConvertedNetwork(facts, own.backend_tokenizer.to_str(), graph=graph)
    wanted, whole = _probe(asked, network, built, traced.size)
    facts |= {"dim": int(wanted.expected_vectors.shape[1]), "most_tokens": None if whole else wanted.longest_row}
    _fits(asked, facts)
    if traced.depends_on_length and wanted.longest_row < (asked.recipe.max_positions or np.inf):
        raise NotConvertibleError(
            f"its position encoding changes with a row's length beyond {wanted.longest_row} tokens"
        )
    return network, wanted


def _probe(
    asked: LoadRequest, network: ConvertedNetwork, built: Any, size: int
) -> tuple[equivalence.EquivalenceProbe, bool]:
    """The probe with PyTorch's vectors. It has a row of all positions the model claims to have, if that is true."""
    words = network.build_tokenizer(asked.recipe, None)
    most = equivalence.longest_probe_row(asked.recipe.max_positions, size)
    try:
        return equivalence.build_probe(words, built, most), True
    except (RuntimeError, IndexError) as error:
        log.debug("%s does not take %s tokens: %s", asked.files.name, most, error)
    with _otherwise("it fails in PyTorch"):
        return equivalence.build_probe(words, built, min(most, asked.recipe.max_seq_length or most)), False


def _fits(asked: LoadRequest, facts: Mapping[str, Any]) -> None:
    """Beyond its real positions PyTorch fails, and OpenVINO reads zeros: such a limit is not for it."""
    most, limit = facts.get("most_tokens"), asked.recipe.max_seq_length
    if most and (limit is None or limit > most):
        raise NotConvertibleError(f"it is known to take {most} tokens, and the limit is {limit}", is_permanent=False)


def _check(
    asked: LoadRequest,
    runtime: OpenVinoRuntime,
    network: ConvertedNetwork,
    wanted: equivalence.EquivalenceProbe,
    torch: LazyTorchEncoder,
) -> None:
    """Compare with PyTorch in float32. Raises NotConvertible."""
    exactly = replace(asked, job=replace(asked.job, dtype="float32"))
    try:
        encoder = OpenVinoEncoder(exactly, network, runtime.compile)
        if not equivalence.tokenizes_alike(encoder, torch.float32_encoder(), wanted.texts):
            raise NotConvertibleError("its tokenizer gives other tokens once it is stored")
        difference = equivalence.describe_difference(wanted, encoder)
        encoder.close()
    except RuntimeError as error:
        raise NotConvertibleError(f"OpenVINO cannot run it: {first_line(error)}") from error
    if difference:
        raise NotConvertibleError(difference)


@contextmanager
def _otherwise(reason: str) -> Iterator[None]:
    """Whatever a model's own code may raise means that it runs on PyTorch."""
    try:
        yield
    except (NotConvertibleError, DeviceOutOfMemoryError):
        raise
    except Exception as error:
        raise NotConvertibleError(f"{reason}: {first_line(error)}") from error


def _openvino() -> Any:
    """OpenVINO, unable to report its use: importing it and converting both would otherwise try to reach its maker."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    if "openvino" not in sys.modules:
        # It does without its converter, whose import takes as long as a third of its own; `convert` imports it.
        sys.modules[CONVERTER_MODULE] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise NotConvertibleError(f"OpenVINO cannot be imported: {first_line(error)}", is_permanent=False) from error
    finally:
        if CONVERTER_MODULE in sys.modules and sys.modules[CONVERTER_MODULE] is None:
            del sys.modules[CONVERTER_MODULE]
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
