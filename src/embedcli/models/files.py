"""The files of a model: their kind, the modules they form, and which ones are missing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedcli.core.errors import ModelError
from embedcli.models.weights import MODEL2VEC_TENSORS, read_header
from embedcli.storage.lfs import LFS_PULL_HINT, is_lfs_pointer

ModelKind = Literal["transformer", "static"]
ModelOrigin = Literal["path", "cache", "bundled", "hub"]

# In transformers' order of preference: the first one in a folder is loaded.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "vocab.json",
)
WORD_VECTOR_SUFFIXES = (".bin", ".txt", ".vec", ".kv", ".gz")
IGNORED_FOLDERS = {"onnx", "openvino", "coreml", ".cache", ".git", "imgs", "assets", "__pycache__"}


@dataclass(frozen=True)
class CodeRepository:
    """A hub repository with Python code of a model, on this machine.

    Attributes:
        name: OWNER/NAME.
        path: Its snapshot folder in the hub cache, whose name is the commit.
    """

    name: str
    path: Path

    @property
    def commit(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class ModelFiles:
    """A complete model on this machine.

    Attributes:
        name: A hub id or a path, valid after --model.
        path: Its folder; for word vectors, the file.
        revision: The commit of a model from the hub.
        fingerprint: SHA-256 over the names and contents of all files that decide the vectors.
        origin: Where it was found.
        code_repositories: Other repositories with code of the model, if the job trusts that; sorted by name.
    """

    name: str
    path: Path
    revision: str | None
    kind: ModelKind
    fingerprint: str
    origin: ModelOrigin = "path"
    code_repositories: tuple[CodeRepository, ...] = ()


def read_json(path: Path) -> Any:
    """Parse a JSON file of a model.

    Raises:
        ModelError: The file cannot be read or is not JSON.
    """
    try:
        content = path.read_bytes()
        if is_lfs_pointer(content):
            raise lfs_pointer_error(path)
        return json.loads(content.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "fetch the model again, or use another folder") from error


def lfs_pointer_error(path: Path) -> ModelError:
    """The error for a file that Git LFS has not fetched."""
    return ModelError(f"{path} is a Git LFS pointer: the file itself was not fetched", LFS_PULL_HINT)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file or it contains something else."""
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """The modules of a pipeline as (class name, subfolder); a raw Hugging Face folder is a Transformer and a Pooling.

    Names of classes that are not from sentence-transformers stay dotted.

    Raises:
        ModelError: modules.json cannot be read, or names a folder outside of the model's.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return [("Transformer", ""), ("Pooling", "")]
    modules = []
    for module in read_json(path):
        kind = str(module["type"])
        if kind.startswith("sentence_transformers."):
            kind = kind.rpartition(".")[2]
        modules.append((kind, check_inside(folder, str(module.get("path", "")), path)))
    return modules


def detect_model_kind(folder: Path) -> ModelKind:
    """Whether a model folder or file contains static vectors or a transformer."""
    if folder.is_file():
        return "static"
    modules = folder / "modules.json"
    if modules.is_file():
        types = [str(module.get("type", "")) for module in read_json(modules)]
        return "static" if types and types[0].endswith("StaticEmbedding") else "transformer"
    config = folder / "config.json"
    if config.is_file():
        values = read_json(config)
        is_model2vec = values.get("model_type") == "model2vec" or "StaticModel" in (values.get("architectures") or [])
        if is_model2vec or ("model_type" not in values and _has_model2vec_tensors(folder / "model.safetensors")):
            return "static"
    return "transformer"


def _has_model2vec_tensors(path: Path) -> bool:
    """Whether the header of a weight file lists the tensors of model2vec and no others; false if it is damaged."""
    if not path.is_file():
        return False
    try:
        names = read_header(path).keys()
    except ModelError:
        return False
    return "embeddings" in names and names <= MODEL2VEC_TENSORS


def find_word_vector_file(folder: Path) -> Path | None:
    """The only word-vector file of a folder that contains no other model, or None."""
    if (folder / "config.json").exists() or (folder / "modules.json").exists() or not folder.is_dir():
        return None
    ignored = {"vocab.txt", "requirements.txt", "readme.txt", "license.txt"} | set(WEIGHT_FILES)
    candidates = [
        file
        for file in folder.iterdir()
        if file.is_file() and file.suffix in WORD_VECTOR_SUFFIXES and file.name.lower() not in ignored
    ]
    return candidates[0] if len(candidates) == 1 else None


def describe_missing_files(folder: Path) -> str | None:
    """The first file that a model folder lacks, for an error message, or None if it is complete."""
    if not folder.exists():
        return "the folder itself"
    if find_word_vector_file(folder) is not None:
        return None
    if detect_model_kind(folder) == "static":
        return None if folder.is_file() else _find_missing_static_file(folder)
    modules = folder / "modules.json"
    if modules.is_file():
        return _find_missing_module_file(folder, read_json(modules))
    if not (folder / "config.json").is_file():
        return "config.json (or modules.json)"
    return _find_missing_transformer_file(folder, "")


def _find_missing_static_file(folder: Path) -> str | None:
    if list(folder.glob("*.safetensors")) or list(folder.glob("*/*.safetensors")):
        return None
    return "model.safetensors"


def _find_missing_module_file(folder: Path, modules: list[dict[str, Any]]) -> str | None:
    for module in modules:
        path = check_inside(folder, str(module.get("path", "")), folder / "modules.json")
        kind = str(module.get("type", "")).split(".")[-1]
        if kind == "Transformer":
            missing = _find_missing_transformer_file(folder / path, path)
            if missing:
                return missing
        elif kind in ("Pooling", "Dense") and not (folder / path / "config.json").is_file():
            return f"{path}/config.json"
        if kind == "Dense" and not any((folder / path / name).is_file() for name in WEIGHT_FILES):
            return f"{path}/model.safetensors"
    return None


def _find_missing_transformer_file(folder: Path, path: str) -> str | None:
    prefix = f"{path}/" if path else ""
    if (folder / "adapter_config.json").is_file():
        return None
    if not (folder / "config.json").is_file():
        return f"{prefix}config.json"
    missing = _find_missing_weight_file(folder)
    if missing:
        return prefix + missing
    if not any((folder / name).is_file() for name in (*TOKENIZER_FILES, "tokenizer_config.json")):
        return f"{prefix}tokenizer.json"
    return None


def check_inside(folder: Path, name: str, source: Path) -> str:
    """Return a name below a model's folder; ModelError if it leads out of it. `source` is the file that has the name.

    Links are followed: the hub cache consists of them.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelError(
            f"{source} names {name!r}, which is outside of {folder}", "use a model that is whole in itself"
        )
    return name


def _find_missing_weight_file(folder: Path) -> str | None:
    weights = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        return "model.safetensors"
    if not weights.endswith(".index.json"):
        return None
    names = set(read_json(folder / weights).get("weight_map", {}).values())
    shards = sorted(check_inside(folder, str(name), folder / weights) for name in names)
    return next((shard for shard in shards if not (folder / shard).is_file()), None)
