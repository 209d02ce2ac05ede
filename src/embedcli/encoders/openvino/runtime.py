"""OpenVINO on this CPU: convert, store and compile a network with the right options."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcli.core.cpu import cpu_quota
from embedcli.core.errors import UsageError, first_line
from embedcli.encoders.errors import translate_memory_errors
from embedcli.encoders.openvino import cache
from embedcli.encoders.openvino.activations import needs_separate_activations, separate_activations

if TYPE_CHECKING:
    from embedcli.encoders.openvino.encoder import ConvertedNetwork, LoadRequest

log = logging.getLogger(__name__)

# THROUGHPUT: as many streams as suit the cores, each with one batch. No pinning: several processes would pin to the
# same cores, and on two cores it gains nothing. OPTIMIZE_SIZE: a blob without the weights is small and starts as fast.
COMPILE_OPTIONS = {"PERFORMANCE_HINT": "THROUGHPUT", "ENABLE_CPU_PINNING": False, "CACHE_MODE": "OPTIMIZE_SIZE"}
# For few texts: each stream builds its kernels for itself, and a single batch runs on one of them. With ten rows on
# two cores of an AMD EPYC (Zen 4): 0.95 of the processor seconds of the whole job; the vectors are the same bits.
ONE_STREAM = {"NUM_STREAMS": 1}
# Always set: by default OpenVINO uses bfloat16 where the CPU supports it, and replaces an unsupported float16.
OPENVINO_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
CPU_CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16"}
CONVERTER_MODULE = "openvino.tools.ovc"


class NotConvertibleError(Exception):
    """The model cannot run on OpenVINO.

    Attributes:
        reason: Why, as half a sentence about the model ("it has no fast tokenizer").
        is_permanent: Whether every later try with the same libraries would fail as well.
    """

    def __init__(self, reason: str, is_permanent: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_permanent = is_permanent


class OpenVinoRuntime:
    """OpenVINO on this CPU, for one job. Raises UsageError if the CPU does not support the job's dtype."""

    def __init__(self, request: LoadRequest) -> None:
        self._openvino = _import_openvino()
        self._core = self._openvino.Core()
        self._threads = request.job.threads or cpu_quota()
        self._streams = ONE_STREAM if request.few_texts else {}
        self._capabilities = read_capabilities(self._core)
        capability = CPU_CAPABILITIES.get(request.dtype)
        if capability and capability not in self._capabilities:
            raise UsageError(f"this CPU has no {request.dtype} instructions", "use --dtype float32")

    def convert(self, traced: Any) -> Any:
        """Convert a traced pipeline to an OpenVINO graph. Raises whatever the model's own code raises."""
        with translate_memory_errors(), _isolate_converter():
            from openvino.tools.ovc import convert_model

            return convert_model(traced.module, example_input=traced.example)

    def save(self, graph: Any, folder: Path) -> None:
        """Write the graph to `folder`, with the weights in float32."""
        self._openvino.save_model(graph, str(folder / "model.xml"), compress_to_fp16=False)

    def compile(self, network: ConvertedNetwork, dtype: str) -> Any:
        """Compile the network for this CPU. Raises RuntimeError or DeviceOutOfMemoryError."""
        options: dict[str, Any] = {**COMPILE_OPTIONS, "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[dtype]}
        if self._threads:
            options["INFERENCE_NUM_THREADS"] = self._threads
        with translate_memory_errors():
            if network.folder is None:
                return compile_graph(self._core, network.graph, options | self._streams)
            return self._compile_stored(network.folder, options)

    def _compile_stored(self, folder: Path, options: dict[str, Any]) -> Any:
        """Import the stored blob for this CPU, or compile the network and store one."""
        blob = folder / f"{self._machine_key(options)}.blob"
        content = cache.read_checked_file(blob)
        if content is not None:
            try:
                weights = {"WEIGHTS_PATH": str(folder / "model.bin")}
                return self._core.import_model(content, "CPU", options | self._streams | weights)
            except RuntimeError as error:
                log.debug("%s is not used: %s", blob, error)
        graph = self._core.read_model(str(folder / "model.xml"))
        compiled = compile_graph(self._core, graph, options | self._streams)
        cache.write_checked_file(blob, compiled.export_model().getvalue())
        return compiled

    def _machine_key(self, options: dict[str, Any]) -> str:
        """A short name for the CPU and the options that a blob is compiled for."""
        facts = [self._core.get_property("CPU", "FULL_DEVICE_NAME"), self._capabilities, sorted(options.items())]
        facts += ["separate activations"] if needs_separate_activations(self._capabilities) else []
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def compile_graph(core: Any, graph: Any, options: dict[str, Any]) -> Any:
    """Compile a graph for this CPU, where it may be changed. Raises RuntimeError."""
    if needs_separate_activations(read_capabilities(core)):
        separate_activations(graph)
    return core.compile_model(graph, "CPU", options)


def read_capabilities(core: Any) -> list[str]:
    """What OpenVINO says that this CPU has instructions for."""
    capabilities: list[str] = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return capabilities


def _import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which would connect to Intel on import and on conversion."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    if "openvino" not in sys.modules:
        # `import openvino` also imports the converter, which takes a third as long again; only `convert` needs it.
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
def _isolate_converter() -> Iterator[None]:
    """Undo what the converter does to the root logger, and drop what it prints if sys.argv has --verbose."""
    root = logging.getLogger()
    level, handlers, filters = root.level, root.handlers, root.filters
    root.handlers, root.filters = [*handlers, logging.NullHandler()], list(filters)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        root.setLevel(level)
        root.handlers, root.filters = handlers, filters
