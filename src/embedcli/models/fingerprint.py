"""The fingerprint of a model: a hash of every file that decides its vectors."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from embedcli.core.cache_dir import user_cache_folder
from embedcli.models.code import has_custom_code
from embedcli.models.files import WEIGHT_FILES, check_inside, read_json_object, walk_modules

log = logging.getLogger(__name__)

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
# Below this size hashing costs less than looking up the hash.
MIN_MEMOIZED_BYTES = 1 << 20


def fingerprint_model(folder: Path) -> str:
    """Compute the hex SHA-256 over the names and contents of all files that decide a model's vectors."""
    if folder.is_file():
        return cached_sha256(folder)
    digest = hashlib.sha256()
    for file in fingerprinted_files(folder):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{cached_sha256(file)}\n".encode())
    return digest.hexdigest()


def fingerprinted_files(folder: Path) -> Iterator[Path]:
    """Iterate over the files that decide a model's vectors, sorted by path; of several weight formats, the one loaded.

    They are in the folder itself, in the folders of its modules and of the modules inside routers. Other subfolders,
    such as training checkpoints, contain other models.
    """
    candidates = set(_list_files(folder))
    for kind, path in walk_modules(folder):
        if path:
            # What the own code of a module reads, nobody knows: all of its folder counts.
            candidates |= set(_list_files(folder / path, recursive="." in kind))
    candidates |= {file for index in tuple(candidates) for file in _list_shards(index)}
    runs_code = has_custom_code(folder)
    for file in sorted(candidates):
        if file.suffix in IGNORED_SUFFIXES or file.name in TRAINING_FILES or (file.suffix == ".py" and not runs_code):
            continue
        has_safetensors = any(file.with_name(name).is_file() for name in WEIGHT_FILES[:2])
        if not (has_safetensors and file.name.startswith("pytorch_model")):
            yield file


def _list_files(folder: Path, *, recursive: bool = False) -> Iterator[Path]:
    """The files in a module's folder, and its additional chat templates."""
    if folder.is_dir():
        found: Iterable[Path] = folder.rglob("*") if recursive else folder.iterdir()
        yield from (file for file in found if file.is_file())
        yield from folder.glob("additional_chat_templates/*.jinja")


def _list_shards(index: Path) -> Iterator[Path]:
    """The files that an index of weights names, which may be in a subfolder."""
    if index.name in WEIGHT_FILES and index.name.endswith(".index.json"):
        names = read_json_object(index).get("weight_map") or {}
        shards = (index.parent / check_inside(index.parent, str(name), index) for name in set(names.values()))
        yield from (shard for shard in shards if shard.is_file())


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
