"""Choose, identify and load the encoder of a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embedcli.core.constants import DEFAULT_CHUNK_ROWS, HOSTED_PREFIX
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import RunObserver
from embedcli.models.kind_options import check_options_for_kind

if TYPE_CHECKING:
    from threading import Event

    from embedcli.core.multi_vectors import MultiVectors
    from embedcli.core.types import VectorKind
    from embedcli.encoders.torch.encoder import TorchEncoder
    from embedcli.models.config import ModelConfig
    from embedcli.models.files import ModelFiles

# A row of 300 tokens in 128 dimensions has 150 kB, and a chunk is in memory several times.
MULTI_VECTOR_CHUNK_ROWS = 512

Notify = Callable[[str], None]


def _ignore(line: str) -> None:
    pass


def load_encoder(
    job: Job,
    files: ModelFiles | None = None,
    notify: Notify = _ignore,
    stop: Event | None = None,
    on_phase: Notify = _ignore,
    *,
    deadline: float | None = None,
    few_texts: bool = False,
) -> BaseEncoder:
    """Load the encoder of a job.

    Args:
        job: The job.
        files: The model's files, if they are resolved already.
        notify: Gets one line for each thing that the user should know.
        stop: Once it is set, a hosted encoder stops waiting and raises EncodingStoppedError.
        on_phase: Gets a few words when something begins that takes long: compiling the model.
        deadline: From then on, in seconds of `time.monotonic`, a hosted encoder waits for no retry any more and raises
            EncodingStoppedError; None for no limit.
        few_texts: Whether so few texts will be encoded that a fast start matters more than many batches at once.

    Raises:
        ModelError: The model cannot be found or loaded.
        UsageError: The model or the machine cannot do what the job asks for.
    """
    if job.model.startswith(HOSTED_PREFIX):
        from embedcli.encoders.hosted import encoder as hosted_encoder

        _reject_compile(job, "a hosted model is computed by its server")
        check_options_for_kind(job, "dense")
        return hosted_encoder.load_hosted_encoder(job, notify, stop=stop, deadline=deadline)
    files = files or _resolve(job)
    if files.kind == "static":
        from embedcli.encoders.static import encoder as static_encoder

        _reject_compile(job, "static vectors are averaged, not computed by a network")
        check_options_for_kind(job, "dense")
        return static_encoder.load_static_encoder(files, job, notify)
    return _load_transformer(job, files, notify, on_phase, few_texts=few_texts)


def resolve_model_files(job: Job, observer: RunObserver | None = None) -> ModelFiles | None:
    """The files of a job's model, downloaded if necessary; None for a hosted model. Raises ModelError.

    The observer, if there is one, receives the progress of a download.
    """
    return None if job.model.startswith(HOSTED_PREFIX) else _resolve(job, observer)


def encoder_identity(job: Job, files: ModelFiles | None = None) -> dict[str, Any]:
    """What decides the vectors of a job, as JSON values; found without loading the model."""
    if job.model.startswith(HOSTED_PREFIX):
        from embedcli.encoders.hosted.identity import hosted_model_identity

        check_options_for_kind(job, "dense")
        return hosted_model_identity(job)
    files = files or _resolve(job)
    if files.kind == "static":
        from embedcli.encoders.static import encoder as static_encoder

        check_options_for_kind(job, "dense")
        return static_encoder.static_model_identity(files, job)
    from embedcli.encoders.torch import device as torch_device
    from embedcli.models import config as model_config

    return model_config.model_identity(files, resolve_model_config(job, files), torch_device.precision_class(job))


def resolve_model_config(job: Job, files: ModelFiles) -> ModelConfig:
    """The settings of a transformer for a job, with what was measured of it; the first time, the model is loaded.

    Args:
        job: The job.
        files: The model's files.

    Raises:
        UsageError: The job asks for more than the model or the machine can do.
        ModelError: The model cannot be read, or it cannot be loaded to measure it.
    """
    from embedcli.encoders.torch import device as torch_device
    from embedcli.models.config import read_model_config
    from embedcli.models.traits import read_traits, write_traits

    # The job's own limit may be above the model's, and would cut what is measured: it comes in afterwards.
    measured_job = replace(job, max_seq_length=None, pool_factor=None)
    declared, dtype = read_model_config(files, measured_job), torch_device.precision_class(job)
    if declared.heads:
        # They read the states of the same network, which is measured by the model's own vectors.
        measured_job = replace(measured_job, heads=None, top_k_terms=None, min_weight=None)
        declared = read_model_config(files, measured_job)
    traits = read_traits(files, declared, dtype)
    if traits is None:
        from embedcli.encoders.torch import model_probe

        traits = model_probe.measure_model_traits(measured_job, files, declared)
        write_traits(files, declared, dtype, traits)
    return read_model_config(files, job, traits)


def default_chunk_rows(job: Job, files: ModelFiles | None) -> int:
    """The default of --chunk-rows: low where rows take long, because a killed run loses one chunk; else high."""
    from embedcli.encoders.torch.device import runs_on_cpu
    from embedcli.models.refusals import find_model_kind

    is_hosted = files is None
    is_static = files is not None and files.kind == "static"
    if files is not None and not is_static and "multi_vector" in (job.heads or (find_model_kind(files),)):
        return MULTI_VECTOR_CHUNK_ROWS
    is_slow = is_hosted or (not is_static and runs_on_cpu(job))
    return DEFAULT_CHUNK_ROWS if is_slow else 16 * DEFAULT_CHUNK_ROWS


def stored_dim(job: Job, dim: int) -> int:
    """The dimensions left of `dim` after --truncate-dim. Raises UsageError if it asks for more."""
    if job.truncate_dim is None:
        return dim
    if not 1 <= job.truncate_dim <= dim:
        raise UsageError(
            f"--truncate-dim {job.truncate_dim} is not between 1 and the encoder's {dim} dimensions",
            f"use --truncate-dim {max(1, dim // 2)}, or leave it out",
        )
    return job.truncate_dim


def stored_dims(job: Job, encoder: BaseEncoder) -> dict[VectorKind, int]:
    """The dimensions of each column of vectors that a job writes, by their kind; raises as `stored_dim`."""
    by_head = {head: int(space["dim"]) for head, space in encoder.heads.items()}
    return by_head or {encoder.kind: stored_dim(job, encoder.dim)}


def _load_transformer(job: Job, files: ModelFiles, notify: Notify, on_phase: Notify, *, few_texts: bool) -> BaseEncoder:
    from embedcli.encoders.torch import device as torch_device

    config = resolve_model_config(job, files)
    for note in config.notes:
        notify(note)
    on_cpu = torch_device.runs_on_cpu(job)
    if job.engine == "openvino" and not on_cpu:
        raise UsageError(f"--engine openvino runs on a CPU, not on {job.device}", "add --device cpu")
    if config.heads:
        if job.engine == "openvino":
            heads = ",".join(config.heads)
            raise UsageError(f"--engine openvino cannot compute --heads {heads} of {job.model}", "use --engine torch")
        if job.engine == "auto" and on_cpu:
            notify(f"{files.name} runs on PyTorch: only its dense vectors are computed by OpenVINO")
        return _load_torch(job, files, config, notify)
    if job.engine != "torch" and on_cpu:
        if job.compile:
            raise UsageError("--compile needs the PyTorch engine", "add --engine torch")
        from embedcli.encoders.openvino import loader as openvino_loader

        request = openvino_loader.LoadRequest(files, config, job, _find_token_pooling(job), few_texts)
        encoder: BaseEncoder = openvino_loader.load_openvino_encoder(
            request, lambda job: _load_torch(job, files, config, notify), notify, on_phase
        )
        return encoder
    return _load_torch(job, files, config, notify)


def _find_token_pooling(job: Job) -> Callable[[MultiVectors, int], MultiVectors] | None:
    """What merges vectors of tokens for --pool-factor; None without it. Raises ModelError if SciPy is missing."""
    if job.pool_factor is None:
        return None
    from embedcli.encoders.token_pooling import pool_tokens, require_scipy

    require_scipy()
    return pool_tokens


def _reject_compile(job: Job, reason: str) -> None:
    if job.compile:
        raise UsageError(f"--compile needs the PyTorch engine: {reason}", "leave --compile out")


def _load_torch(job: Job, files: ModelFiles, config: ModelConfig, notify: Notify) -> TorchEncoder:
    from embedcli.encoders.torch import encoder as torch_encoder

    return torch_encoder.load_torch_encoder(job, files, config, notify)


def _resolve(job: Job, observer: RunObserver | None = None) -> ModelFiles:
    from embedcli.models.resolve import resolve_model

    return resolve_model(job, observer=observer)
