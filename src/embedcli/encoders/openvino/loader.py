"""Load a compiled transformer without importing torch; on first use, convert it and compare it with PyTorch."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.errors import DeviceOutOfMemoryError, ModelError, first_line
from embedcli.core.job import Job
from embedcli.encoders import equivalence
from embedcli.encoders.openvino import cache
from embedcli.encoders.openvino.cache import CachedModel, clear_cached_models, list_cached_models
from embedcli.encoders.openvino.encoder import ConvertedNetwork, LoadRequest, OpenVinoEncoder
from embedcli.encoders.openvino.multi_vector import MultiVectorOpenVinoEncoder
from embedcli.encoders.openvino.runtime import NotConvertibleError, OpenVinoRuntime
from embedcli.encoders.openvino.stored_probe import PROBE_FILE, StoredProbe, build_stored_probe, read_stored_probe

if TYPE_CHECKING:
    from embedcli.core.encoder import BaseEncoder
    from embedcli.encoders.openvino.bert import BertModel

    TorchEncoderFactory = Callable[[Job], Any]
    Notify = Callable[[str], None]

__all__ = [
    "CachedModel",
    "LoadRequest",
    "OpenVinoEncoder",
    "clear_cached_models",
    "list_cached_models",
    "load_openvino_encoder",
]

log = logging.getLogger(__name__)


class LazyTorchEncoder:
    """The PyTorch encoder of the same job, loaded on first use."""

    def __init__(self, request: LoadRequest, build: TorchEncoderFactory) -> None:
        self._request, self._build = request, build
        self._float32: Any = None

    def float32_encoder(self) -> Any:
        """The encoder in float32, to convert from and to compare with."""
        if self._float32 is None:
            # Probes compare the network's own vectors: clusters of nearly equal ones could differ.
            self._float32 = self._build(replace(self._request.job, dtype="float32", pool_factor=None))
        return self._float32

    def requested_encoder(self) -> Any:
        """The encoder in the job's dtype."""
        if self._request.dtype == "float32" and self._request.job.pool_factor is None:
            return self.float32_encoder()
        self.close()
        return self._build(self._request.job)

    def close(self) -> None:
        """Release the float32 encoder's memory."""
        if self._float32 is not None:
            self._float32.close()
            self._float32 = None
            gc.collect()


def load_openvino_encoder(
    request: LoadRequest, build: TorchEncoderFactory, notify: Notify, on_phase: Notify
) -> BaseEncoder:
    """Load a model for OpenVINO, from the cache or by converting it now. Falls back to PyTorch if that is impossible.

    Args:
        request: The model, its settings and the job.
        build: Loads the PyTorch encoder of a job. Called only if the model is not in the cache.
        notify: Gets a line if the model is compiled, and if PyTorch is used instead.
        on_phase: Gets a few words when compiling begins.

    Raises:
        UsageError: The CPU does not support the job's dtype.
        ModelError: The job has --engine openvino, and the model cannot run on it.
    """
    name, torch = request.files.name, LazyTorchEncoder(request, build)
    try:
        encoder: BaseEncoder = _load_or_convert(request, torch, notify, on_phase)
    except DeviceOutOfMemoryError as error:
        reason = f"there is not enough memory to compile it ({error})"
    except NotConvertibleError as error:
        reason = error.reason
        if error.is_permanent:
            cache.record_not_convertible(request.folder, name, reason)
    else:
        torch.close()
        return encoder
    if request.job.engine == "openvino":
        raise ModelError(f"{name} cannot run with --engine openvino: {reason}", "leave --engine openvino out")
    notify(f"{name} runs on PyTorch: {reason}")
    fallback: BaseEncoder = torch.requested_encoder()
    return fallback


def _load_or_convert(
    request: LoadRequest, torch: LazyTorchEncoder, notify: Notify, on_phase: Notify
) -> OpenVinoEncoder:
    cached = _load_from_cache(request)
    if cached is not None:
        return cached
    from embedcli.encoders.openvino.bert import read_bundled_bert

    runtime = OpenVinoRuntime(request)
    on_phase(f"compiling {request.files.name} (once per model; ~20 s)")
    with cache.exclusive_lock(request.folder.name):
        # Another process may have compiled it while this one waited for the lock.
        source = read_bundled_bert(request) or torch
        return _load_from_cache(request) or _convert_and_store(request, runtime, source, notify)


def _load_from_cache(request: LoadRequest) -> OpenVinoEncoder | None:
    """The cached model, or None. Raises NotConvertibleError if the cache says that it cannot be converted."""
    try:
        metadata = cache.read_cached_model(request.folder)
        if metadata is None:
            return None
        if metadata.get("reason"):
            raise NotConvertibleError(metadata["reason"], is_permanent=False)
        return _open_stored(request, OpenVinoRuntime(request), metadata)
    except cache.UnusableCacheEntryError as error:
        log.debug("%s: compiling it again", error)
    with suppress(OSError):
        cache.delete_cached_model(request.folder)
    return None


def _open_stored(request: LoadRequest, runtime: OpenVinoRuntime, metadata: Mapping[str, Any]) -> OpenVinoEncoder:
    folder = request.folder
    try:
        network = ConvertedNetwork(metadata, (folder / "tokenizer.json").read_text("utf-8"), folder)
        encoder = _build_encoder(request, network, runtime)
        if read_stored_probe((folder / PROBE_FILE).read_bytes()).matches(encoder):
            return encoder
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise cache.UnusableCacheEntryError(f"{folder} cannot be opened: {first_line(error)}") from error
    encoder.close()
    raise cache.UnusableCacheEntryError(f"{folder} no longer gives the vectors that it gave when it was stored")


def _build_encoder(request: LoadRequest, network: ConvertedNetwork, runtime: OpenVinoRuntime) -> OpenVinoEncoder:
    kind = MultiVectorOpenVinoEncoder if request.config.kind == "multi_vector" else OpenVinoEncoder
    return kind(request, network, runtime.compile)


def _convert_and_store(
    request: LoadRequest, runtime: OpenVinoRuntime, source: LazyTorchEncoder | BertModel, notify: Notify
) -> OpenVinoEncoder:
    """Convert the model, compare it with its source and store it. If that fails, use the network in memory."""
    notify(f"compiling {request.files.name} for this CPU (only once)")
    network, probe = _convert_network(request, runtime, source)
    try:
        with cache.draft_folder() as draft:
            runtime.save(network.graph, draft)
            (draft / "tokenizer.json").write_text(network.tokenizer_json, "utf-8")
            stored = replace(network, folder=draft, graph=None)
            (draft / PROBE_FILE).write_bytes(_check_vectors(request, runtime, stored, probe, source).to_bytes())
            cache.write_metadata(draft, network.metadata)
            cache.publish_draft(draft, request.folder)
        metadata = cache.read_cached_model(request.folder)
        if metadata and not metadata.get("reason"):
            return _open_stored(request, runtime, metadata)
        problem = f"{request.folder} exists already"
    except (OSError, RuntimeError, NotConvertibleError, cache.UnusableCacheEntryError) as error:
        problem = first_line(error)
    # A full disk can make the stored network differ: only the one in memory says whether the model is convertible.
    _check_vectors(request, runtime, network, probe, source)
    notify(f"{request.files.name} will be compiled again at the next start, because it could not be stored: {problem}")
    return _build_encoder(request, network, runtime)


def _convert_network(
    request: LoadRequest, runtime: OpenVinoRuntime, source: LazyTorchEncoder | BertModel
) -> tuple[ConvertedNetwork, equivalence.EquivalenceProbe]:
    """The converted network in memory, and the probe with the source's vectors. Raises NotConvertibleError."""
    if not isinstance(source, LazyTorchEncoder):
        with _as_not_convertible("its graph cannot be built"):
            return source.convert()
    torch_encoder = source.float32_encoder()
    if torch_encoder.fast_tokenizer is None:
        raise NotConvertibleError(torch_encoder.text_tokenizer.not_fast_reason)
    with _as_not_convertible("OpenVINO cannot convert it"), torch_encoder.prepare_for_tracing() as traced:
        graph = runtime.convert(traced)
    tokenizer = torch_encoder.model.tokenizer
    metadata: dict[str, Any] = {
        "name": request.files.name,
        "pad_id": tokenizer.pad_token_id or 0,
        "pad_left": tokenizer.padding_side == "left",
        "cut_left": tokenizer.truncation_side == "left",
        **({} if traced.selection is None else {"token_selection": asdict(traced.selection)}),
    }
    network = ConvertedNetwork(metadata, tokenizer.backend_tokenizer.to_str(), graph=graph)
    with _as_not_convertible("it fails in PyTorch"):
        probe = _build_probe(request, network, torch_encoder, traced)
    metadata["dim"] = int(probe.expected_vectors.shape[1])
    if traced.depends_on_length and probe.longest_row < (request.config.max_positions or np.inf):
        raise NotConvertibleError(f"its position encoding changes for rows longer than {probe.longest_row} tokens")
    return network, probe


def _build_probe(
    request: LoadRequest, network: ConvertedNetwork, torch_encoder: Any, traced: Any
) -> equivalence.EquivalenceProbe:
    """The probe with PyTorch's vectors, its longest row within the model's own limit."""
    config = request.config
    limit = config.max_positions or config.max_seq_length
    longest = equivalence.longest_probe_row(limit, traced.size, traced.heads)
    return equivalence.build_probe(network.build_tokenizer(config, None), torch_encoder, longest)


def _check_vectors(
    request: LoadRequest,
    runtime: OpenVinoRuntime,
    network: ConvertedNetwork,
    probe: equivalence.EquivalenceProbe,
    source: LazyTorchEncoder | BertModel,
) -> StoredProbe:
    """Compare tokens and vectors with the source's in float32, and return rows to compare at later starts.

    Raises:
        NotConvertibleError: They differ.
    """
    float32_request = replace(request, job=replace(request.job, dtype="float32", pool_factor=None))
    try:
        encoder = _build_encoder(float32_request, network, runtime)
        if not equivalence.tokenizes_alike(encoder, source.float32_encoder(), probe.texts):
            raise NotConvertibleError("its tokenizer returns different tokens after it is saved and loaded")
        difference = equivalence.describe_difference(probe, encoder)
        stored_probe = build_stored_probe(encoder)
        encoder.close()
    except RuntimeError as error:
        raise NotConvertibleError(f"OpenVINO cannot run it: {first_line(error)}") from error
    if difference:
        raise NotConvertibleError(difference)
    return stored_probe


@contextmanager
def _as_not_convertible(reason: str) -> Iterator[None]:
    """Turn any error of the model's own code into NotConvertibleError."""
    try:
        yield
    except (NotConvertibleError, DeviceOutOfMemoryError):
        raise
    except Exception as error:
        raise NotConvertibleError(f"{reason}: {first_line(error)}") from error
