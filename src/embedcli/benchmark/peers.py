"""Other libraries that can run the model, with equivalent settings: in PyTorch, and as an ONNX file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from embedcli.benchmark.contenders import PROGRAMS, PeerLibrary, RunFailed, require_success
from embedcli.benchmark.lineup import MeasuredModel, Notify, configure_library, find_missing_packages
from embedcli.benchmark.machine import has_bfloat16, has_int8_products
from embedcli.benchmark.model_flops import read_transformer_shape
from embedcli.benchmark.timed_process import run_measured
from embedcli.encoders.torch import device as torch_device

FLOAT32_FILE = "onnx/model.onnx"
INT8_FILE = "onnx/model_int8.onnx"


@dataclass(frozen=True)
class OnnxPeer:
    """A library that runs ONNX files.

    Attributes:
        name: The contender's name.
        library: A library that the program of other libraries knows.
        packages: The modules that its interpreter needs.
        install_hint: How to get them; `{python}` stands for that interpreter.
        file: The ONNX file that it runs, in the model's folder.
        runs_any_pipeline: Whether it applies the modules that the model lists, whatever they are.
        runs_on_accelerators: Whether it is worth measuring there.
    """

    name: str
    library: str
    packages: tuple[str, ...]
    install_hint: str
    file: str = FLOAT32_FILE
    runs_any_pipeline: bool = False
    runs_on_accelerators: bool = True


_BACKEND_PACKAGES = ("sentence_transformers", "optimum", "onnxruntime", "onnx")
_BACKEND_HINT = (
    "pip install 'sentence-transformers[onnx]' onnx in a separate environment (it needs transformers 4), "
    "then --peer-python"
)
ONNX_PEERS = (
    OnnxPeer(
        "sentence-transformers onnx", "sentence-transformers", _BACKEND_PACKAGES, _BACKEND_HINT, runs_any_pipeline=True
    ),
    OnnxPeer(
        "sentence-transformers int8",
        "sentence-transformers",
        _BACKEND_PACKAGES,
        _BACKEND_HINT,
        INT8_FILE,
        runs_any_pipeline=True,
        runs_on_accelerators=False,
    ),
    OnnxPeer("fastembed", "fastembed", ("fastembed", "onnxruntime", "onnx"), "{python} -m pip install fastembed onnx"),
    OnnxPeer(
        "light-embed",
        "light-embed",
        ("light_embed", "onnxruntime", "onnx"),
        "{python} -m pip install light-embed onnx",
        runs_on_accelerators=False,
    ),
)


def find_peers(
    model: MeasuredModel, python: str, folder: Path, notify: Notify
) -> tuple[list[PeerLibrary], dict[str, str]]:
    """Find the other libraries that can run this model; their batch sizes are not yet chosen.

    Args:
        model: The model.
        python: The interpreter that may have libraries with ONNX.
        folder: Receives ONNX files, if they are needed.
        notify: Receives one line of progress at a time.

    Returns:
        The libraries, and for each other one the reason why it cannot run.
    """
    if model.is_static:
        return [], {}
    peers = [configure_library(model, "sentence-transformers", "sentence-transformers")]
    if has_bfloat16() and torch_device.runs_on_cpu(model.job):
        bfloat16 = {"dtype": "bfloat16"}
        peers.append(configure_library(model, "sentence-transformers", "sentence-transformers bf16", bfloat16))
    if model.recipe.kind != "dense":
        return peers, {}
    missing = {peer.name: reason for peer in ONNX_PEERS if (reason := explain_absence(peer, model, python))}
    available = [peer for peer in ONNX_PEERS if peer.name not in missing]
    files = OnnxFiles(model.files.path, python, folder, notify)
    for peer in available:
        try:
            files.ensure(peer.file)
        except RunFailed as error:
            missing[peer.name] = f"no ONNX file could be created: {error}"
            continue
        peers.append(configure_onnx_peer(peer, model, files.folder, python))
    return peers, missing


def explain_absence(peer: OnnxPeer, model: MeasuredModel, python: str) -> str | None:
    """Explain why a library cannot take part; None if it can."""
    if not peer.runs_any_pipeline and not has_plain_pipeline(model):
        return "it cannot run this model's pipeline"
    if not peer.runs_on_accelerators and not torch_device.runs_on_cpu(model.job):
        return "it is measured on CPUs only"
    packages = find_missing_packages(peer.packages, python)
    hint = peer.install_hint.format(python=shlex.quote(python))
    return f"{', '.join(packages)} not installed: {hint}" if packages else None


def has_plain_pipeline(model: MeasuredModel) -> bool:
    """Whether only the mean or the first token's vector follows the transformer, normalized or not."""
    recipe = model.recipe
    has_known_modules = set(recipe.modules) <= {"Transformer", "Pooling", "Normalize"}
    return has_known_modules and recipe.pooling in ("mean", "cls") and recipe.truncate_dim is None


def configure_onnx_peer(peer: OnnxPeer, model: MeasuredModel, folder: Path, python: str) -> PeerLibrary:
    shape = read_transformer_shape(model.files.path)
    changes = {
        "model": str(folder),
        "backend": "onnx",
        "onnx_file": peer.file,
        "dim": shape.hidden if shape else None,
    }
    return configure_library(model, peer.library, peer.name, changes, python)


class OnnxFiles:
    """The ONNX files of a model: its own if it has them, else new ones beside links to its other files."""

    def __init__(self, model: Path, python: str, folder: Path, notify: Notify) -> None:
        self.model = model.resolve()
        self.python = python
        self.notify = notify
        self.folder = folder / "onnx-model"

    def ensure(self, file: str) -> None:
        """Create a file in `folder` unless it is there.

        Raises:
            RunFailed: It could not be created.
        """
        if not self.folder.exists():
            self._link_model()
        if (self.folder / file).is_file():
            return
        if file == INT8_FILE:
            self.ensure(FLOAT32_FILE)
            self.notify("quantizing the ONNX file to int8 for the libraries that use one")
            self._run("quantize_onnx.py", FLOAT32_FILE, INT8_FILE, "full" if has_int8_products() else "reduced")
        else:
            self.notify("creating an ONNX file of the model for the libraries that need one")
            self._run("to_onnx.py", ".", FLOAT32_FILE)

    def _link_model(self) -> None:
        (self.folder / "onnx").mkdir(parents=True)
        for path in self.model.iterdir():
            if path.name != "onnx":
                (self.folder / path.name).symlink_to(path)
        if (self.model / FLOAT32_FILE).is_file():
            for path in (self.model / "onnx").iterdir():
                (self.folder / "onnx" / path.name).symlink_to(path)

    def _run(self, program: str, source: str, target: str, *options: str) -> None:
        command = [self.python, str(PROGRAMS / program), str(self.folder / source), str(self.folder / target)]
        require_success(run_measured([*command, *options], self.folder.parent / f"{program}.txt"))
