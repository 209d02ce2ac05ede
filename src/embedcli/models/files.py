"""The files of a model: their kind, the modules they form, and which ones are missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
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
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "vocab.json",
)
WORD_VECTOR_SUFFIXES = (".bin", ".txt", ".vec", ".kv", ".gz")
# Modules that encode queries and documents differently; Asym is the old name of Router.
ROUTER_MODULES = {"Router", "Asym"}
# sentence-transformers loads its own class in place of these of other packages, whose code is not run.
PYLATE_PREFIX = "pylate."
OWN_NAMES = {"pylate.models.Dense.Dense": "sentence_transformers.base.modules.dense.Dense"}
# The name with which sentence-transformers 5.0 to 5.3 saved a Transformer that computes a number for each word, as in
# most published SPLADE models.
FORMER_NAMES = {"MLMTransformer": "Transformer"}
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
        bases: The base models of its adapters.
        code_repositories: Other repositories with code of the model, if the job trusts that; sorted by name.
    """

    name: str
    path: Path
    revision: str | None
    kind: ModelKind
    fingerprint: str
    origin: ModelOrigin = "path"
    bases: tuple[AdapterBase, ...] = ()
    code_repositories: tuple[CodeRepository, ...] = ()

    def find_base(self, subfolder: str) -> Path | None:
        """The folder of the base model of the adapter in a subfolder; None if there is no such adapter."""
        return next((base.files.path for base in self.bases if base.subfolder == subfolder), None)


@dataclass(frozen=True)
class AdapterBase:
    """The base model of an adapter.

    Attributes:
        subfolder: The folder of the adapter's module in the model, with slashes; empty for the model's own folder.
        files: The base model.
    """

    subfolder: str
    files: ModelFiles


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
    return [
        (_class_name(str(module["type"])), check_inside(folder, str(module.get("path", "")), path))
        for module in _read_module_list(path)
    ]


def has_pylate_module(folder: Path) -> bool:
    """Whether a pipeline was saved by PyLate, by the names of its modules. Raises ModelError as `read_modules`."""
    path = folder / "modules.json"
    listed = _read_module_list(path) if path.is_file() else []
    return any(str(module["type"]).startswith(PYLATE_PREFIX) for module in listed)


def _read_module_list(path: Path) -> list[dict[str, Any]]:
    """The entries of a modules.json. Raises ModelError if it is something else than a list of modules."""
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(module, dict) and "type" in module for module in content):
        raise ModelError(f"{path} is not a list of modules", "fetch the model again, or use another folder")
    return content


def walk_modules(folder: Path) -> Iterator[tuple[str, str]]:
    """Iterate over the modules of a pipeline and all modules inside its routers, as (class name, subfolder).

    The subfolders are relative to `folder`, with slashes. Raises ModelError for one outside of its pipeline or router.
    """
    visited: set[Path] = set()

    def walk(modules: list[tuple[str, str]], parent: str) -> Iterator[tuple[str, str]]:
        for kind, path in modules:
            joined = (PurePosixPath(parent) / path.replace("\\", "/")).as_posix()
            subfolder = "" if joined == "." else joined
            yield kind, subfolder
            place = (folder / subfolder).resolve()
            if place not in visited:
                visited.add(place)
                yield from walk(_read_inner_modules(folder / subfolder, kind, is_root=not subfolder), subfolder)

    return walk(read_modules(folder), "")


def read_routes(router: Path) -> dict[str, Any]:
    """The configuration of a Router in its folder, in the current layout or the one of Asym; empty if there is none."""
    return read_json_object(router / "router_config.json") or read_json_object(router / "config.json")


def _read_inner_modules(folder: Path, kind: str, *, is_root: bool) -> list[tuple[str, str]]:
    """The modules inside a module: the routes of a router, or a whole pipeline in a subfolder."""
    if kind in ROUTER_MODULES:
        types = read_routes(folder).get("types")
        types = types if isinstance(types, dict) else {}
        return [
            (_class_name(str(name)), check_inside(folder, path, folder / "router_config.json"))
            for path, name in types.items()
        ]
    # A Transformer module may lie in the folder of a pipeline that it was taken from: only its own files are read.
    is_pipeline = not is_root and kind != "Transformer" and (folder / "modules.json").is_file()
    return read_modules(folder) if is_pipeline else []


def _class_name(dotted: str) -> str:
    dotted = OWN_NAMES.get(dotted, dotted)
    if not dotted.startswith("sentence_transformers."):
        return dotted
    name = dotted.rpartition(".")[2]
    return FORMER_NAMES.get(name, name)


def detect_model_kind(folder: Path) -> ModelKind:
    """Whether a model folder or file contains static vectors or a transformer."""
    if folder.is_file():
        return "static"
    modules = folder / "modules.json"
    if modules.is_file():
        types = [str(module["type"]) for module in _read_module_list(modules)]
        return "static" if types and types[0].rpartition(".")[2] == "StaticEmbedding" else "transformer"
    config = folder / "config.json"
    if config.is_file():
        values = read_json(config)
        is_model2vec = values.get("model_type") == "model2vec" or "StaticModel" in (values.get("architectures") or [])
        if is_model2vec or ("model_type" not in values and _has_model2vec_tensors(folder / "model.safetensors")):
            return "static"
    return "transformer"


def has_model_config(folder: Path) -> bool:
    """Whether a folder contains the configuration of a pipeline, a network or an adapter."""
    return any((folder / name).exists() for name in ("modules.json", "config.json", ADAPTER_CONFIG))


def has_own_base(folder: Path) -> bool:
    """Whether an adapter's folder also contains the network that it changes."""
    return (folder / "config.json").is_file() and _find_missing_weight_file(folder) is None


def find_tokenizer_file(folder: Path) -> Path | None:
    """The first file of a tokenizer in a folder, or None."""
    names = (*TOKENIZER_FILES, "tokenizer_config.json")
    return next((folder / name for name in names if (folder / name).is_file()), None)


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
    if has_model_config(folder) or not folder.is_dir():
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
    dangling = _find_dangling_link(folder)
    if dangling is not None:
        return dangling
    if find_word_vector_file(folder) is not None:
        return None
    if detect_model_kind(folder) == "static":
        return None if folder.is_file() else _find_missing_static_file(folder)
    if not any((folder / name).is_file() for name in ("modules.json", "config.json", ADAPTER_CONFIG)):
        return "config.json (or modules.json)"
    missing = (_find_missing_module_file(folder / path, kind, path) for kind, path in walk_modules(folder))
    return next((file for file in missing if file), None)


def _find_dangling_link(folder: Path) -> str | None:
    """A link to a file that is gone, in a model's folder or the folder of a module: the hub cache consists of links.

    The libraries take such a file for one that the model never had, and go on without it.
    """
    if folder.is_file():
        return None
    names = {"", *(file.name for file in folder.iterdir() if file.is_dir() and file.name not in IGNORED_FOLDERS)}
    for name in sorted(names):
        for file in sorted((folder / name).iterdir()):
            if file.is_symlink() and not file.exists():
                return file.relative_to(folder).as_posix()
    return None


def _find_missing_static_file(folder: Path) -> str | None:
    if list(folder.glob("*.safetensors")) or list(folder.glob("*/*.safetensors")):
        return None
    return "model.safetensors"


def _find_missing_module_file(folder: Path, kind: str, path: str) -> str | None:
    """The first file that a module in `folder` lacks, relative to the model's folder, where the module is in `path`."""
    prefix = f"{path}/" if path else ""
    kind = kind.rpartition(".")[2]
    if kind == "Transformer":
        return _find_missing_transformer_file(folder, path)
    if kind in ROUTER_MODULES and not read_routes(folder).get("types"):
        return f"{prefix}router_config.json"
    if kind == "Pooling" and path and not (folder / "config.json").is_file():
        return f"{prefix}config.json"
    if kind == "Dense" and not (folder / "config.json").is_file():
        return f"{prefix}config.json"
    has_weights = any((folder / name).is_file() for name in WEIGHT_FILES)
    return f"{prefix}model.safetensors" if kind in ("Dense", "StaticEmbedding") and not has_weights else None


def _find_missing_transformer_file(folder: Path, path: str) -> str | None:
    prefix = f"{path}/" if path else ""
    if (folder / ADAPTER_CONFIG).is_file():
        has_weights = any((folder / name).is_file() for name in ADAPTER_WEIGHTS)
        return None if has_weights else prefix + ADAPTER_WEIGHTS[0]
    if not (folder / "config.json").is_file():
        return f"{prefix}config.json"
    missing = _find_missing_weight_file(folder)
    if missing:
        return prefix + missing
    if find_tokenizer_file(folder) is None:
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
