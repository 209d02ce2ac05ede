"""A model's files: where they are, whether they are whole, and the fingerprint of what decides its vectors."""

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

# In the order transformers prefers them; a folder's first match is what gets loaded.
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
# Files that travel with a model without deciding its vectors.
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
# Below this size hashing costs less than looking the hash up.
MIN_MEMOIZED_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelFiles:
    """A model that is on this machine, its needed files present.

    `name` can be typed again as `--model`: a hub id or a path. `folder` is the file itself for word vectors.
    `fingerprint` is a SHA-256 over the names and contents of all files that decide the vectors.
    """

    name: str
    path: Path
    revision: str | None
    kind: ModelKind
    fingerprint: str
    origin: Literal["path", "cache", "bundled", "hub"] = "path"


def read_json(path: Path) -> Any:
    """The parsed file. Raises ModelError where it is not JSON or cannot be read."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "fetch the model again, or give another folder") from error


def detect_model_kind(folder: Path) -> ModelKind:
    """Whether a model folder or file holds static vectors or a transformer."""
    if folder.is_file():
        return "static"
    modules = folder / "modules.json"
    if modules.is_file():
        types = [str(module.get("type", "")) for module in read_json(modules)]
        return "static" if types and types[0].endswith("StaticEmbedding") else "transformer"
    config = folder / "config.json"
    if config.is_file():
        made = read_json(config)
        model2vec = made.get("model_type") == "model2vec" or "StaticModel" in (made.get("architectures") or [])
        return "static" if model2vec else "transformer"
    return "transformer"


def find_word_vector_file(folder: Path) -> Path | None:
    """The one word-vector file of a folder that holds no other model, or None."""
    if (folder / "config.json").exists() or (folder / "modules.json").exists() or not folder.is_dir():
        return None
    ignored = {"vocab.txt", "requirements.txt", "readme.txt", "license.txt"} | set(WEIGHT_FILES)
    found = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix in WORD_VECTOR_SUFFIXES and file.name.lower() not in ignored
    ]
    return found[0] if len(found) == 1 else None


def describe_missing_files(folder: Path) -> str | None:
    """What a model folder lacks, in words that name the file, or None when it is whole."""
    if not folder.exists():
        return "the folder itself"
    if detect_model_kind(folder) == "static":
        return None if folder.is_file() else _missing_static(folder)
    modules = folder / "modules.json"
    if modules.is_file():
        return _missing_modules(folder, read_json(modules))
    if not (folder / "config.json").is_file():
        return "config.json (or modules.json)"
    return _missing_transformer(folder, "")


def _missing_static(folder: Path) -> str | None:
    if list(folder.glob("*.safetensors")) or list(folder.glob("*/*.safetensors")):
        return None
    return "model.safetensors"


def _missing_modules(folder: Path, modules: list[dict[str, Any]]) -> str | None:
    for module in modules:
        path, kind = str(module.get("path", "")), str(module.get("type", "")).split(".")[-1]
        if kind == "Transformer":
            lacks = _missing_transformer(folder / path, path)
            if lacks:
                return lacks
        elif kind in ("Pooling", "Dense") and not (folder / path / "config.json").is_file():
            return f"{path}/config.json"
        if kind == "Dense" and not any((folder / path / name).is_file() for name in WEIGHT_FILES):
            return f"{path}/model.safetensors"
    return None


def _missing_transformer(folder: Path, path: str) -> str | None:
    prefix = f"{path}/" if path else ""
    if (folder / "adapter_config.json").is_file():
        return None
    if not (folder / "config.json").is_file():
        return f"{prefix}config.json"
    lacks = _missing_weights(folder)
    if lacks:
        return prefix + lacks
    if not any((folder / name).is_file() for name in (*TOKENIZER_FILES, "tokenizer_config.json")):
        return f"{prefix}tokenizer.json"
    return None


def _missing_weights(folder: Path) -> str | None:
    found = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        return "model.safetensors"
    if not found.endswith(".index.json"):
        return None
    shards = sorted(set(read_json(folder / found).get("weight_map", {}).values()))
    return next((shard for shard in shards if not (folder / shard).is_file()), None)


def fingerprinted_files(folder: Path) -> Iterator[Path]:
    """The files of a model that decide its vectors, sorted by name; of several weight formats the one loaded.

    They lie in the folder itself and in its modules' folders: training checkpoints beside them are another model.
    """
    modules = folder / "modules.json"
    paths = {str(module.get("path", "")) for module in read_json(modules)} if modules.is_file() else set()
    every = {file for file in folder.iterdir() if file.is_file()}
    every |= {file for path in paths - {""} for file in (folder / path).rglob("*") if file.is_file()}
    code = has_custom_code(folder)
    for file in sorted(every):
        if file.suffix in IGNORED_SUFFIXES or file.name in TRAINING_FILES or (file.suffix == ".py" and not code):
            continue
        safe = any(file.with_name(name).is_file() for name in WEIGHT_FILES[:2])
        if not (safe and file.name.startswith("pytorch_model")):
            yield file


def has_custom_code(folder: Path) -> bool:
    """Whether a model's configuration points at Python files."""
    modules = folder / "modules.json"
    types = [str(module.get("type", "")) for module in read_json(modules)] if modules.is_file() else []
    configs = [folder / name for name in ("config.json", "tokenizer_config.json") if (folder / name).is_file()]
    return any(not kind.startswith("sentence_transformers.") for kind in types) or any(
        "auto_map" in read_json(config) for config in configs
    )


def fingerprint_model(folder: Path) -> str:
    """SHA-256 over the names and contents of all deciding files; large files' hashes are remembered."""
    if folder.is_file():
        return cached_sha256(folder)
    whole = hashlib.sha256()
    for file in fingerprinted_files(folder):
        whole.update(f"{file.relative_to(folder).as_posix()}\0{cached_sha256(file)}\n".encode())
    return whole.hexdigest()


def cached_sha256(file: Path) -> str:
    """The hex SHA-256 of a file's bytes, remembered by real path, inode, size, and times of modification and change.

    The time of modification alone can be set to anything: unpacked archives and image layers do.
    """
    real = file.resolve()
    stat = real.stat()
    if stat.st_size < MIN_MEMOIZED_BYTES:
        return hashlib.sha256(real.read_bytes()).hexdigest()
    key = f"{real}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
    memo = user_cache_folder() / "sha256" / hashlib.sha256(str(real).encode()).hexdigest()[:32]
    known = _recall(memo, key)
    if known:
        return known
    with real.open("rb") as stream:
        made = hashlib.file_digest(stream, "sha256").hexdigest()
    _remember(memo, key, made)
    return made


def _recall(memo: Path, key: str) -> str | None:
    try:
        saved, _, digest = memo.read_text("utf-8").rpartition("\n")
    except (OSError, ValueError):
        return None
    return digest if saved == key and len(digest) == hashlib.sha256().digest_size * 2 else None


def _remember(memo: Path, key: str, digest: str) -> None:
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=memo.parent, delete=False) as stream:
            stream.write(f"{key}\n{digest}")
        os.replace(stream.name, memo)
    except OSError as error:
        log.debug("the hash of %s is not remembered: %s", key, error)
