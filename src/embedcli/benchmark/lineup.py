"""Who takes part: variants of embedcli and the baseline, with equivalent settings."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcli.benchmark.contenders import Contender, EmbedcliRun, PeerLibrary
from embedcli.benchmark.machine import has_bfloat16
from embedcli.benchmark.timed_process import child_environment
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.encoders.torch import device as torch_device
from embedcli.models.config import ModelConfig
from embedcli.models.files import ModelFiles

if TYPE_CHECKING:
    from collections.abc import Sequence

Notify = Callable[[str], None]

# The batch sizes tried for each library: its own default and what its users try around it.
BATCH_SIZES = {
    "sentence-transformers": (32, 128, 512),
    "fastembed": (32, 128, 256),
    "light-embed": (32, 128, 256),
    "model2vec": (256, 1024, 4096),
}
BASELINE_BATCH_SIZE = {"sentence-transformers": 32, "model2vec": 1024}
INSTALL_HINTS = {
    "sentence-transformers": "pip install sentence-transformers",
    "model2vec": "pip install model2vec",
}
REQUIRED_PACKAGES = {
    "sentence-transformers": ("sentence_transformers", "torch", "transformers"),
    "model2vec": ("model2vec",),
}


@dataclass(frozen=True)
class MeasuredModel:
    """The model of a comparison, and how a job uses it.

    Attributes:
        job: The job.
        files: The model's files.
        recipe: Its inference settings.
        arguments: The encoder options of the job, as typed.
        format: `transformer`, or the format of a static model.
    """

    job: Job
    files: ModelFiles
    recipe: ModelConfig
    arguments: tuple[str, ...]
    format: str = "transformer"

    @property
    def is_static(self) -> bool:
        return self.files.kind == "static"


@dataclass
class Lineup:
    """The contenders in the order of their runs.

    Attributes:
        embedcli_runs: The variants of embedcli.
        baseline: What everything is compared with.
        peers: Other libraries.
        missing: Why a contender does not take part, by name.
    """

    embedcli_runs: list[EmbedcliRun]
    baseline: PeerLibrary
    peers: list[PeerLibrary] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def contenders(self) -> list[Contender]:
        return [*self.embedcli_runs, self.baseline, *self.peers]


def resolve_model(job: Job, arguments: tuple[str, ...]) -> MeasuredModel:
    """Find the model of a job and everything that other libraries must be configured with.

    Raises:
        UsageError: The model does not run on this machine.
        ModelError: The model cannot be found or used.
    """
    from embedcli import encoders
    from embedcli.encoders.static import encoder as static_encoder
    from embedcli.models import config as model_config

    files = encoders.resolve_model_files(job)
    if files is None:
        raise UsageError(f"bench measures encoders on this machine, and {job.model} is hosted", "use `embedcli encode`")
    if files.kind != "static":
        return MeasuredModel(job, files, encoders.resolve_model_config(job, files), arguments)
    settings = model_config.read_model_config(files, job)
    identity = static_encoder.static_model_identity(files, job)
    settings = replace(settings, max_seq_length=identity["max_seq_length"], normalize=identity["normalize"])
    return MeasuredModel(job, files, settings, arguments, str(static_encoder.detect_static_format(files.path)))


def choose_embedcli_runs(model: MeasuredModel) -> list[EmbedcliRun]:
    """Choose embedcli as requested; if it may choose engine and number format, also its other choices."""
    requested = EmbedcliRun("embedcli", model.arguments)
    job = model.job
    if model.is_static or (job.engine, job.dtype) != ("auto", "auto") or not torch_device.runs_on_cpu(job):
        return [requested]
    runs = [requested, EmbedcliRun("embedcli torch", (*model.arguments, "--engine", "torch"))]
    if has_bfloat16():
        runs.insert(1, EmbedcliRun("embedcli bfloat16", (*model.arguments, "--dtype", "bfloat16")))
    return runs


def choose_baseline(model: MeasuredModel) -> PeerLibrary:
    """Choose what everything is compared with.

    It is `SentenceTransformer.encode` in float32 with batch size 32 on a CPU, in float16 on an accelerator, and
    model2vec for its own models. On an accelerator and for model2vec, `choose_batch_size` is to follow.

    Raises:
        UsageError: No other library reads the model.
        ModelError: The library that reads it is not installed.
    """
    if not model.is_static:
        require_baseline("sentence-transformers")
        if torch_device.runs_on_cpu(model.job):
            return configure_library(model, "sentence-transformers", "sentence-transformers 32")
        half = {"dtype": "float16"}
        return configure_library(model, "sentence-transformers", "sentence-transformers f16", half)
    if model.format == "model2vec":
        require_baseline("model2vec")
        return configure_library(model, "model2vec", "model2vec")
    if model.format == "static-embedding":
        require_baseline("sentence-transformers")
        return configure_library(model, "sentence-transformers", "sentence-transformers 32")
    raise UsageError(
        f"bench has nothing to compare {model.format} files with", "give a transformer or a model2vec folder"
    )


def configure_library(
    model: MeasuredModel,
    library: str,
    name: str,
    changes: dict[str, Any] | None = None,
    python: str = sys.executable,
) -> PeerLibrary:
    """Configure a library like embedcli: prompt, limit, normalization, dimensions, device, threads.

    Args:
        model: The model and the job.
        library: A library that the program of other libraries knows.
        name: The contender's name.
        changes: Settings that replace those of the job.
        python: The interpreter that has the library.
    """
    job, recipe = model.job, model.recipe
    device = "cpu" if torch_device.runs_on_cpu(job) else None if job.device == "auto" else job.device
    settings = {
        "library": library,
        "model": str(model.files.path.resolve()),
        "batch_sizes": [BASELINE_BATCH_SIZE.get(library, 256)],
        "device": device,
        "dtype": "float32",
        "threads": job.threads,
        "prompt": recipe.prompt,
        "max_seq_length": recipe.max_seq_length,
        "normalize": recipe.normalize,
        "truncate_dim": recipe.truncate_dim,
        "kind": recipe.kind,
        "task": recipe.task,
        "trust_remote_code": job.trust_remote_code,
        "pooling": recipe.pooling,
    }
    return PeerLibrary(name, settings | (changes or {}), python)


def require_baseline(name: str) -> None:
    """Raise ModelError if the library that everything is compared with is not installed."""
    if find_missing_packages(REQUIRED_PACKAGES[name], sys.executable):
        raise ModelError(f"{name}, the baseline for this model, is not installed", INSTALL_HINTS[name])


def find_missing_packages(packages: Sequence[str], python: str) -> list[str]:
    """Find the packages that an interpreter lacks, without importing them.

    Raises:
        UsageError: The interpreter cannot be run.
    """
    code = "import sys, importlib.util as u; print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
    command = [python, "-c", code, *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    if done.returncode:
        raise UsageError(f"--peer-python {python}: Python does not run", "give the path of a Python executable")
    return done.stdout.split()


def choose_batch_size(peer: PeerLibrary, rows: Path, folder: Path) -> PeerLibrary:
    """Give a library the fastest of its batch sizes on these rows; its name then ends with the size.

    Raises:
        RunFailed: The library failed.
    """
    library = str(peer.settings["library"])
    seconds = peer.time_batch_sizes(rows, folder, BATCH_SIZES[library])
    best = min(seconds, key=lambda size: seconds[size])
    return replace(peer, name=f"{peer.name} {best}", settings={**peer.settings, "batch_sizes": [best]})
