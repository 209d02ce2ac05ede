"""Cache of compiled models on disk: a folder per model, published with one rename and verified before each use.

    <cache>/compiled/<key>/model.xml, model.bin    the network
                           tokenizer.json          its tokenizer
                           probe.npz               probe rows and their vectors
                           facts.json              metadata for later starts, with the SHA-256 of the files above
                           *.blob                  the network compiled for one CPU; may be deleted at any time

If the metadata has a `reason` and the folder no other files, the model cannot be converted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcli.core.cache_dir import user_cache_folder
from embedcli.core.errors import ModelError
from embedcli.models.config import ModelConfig, native_types
from embedcli.models.files import ModelFiles
from embedcli.models.fingerprint import cached_sha256
from embedcli.models.traits import installed_version
from embedcli.storage.local import LocalFileSystem, LockHeld

log = logging.getLogger(__name__)

# Increment when the same model would be converted to another network or other metadata.
CACHE_FORMAT_VERSION = 2
METADATA_FILE = "facts.json"
STORED_FILES = ("model.xml", "model.bin", "tokenizer.json", "probe.npz")
DRAFT_PREFIX = ".draft-"
# A draft of this age was left by a process that was killed.
STALE_SECONDS = 24 * 3600
# More than a conversion takes, except for very large models.
LOCK_TIMEOUT_SECONDS = 1800
LOCK_POLL_SECONDS = 0.05
CONVERTER_PACKAGES = ("torch", "transformers", "sentence-transformers")


class UnusableCacheEntryError(Exception):
    """A cached model is damaged or outdated and must be compiled again."""


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache.

    Attributes:
        name: The model's name, or "(damaged)".
        key: The name of its folder.
        size_bytes: Its size on disk.
        created_at: When it was stored, in seconds since 1970.
        reason: Why it cannot be compiled; empty for a compiled model.
    """

    name: str
    key: str
    size_bytes: int
    created_at: float
    reason: str = ""


def cache_folder() -> Path:
    """The folder of all compiled models, which need not exist."""
    return user_cache_folder() / "compiled"


def cache_key(files: ModelFiles, config: ModelConfig) -> str:
    """The name of a model's folder: the same for the same network from the same converter.

    The prompt counts only if pooling excludes it, because its length is then part of the network; the task counts if
    the model encodes queries and documents differently. Normalization, truncation and the token limit do not count:
    they happen outside the network.
    """
    prompt = "" if config.pools_prompt else config.prompt
    parts = {
        "format": CACHE_FORMAT_VERSION,
        "model": files.fingerprint,
        "openvino": installed_version("openvino"),
        "prompt": prompt,
    }
    parts |= {"task": config.task} if config.task else {}
    parts |= native_types(config)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def read_cached_model(folder: Path) -> dict[str, Any] | None:
    """Read the metadata of a stored model and verify its files.

    A file's content is only read if it is new or its size or times have changed since the last time.

    Returns:
        The metadata; None if nothing is stored there.

    Raises:
        UnusableCacheEntryError: A file is damaged or missing, or the model could not be converted with other versions
            of the libraries.
    """
    if not folder.is_dir():
        return None
    metadata = _read_metadata(folder)
    if metadata.get("reason"):
        if metadata["versions"] != converter_versions():
            raise UnusableCacheEntryError("the versions of the converter's libraries have changed")
        return metadata
    for name, expected in metadata["sha256"].items():
        try:
            actual = cached_sha256(folder / name)
        except OSError as error:
            raise UnusableCacheEntryError(f"{folder / name} cannot be read: {error.strerror}") from error
        if actual != expected:
            raise UnusableCacheEntryError(f"{folder / name} differs from what was stored")
    return metadata


def converter_versions() -> dict[str, str | None]:
    """The versions of the libraries that decide whether a model can be converted."""
    return {name: installed_version(name) for name in CONVERTER_PACKAGES}


@contextmanager
def exclusive_lock(name: str) -> Iterator[None]:
    """Let one process at a time into the block. If locks do not work, or one is held for too long, enter without it."""
    path = user_cache_folder() / "locks" / name
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.callback(_wait_for_lock(str(path)))
        except (OSError, LockHeld) as error:
            log.debug("continuing without the lock %s: %r", name, error)
        yield


def _wait_for_lock(path: str) -> Callable[[], None]:
    """Wait for a lock file and return the function that releases it; LockHeld after LOCK_TIMEOUT_SECONDS."""
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while True:
        try:
            return LocalFileSystem().acquire_lock(path)
        except LockHeld:
            if time.monotonic() > deadline:
                raise
            time.sleep(LOCK_POLL_SECONDS)


def delete_cached_model(folder: Path) -> None:
    """Move a model's folder away, so that no process opens half of it, and delete it. Raises OSError."""
    trash = Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX, dir=folder.parent))
    os.rename(folder, trash / "discarded")
    shutil.rmtree(trash, ignore_errors=True)


@contextmanager
def draft_folder() -> Iterator[Path]:
    """A new folder to build a model in; deleted afterwards, unless it was published. Raises OSError."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    _delete_stale_drafts()
    draft = Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX, dir=cache_folder()))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_metadata(draft: Path, metadata: Mapping[str, Any]) -> None:
    """Write the metadata of a draft, with the hashes of its files. Raises OSError."""
    hashes = {name: _sha256(draft / name) for name in STORED_FILES if (draft / name).exists()}
    content = {
        **metadata,
        "format": CACHE_FORMAT_VERSION,
        "versions": converter_versions(),
        "created": time.time(),
        "sha256": hashes,
    }
    text = json.dumps(content, sort_keys=True)
    with (draft / METADATA_FILE).open("w", encoding="utf-8") as stream:
        stream.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
        stream.flush()
        os.fsync(stream.fileno())


def publish_draft(draft: Path, folder: Path) -> None:
    """Rename a complete draft to its final name, unless another process was first. Raises OSError."""
    draft.chmod(0o755)
    try:
        os.rename(draft, folder)
    except OSError:
        if not folder.is_dir():
            raise


def record_not_convertible(folder: Path, name: str, reason: str) -> None:
    """Store that a model cannot be converted, so that later starts do not try again."""
    try:
        if folder.exists():
            delete_cached_model(folder)
        with draft_folder() as draft:
            write_metadata(draft, {"name": name, "reason": reason})
            publish_draft(draft, folder)
    except OSError as error:
        log.debug("cannot store that %s is not convertible: %s", name, error)


def list_cached_models() -> list[CachedModel]:
    """List all compiled models, sorted by name."""
    folders = [folder for folder in _list_folder(cache_folder()) if not folder.name.startswith(DRAFT_PREFIX)]
    return sorted((_describe_cached_model(folder) for folder in folders), key=lambda entry: (entry.name, entry.key))


def clear_cached_models() -> int:
    """Delete all compiled models and return their number. Raises ModelError if one cannot be deleted."""
    count = len(list_cached_models())
    for folder in _list_folder(cache_folder()):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            log.debug("%s was deleted by another process", folder)
        except OSError as error:
            raise ModelError(f"cannot delete {folder}: {error.strerror}", "check its owner and permissions") from error
    return count


def read_checked_file(path: Path) -> bytes | None:
    """Read a file written by `write_checked_file`; None if it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    return content[size:] if hashlib.sha256(content[size:]).digest() == content[:size] else None


def write_checked_file(path: Path, content: bytes) -> None:
    """Write a file with its SHA-256, by rename, so that it is never half there. Errors are only logged."""
    draft = path.with_name(f"{DRAFT_PREFIX}{os.getpid()}-{path.name}")
    try:
        draft.write_bytes(hashlib.sha256(content).digest() + content)
        os.replace(draft, path)
    except OSError as error:
        log.debug("cannot write %s: %s", path, error)
        with suppress(OSError):
            draft.unlink()


def _read_metadata(folder: Path) -> dict[str, Any]:
    path = folder / METADATA_FILE
    try:
        expected, _, text = path.read_text("utf-8").partition("\n")
    except (OSError, ValueError) as error:
        raise UnusableCacheEntryError(f"{path} cannot be read") from error
    text = text.removesuffix("\n")
    if hashlib.sha256(text.encode()).hexdigest() != expected:
        raise UnusableCacheEntryError(f"{path} differs from what was stored")
    metadata: dict[str, Any] = json.loads(text)
    return metadata


def _describe_cached_model(folder: Path) -> CachedModel:
    size = sum(_file_size(file) for file in _list_folder(folder))
    try:
        metadata = _read_metadata(folder)
    except UnusableCacheEntryError:
        return CachedModel("(damaged)", folder.name, size, 0.0)
    return CachedModel(metadata["name"], folder.name, size, metadata["created"], metadata.get("reason", ""))


def _file_size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _list_folder(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _delete_stale_drafts() -> None:
    for folder in cache_folder().glob(f"{DRAFT_PREFIX}*"):
        try:
            is_stale = time.time() - folder.stat().st_mtime > STALE_SECONDS
        except OSError:
            continue
        if is_stale:
            shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
