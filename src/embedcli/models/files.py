"""The files of a model: their kind, which ones are missing, and the fingerprint of those that decide its vectors."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedcli.core.cache_dir import user_cache_folder
from embedcli.core.errors import ModelError

log = logging.getLogger(__name__)

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
# Files beside a model that do not decide its vectors.
IGNORED_SUFFIXES = (
    ".md",
    ".gitattributes",
    ".gitignore",
    ".onnx",
    ".onnx_data",
    ".xml",
    ".h5",
    ".msgpack",
    ".ot",
    ".png",
)
TRAINING_FILES = {
    "data_config.json",
    "training_args.bin",
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
}
IGNORED_FOLDERS = {"onnx", "openvino", "coreml", ".cache", ".git", "imgs", "assets", "__pycache__"}
# Below this size hashing costs less than looking up the hash.
MIN_MEMOIZED_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelFiles:
    """A complete model on this machine.

    Attributes:
        name: A hub id or a path, valid after --model.
        path: Its folder; for word vectors, the file.
        revision: The commit of a model from the hub.
        fingerprint: SHA-256 over the names and contents of all files that decide the vectors.
        origin: Where it was found.
    """

    name: str
    path: Path
    revision: str | None
    kind: ModelKind
    fingerprint: str
    origin: ModelOrigin = "path"


def read_json(path: Path) -> Any:
    """Parse a JSON file of a model.

    Raises:
        ModelError: The file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "fetch the model again, or use another folder") from error


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
        return "static" if is_model2vec else "transformer"
    return "transformer"


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
        path, kind = str(module.get("path", "")), str(module.get("type", "")).split(".")[-1]
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


def _find_missing_weight_file(folder: Path) -> str | None:
    weights = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None:
        return "model.safetensors"
    if not weights.endswith(".index.json"):
        return None
    shards = sorted(set(read_json(folder / weights).get("weight_map", {}).values()))
    return next((shard for shard in shards if not (folder / shard).is_file()), None)


def fingerprinted_files(folder: Path) -> Iterator[Path]:
    """Iterate over the files that decide a model's vectors, sorted by path; of several weight formats, the one loaded.

    They are in the folder itself and in the folders of its modules. Other subfolders, such as training checkpoints,
    contain other models.
    """
    modules = folder / "modules.json"
    paths = {str(module.get("path", "")) for module in read_json(modules)} if modules.is_file() else set()
    candidates = {file for file in folder.iterdir() if file.is_file()}
    candidates |= {file for path in paths - {""} for file in (folder / path).rglob("*") if file.is_file()}
    runs_code = has_custom_code(folder)
    for file in sorted(candidates):
        if file.suffix in IGNORED_SUFFIXES or file.name in TRAINING_FILES or (file.suffix == ".py" and not runs_code):
            continue
        has_safetensors = any(file.with_name(name).is_file() for name in WEIGHT_FILES[:2])
        if not (has_safetensors and file.name.startswith("pytorch_model")):
            yield file


def has_custom_code(folder: Path) -> bool:
    """Whether a model's configuration refers to Python files."""
    modules = folder / "modules.json"
    types = [str(module.get("type", "")) for module in read_json(modules)] if modules.is_file() else []
    configs = [folder / name for name in ("config.json", "tokenizer_config.json") if (folder / name).is_file()]
    return any(not kind.startswith("sentence_transformers.") for kind in types) or any(
        "auto_map" in read_json(config) for config in configs
    )


def fingerprint_model(folder: Path) -> str:
    """Compute the hex SHA-256 over the names and contents of all files that decide a model's vectors."""
    if folder.is_file():
        return cached_sha256(folder)
    digest = hashlib.sha256()
    for file in fingerprinted_files(folder):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{cached_sha256(file)}\n".encode())
    return digest.hexdigest()


def cached_sha256(file: Path) -> str:
    """The hex SHA-256 of a file, computed again only if its path, inode, size or one of its times has changed.

    The modification time alone is not enough: unpacking archives and image layers sets it.
    """
    path = file.resolve()
    stat = path.stat()
    if stat.st_size < MIN_MEMOIZED_BYTES:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    key = f"{path}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
    memo = user_cache_folder() / "sha256" / hashlib.sha256(str(path).encode()).hexdigest()[:32]
    known = _read_memo(memo, key)
    if known:
        return known
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    _write_memo(memo, key, digest)
    return digest


def _read_memo(memo: Path, key: str) -> str | None:
    try:
        saved_key, _, digest = memo.read_text("utf-8").rpartition("\n")
    except (OSError, ValueError):
        return None
    return digest if saved_key == key and len(digest) == hashlib.sha256().digest_size * 2 else None


def _write_memo(memo: Path, key: str, digest: str) -> None:
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=memo.parent, delete=False) as stream:
            stream.write(f"{key}\n{digest}")
        os.replace(stream.name, memo)
    except OSError as error:
        log.debug("cannot save the hash of %s: %s", key, error)
