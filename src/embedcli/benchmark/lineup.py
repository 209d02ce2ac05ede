"""Who takes part: embedcli's own variants, the baseline, and the peers that are installed, honestly configured."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcli.benchmark import machine
from embedcli.benchmark.contenders import PROGRAMS, Contender, Failed, Ours, Peer, ended_well
from embedcli.benchmark.model_flops import shape_of
from embedcli.benchmark.timed_process import environment, run
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.encoders.torch import device as torch_device
from embedcli.models.config import Recipe
from embedcli.models.files import ModelFiles

if TYPE_CHECKING:
    from collections.abc import Sequence

Notify = Callable[[str], None]

# The sizes that each library's batch is chosen from: around its own default, and what its users try.
BATCH_SIZES = {
    "sentence-transformers": (32, 128, 512),
    "fastembed": (32, 128, 256),
    "model2vec": (256, 1024, 4096),
}
BASELINE_BATCH = {"sentence-transformers": 32, "model2vec": 1024}
INSTALL = {
    "sentence-transformers onnx": (
        "pip install 'sentence-transformers[onnx]' onnx in an environment of its own (it needs transformers 4), "
        "then --peer-python"
    ),
    "fastembed": "pip install fastembed onnx",
    "model2vec": "pip install model2vec",
}
NEEDS = {
    "sentence-transformers onnx": ("sentence_transformers", "optimum", "onnxruntime", "onnx"),
    "fastembed": ("fastembed", "onnxruntime", "onnx"),
    "model2vec": ("model2vec",),
}


@dataclass(frozen=True)
class Subject:
    """The model that is measured: its files, and what a job makes of them."""

    job: Job
    files: ModelFiles
    recipe: Recipe
    arguments: tuple[str, ...]
    format: str = "transformer"

    @property
    def static(self) -> bool:
        return self.files.kind == "static"


@dataclass
class Field:
    """The contenders in the order of their runs; `baseline` is one of them; `missing` says why others are not."""

    ours: list[Ours]
    baseline: Peer
    peers: list[Peer] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def every(self) -> list[Contender]:
        return [*self.ours, self.baseline, *self.peers]


def subject(job: Job, arguments: tuple[str, ...]) -> Subject:
    """The model of a job with all that decides how others must be configured. Raises UsageError, ModelError."""
    from embedcli import encoders
    from embedcli.encoders.static import encoder as static_encoder
    from embedcli.models import config as model_config

    files = encoders.resolve(job)
    if files is None:
        raise UsageError(f"bench compares encoders on this machine; {job.model} is elsewhere", "use `embedcli encode`")
    made = model_config.recipe(files, job)
    if files.kind != "static":
        return Subject(job, files, made, arguments)
    own = static_encoder.identity(files, job)
    made = replace(made, max_seq_length=own["max_seq_length"], normalize=own["normalize"])
    return Subject(job, files, made, arguments, str(static_encoder.recognise(files.folder)))


def variants(subject: Subject) -> list[Ours]:
    """embedcli as asked; where engine and number format were left open, also those that could have been chosen."""
    asked = Ours("embedcli", subject.arguments)
    job = subject.job
    if subject.static or (job.engine, job.dtype) != ("auto", "auto") or not torch_device.on_cpu(job):
        return [asked]
    found = [asked, Ours("embedcli torch", (*subject.arguments, "--engine", "torch"))]
    if machine.computes_bfloat16():
        found.insert(1, Ours("embedcli bfloat16", (*subject.arguments, "--dtype", "bfloat16")))
    return found


def baseline(subject: Subject) -> Peer:
    """What everything is compared with: `SentenceTransformer.encode`, batch 32, float32; model2vec for its models.

    The batch size of model2vec is left open, for `best_batch`; so is that of an accelerator, where float16 is compared.

    Raises UsageError where no other library reads the model, ModelError where that library is missing.
    """
    if not subject.static:
        if torch_device.on_cpu(subject.job):
            return peer(subject, "sentence-transformers", "sentence-transformers 32")
        half = {"dtype": "float16"}
        return peer(subject, "sentence-transformers", "sentence-transformers f16", settings=half)
    if subject.format == "model2vec":
        if absent("model2vec", sys.executable):
            raise ModelError("model2vec, which these vectors are compared with, is missing", INSTALL["model2vec"])
        return peer(subject, "model2vec", "model2vec")
    if subject.format == "static-embedding":
        return peer(subject, "sentence-transformers", "sentence-transformers 32")
    raise UsageError(
        f"bench has nothing to compare {subject.format} files with", "give a transformer or a model2vec folder"
    )


def peer(subject: Subject, library: str, name: str, **more: Any) -> Peer:
    """A library told the same as embedcli: rows, prompt, limit, normalisation, dimensions, device, threads."""
    job, recipe = subject.job, subject.recipe
    device = "cpu" if torch_device.on_cpu(job) else None if job.device == "auto" else job.device
    settings = {
        "library": library,
        "model": str(subject.files.folder.resolve()),
        "batch_sizes": [BASELINE_BATCH.get(library, 256)],
        "device": device,
        "dtype": "float32",
        "threads": job.threads,
        "prompt": recipe.prompt,
        "max_seq_length": recipe.max_seq_length,
        "normalize": recipe.normalize,
        "truncate_dim": recipe.truncate_dim,
        "trust_remote_code": job.trust_remote_code,
        "pooling": recipe.pooling,
    }
    return Peer(name, settings | more.pop("settings", {}), **more)


def candidates(subject: Subject, python: str, folder: Path, notify: Notify) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run this model here, their batch size still open, and why the others cannot."""
    if subject.static:
        return [], {}
    found = [peer(subject, "sentence-transformers", "sentence-transformers")]
    if machine.computes_bfloat16() and torch_device.on_cpu(subject.job):
        settings = {"dtype": "bfloat16"}
        found.append(peer(subject, "sentence-transformers", "sentence-transformers bf16", settings=settings))
    missing: dict[str, str] = {}
    for name in ("sentence-transformers onnx", "fastembed"):
        lacks = absent(name, python)
        if lacks:
            missing[name] = f"{', '.join(lacks)} not installed: {INSTALL[name]}"
    if not plain(subject):
        missing["fastembed"] = "it cannot run this model's pipeline"
    wanted = [name for name in ("sentence-transformers onnx", "fastembed") if name not in missing]
    if wanted:
        try:
            model = with_onnx(subject.files.folder, python, folder, notify)
        except Failed as error:
            return found, missing | dict.fromkeys(wanted, f"no ONNX file could be made: {error}")
        found += [onnx_peer(subject, name, str(model), python) for name in wanted]
    return found, missing


def onnx_peer(subject: Subject, name: str, model: str, python: str) -> Peer:
    shape = shape_of(subject.files.folder)
    own = {"model": model, "backend": "onnx", "dim": shape.hidden if shape else None}
    return peer(subject, name.removesuffix(" onnx"), name, settings=own, python=python)


def plain(subject: Subject) -> bool:
    """Whether the model's pipeline is one that fastembed's custom models have: mean or first token, nothing after."""
    recipe = subject.recipe
    simple = set(recipe.modules) <= {"Transformer", "Pooling", "Normalize"}
    return simple and recipe.pooling in ("mean", "cls") and recipe.truncate_dim is None


def absent(name: str, python: str) -> list[str]:
    """The packages that a peer needs and the interpreter `python` does not find; nothing is imported."""
    wanted: Sequence[str] = NEEDS[name]
    code = "import sys, importlib.util as u; print(*[n for n in sys.argv[1:] if u.find_spec(n) is None])"
    told = subprocess.run([python, "-c", code, *wanted], capture_output=True, text=True, check=False, env=environment())
    if told.returncode:
        raise UsageError(f"--peer-python {python} is no Python that runs", "give the path of a python executable")
    return told.stdout.split()


def with_onnx(model: Path, python: str, folder: Path, notify: Notify) -> Path:
    """A folder with the model's files and onnx/model.onnx: its own if it has one, else made here. Raises Failed."""
    if (model / "onnx" / "model.onnx").is_file():
        return model
    notify("making an ONNX file of the model for the libraries that need one")
    copy = folder / "onnx-model"
    (copy / "onnx").mkdir(parents=True)
    for path in model.resolve().iterdir():
        if path.name != "onnx":
            (copy / path.name).symlink_to(path)
    target = copy / "onnx" / "model.onnx"
    ended_well(run([python, str(PROGRAMS / "to_onnx.py"), str(copy), str(target)], folder / "onnx.txt"))
    return copy


def best_batch(peer: Peer, rows: Path, folder: Path) -> Peer:
    """The peer with the fastest of its three batch sizes on these rows, which its name then tells. Raises Failed."""
    library = str(peer.settings["library"])
    seconds = peer.batch_seconds(rows, folder, BATCH_SIZES[library])
    best = min(seconds, key=lambda size: seconds[size])
    return replace(peer, name=f"{peer.name} {best}", settings={**peer.settings, "batch_sizes": [best]})
