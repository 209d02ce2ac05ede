"""Encoders: which one a job needs, and what it is called before it is loaded.

Each module offers `load`: transformer.load(job, files, recipe, notify), compiled.load(files, recipe, job, build,
notify), static.load(files, job, notify), remote.load(job, notify); static and remote also offer `identity(...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedcli.core.constants import DEFAULT_CHUNK_ROWS, HOSTED_PREFIX
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import UsageError
from embedcli.core.job import Job

if TYPE_CHECKING:
    from threading import Event

    from embedcli.encoders.torch.encoder import TorchEncoder
    from embedcli.models.config import ModelConfig
    from embedcli.models.files import ModelFiles

Notify = Callable[[str], None]


def _quiet(line: str) -> None:
    pass


def load_encoder(
    job: Job, files: ModelFiles | None = None, notify: Notify = _quiet, stop: Event | None = None
) -> BaseEncoder:
    """The encoder of a job, ready to run. `notify` gets one line for each thing the user should know.

    Once `stop` is set, a hosted encoder waits for nothing any more and raises ModelError.
    Raises ModelError where the model cannot be found or loaded, UsageError where the job asks for what it cannot do.
    """
    if job.model.startswith(HOSTED_PREFIX):
        from embedcli.encoders.hosted import encoder as hosted_encoder

        _refuse_compiling(job, "a hosted model is computed elsewhere")
        return hosted_encoder.load_hosted_encoder(job, notify, stop=stop)
    files = files or _resolve(job)
    if files.kind == "static":
        from embedcli.encoders.static import encoder as static_encoder

        _refuse_compiling(job, "static vectors are summed, not computed by a network")
        return static_encoder.load_static_encoder(files, job, notify)
    return _load_transformer(job, files, notify)


def resolve_model_files(job: Job) -> ModelFiles | None:
    """The files of a job's model, fetched if need be; None for a hosted model. Raises ModelError."""
    return None if job.model.startswith(HOSTED_PREFIX) else _resolve(job)


def encoder_identity(job: Job, files: ModelFiles | None = None) -> dict[str, Any]:
    """What decides the vectors of a job, found without loading its model: the same before and after a run."""
    if job.model.startswith(HOSTED_PREFIX):
        from embedcli.encoders.hosted import encoder as hosted_encoder

        return hosted_encoder.hosted_model_identity(job)
    files = files or _resolve(job)
    if files.kind == "static":
        from embedcli.encoders.static import encoder as static_encoder

        return static_encoder.static_model_identity(files, job)
    from embedcli.encoders.torch import device as torch_device
    from embedcli.models import config as model_config

    return model_config.model_identity(
        files, model_config.read_model_config(files, job), torch_device.precision_class(job)
    )


def default_chunk_rows(job: Job, files: ModelFiles | None) -> int:
    """Rows per chunk: few where a row takes long (a kill costs one chunk), many where batches are large."""
    from embedcli.encoders.torch.device import runs_on_cpu

    if files is not None and files.kind == "static":
        return 16 * DEFAULT_CHUNK_ROWS
    if files is None or runs_on_cpu(job):
        return DEFAULT_CHUNK_ROWS
    return 16 * DEFAULT_CHUNK_ROWS


def stored_dim(job: Job, dim: int) -> int:
    """The width of vectors of `dim` floats after --truncate-dim; UsageError if it is wider than they are."""
    if job.truncate_dim is None:
        return dim
    if not 1 <= job.truncate_dim <= dim:
        raise UsageError(
            f"--truncate-dim {job.truncate_dim} is not between 1 and the encoder's {dim} dimensions",
            f"use --truncate-dim {max(1, dim // 2)}, or leave it out",
        )
    return job.truncate_dim


def _load_transformer(job: Job, files: ModelFiles, notify: Notify) -> BaseEncoder:
    from embedcli.encoders.torch import device as torch_device
    from embedcli.models.config import read_model_config

    made = read_model_config(files, job)
    for note in made.notes:
        notify(note)
    cpu = torch_device.runs_on_cpu(job)
    if job.engine == "openvino" and not cpu:
        raise UsageError(f"--engine openvino runs on a CPU, not on {job.device}", "add --device cpu")
    if job.engine != "torch" and cpu:
        if job.compile:
            raise UsageError("--compile is of the PyTorch engine", "add --engine torch")
        from embedcli.encoders.openvino import loader as openvino_loader

        encoder: BaseEncoder = openvino_loader.load_openvino_encoder(
            files, made, job, lambda job: _torch(job, files, made, notify), notify
        )
        return encoder
    return _torch(job, files, made, notify)


def _refuse_compiling(job: Job, reason: str) -> None:
    if job.compile:
        raise UsageError(f"--compile is of the PyTorch engine: {reason}", "leave --compile out")


def _torch(job: Job, files: ModelFiles, made: ModelConfig, notify: Notify) -> TorchEncoder:
    from embedcli.encoders.torch import encoder as torch_encoder

    return torch_encoder.load_torch_encoder(job, files, made, notify)


def _resolve(job: Job) -> ModelFiles:
    from embedcli.models.resolve import resolve_model

    return resolve_model(job)
