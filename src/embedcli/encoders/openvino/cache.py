"""Compiled models on disk: one folder each, published whole by a rename, checked before it is used.

    <cache>/compiled/<key>/model.xml, model.bin    the network
                           tokenizer.json          its words
                           facts.json              what a later start must know, with the SHA-256 of the other files
                           *.blob                  what OpenVINO made of it for this CPU; may be lost at any time

A folder whose facts hold a `reason` and no files says that the model cannot be compiled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from embedcli.core.cache_dir import user_cache_folder
from embedcli.core.errors import ModelError
from embedcli.models.config import ModelConfig
from embedcli.models.files import ModelFiles, cached_sha256

log = logging.getLogger(__name__)

# Raised whenever the network or the facts of an equal model would come out otherwise.
CACHE_FORMAT_VERSION = 1
STORED_FILES = ("model.xml", "model.bin", "tokenizer.json")
DRAFT_PREFIX = ".draft-"
# A draft this old belongs to a process that was killed.
STALE_SECONDS = 24 * 3600
# Longer than converting takes: then a lock is not given back, or the model is very large.
LOCK_TIMEOUT_SECONDS = 1800
CONVERTER_PACKAGES = ("torch", "transformers", "sentence-transformers")


class UnusableCacheEntryError(Exception):
    """What lies in a folder is not, or no longer, what can be used."""


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache: its size on disk in bytes, when it was made (seconds since 1970), and its `reason` if it
    is only remembered as one that cannot be compiled."""

    name: str
    key: str
    size_bytes: int
    created_at: float
    reason: str = ""


def cache_folder() -> Path:
    """The folder of all compiled models; not created."""
    return user_cache_folder() / "compiled"


def cache_key(files: ModelFiles, recipe: ModelConfig) -> str:
    """The name of a model's folder: the same for the same network made by the same converter.

    A prompt counts only where pooling leaves it out, as its length is then part of the network; a task counts where
    the model has a way for each. Normalising, truncating and the limit are done outside the network.
    """
    prompt = "" if recipe.pools_prompt else recipe.prompt
    parts = {
        "format": CACHE_FORMAT_VERSION,
        "model": files.fingerprint,
        "openvino": installed_version("openvino"),
        "prompt": prompt,
    }
    parts |= {"task": recipe.task} if recipe.task else {}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read_cached_model(folder: Path) -> dict[str, Any] | None:
    """The facts of a stored model, its files checked against them; None where there is none.

    Contents are read only when a file is new or has another size or time than last time. Raises Unusable.
    """
    if not folder.is_dir():
        return None
    facts = _facts(folder)
    if facts.get("reason"):
        if facts["versions"] != converter_versions():
            raise UnusableCacheEntryError("it was tried with other libraries")
        return facts
    for name, wanted in facts["sha256"].items():
        try:
            found = cached_sha256(folder / name)
        except OSError as error:
            raise UnusableCacheEntryError(f"{folder / name} cannot be read: {error.strerror}") from error
        if found != wanted:
            raise UnusableCacheEntryError(f"{folder / name} is not what was stored")
    return facts


def converter_versions() -> dict[str, str | None]:
    """The libraries that decide whether a model can be converted."""
    return {name: installed_version(name) for name in CONVERTER_PACKAGES}


@contextmanager
def exclusive_lock(name: str) -> Iterator[None]:
    """One process after the other. Where locks cannot be had, or one is held too long, all at once."""
    from filelock import FileLock, Timeout

    lock = FileLock(user_cache_folder() / "locks" / name)
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_TIMEOUT_SECONDS)
    except (OSError, Timeout, NotImplementedError) as error:
        log.debug("no lock: %s", error)
    try:
        yield
    finally:
        lock.release()


def delete_cached_model(folder: Path) -> None:
    """Take a folder out of use at once, then delete it. Raises OSError where that is not allowed."""
    work = Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX, dir=folder.parent))
    os.rename(folder, work / "discarded")
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def draft_folder() -> Iterator[Path]:
    """A new folder to build a model in; it is gone afterwards, unless published. Raises OSError."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    _sweep()
    work = Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX, dir=cache_folder()))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_manifest(work: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts of a draft, with the hashes of its files. Raises OSError."""
    hashes = {name: _hash(work / name) for name in STORED_FILES if (work / name).exists()}
    facts = {
        **facts,
        "format": CACHE_FORMAT_VERSION,
        "versions": converter_versions(),
        "created": time.time(),
        "sha256": hashes,
    }
    text = json.dumps(facts, sort_keys=True)
    with (work / "facts.json").open("w", encoding="utf-8") as stream:
        stream.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
        stream.flush()
        os.fsync(stream.fileno())


def publish_draft(work: Path, folder: Path) -> None:
    """Rename a sealed draft to its place. If another process was first, its model stays. Raises OSError."""
    work.chmod(0o755)
    try:
        os.rename(work, folder)
    except OSError:
        if not folder.is_dir():
            raise


def record_not_convertible(folder: Path, name: str, reason: str) -> None:
    """Keep in mind that a model cannot be compiled; where that cannot be written, it is tried again next time."""
    try:
        if folder.exists():
            delete_cached_model(folder)
        with draft_folder() as work:
            write_manifest(work, {"name": name, "reason": reason})
            publish_draft(work, folder)
    except OSError as error:
        log.debug("that %s cannot be compiled is not remembered: %s", name, error)


def list_cached_models() -> list[CachedModel]:
    """All compiled models, by name."""
    folders = [folder for folder in _entries(cache_folder()) if not folder.name.startswith(DRAFT_PREFIX)]
    return sorted((_cached(folder) for folder in folders), key=lambda entry: (entry.name, entry.key))


def clear_cached_models() -> int:
    """Delete all compiled models; returns how many there were. Raises ModelError where one cannot be deleted."""
    count = len(list_cached_models())
    for folder in _entries(cache_folder()):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            log.debug("%s is gone already", folder)
        except OSError as error:
            raise ModelError(
                f"{folder} cannot be deleted: {error.strerror}", "check its owner and permissions"
            ) from error
    return count


def read_checked_file(path: Path) -> bytes | None:
    """The contents of a file written by `store`, or None where it is not there or not whole."""
    try:
        made = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    return made[size:] if hashlib.sha256(made[size:]).digest() == made[:size] else None


def write_checked_file(path: Path, contents: bytes) -> None:
    """Write a file that `recall` reads, whole or not at all."""
    work = path.with_name(f"{DRAFT_PREFIX}{os.getpid()}-{path.name}")
    try:
        work.write_bytes(hashlib.sha256(contents).digest() + contents)
        os.replace(work, path)
    except OSError as error:
        log.debug("%s is not written: %s", path, error)
        with suppress(OSError):
            work.unlink()


def _facts(folder: Path) -> dict[str, Any]:
    try:
        wanted, _, text = (folder / "facts.json").read_text("utf-8").partition("\n")
    except (OSError, ValueError) as error:
        raise UnusableCacheEntryError(f"{folder / 'facts.json'} cannot be read") from error
    text = text.removesuffix("\n")
    if hashlib.sha256(text.encode()).hexdigest() != wanted:
        raise UnusableCacheEntryError(f"{folder / 'facts.json'} is not what was stored")
    made: dict[str, Any] = json.loads(text)
    return made


def _cached(folder: Path) -> CachedModel:
    size = sum(_size(file) for file in _entries(folder))
    try:
        facts = _facts(folder)
    except UnusableCacheEntryError:
        return CachedModel("(damaged)", folder.name, size, 0.0)
    return CachedModel(facts["name"], folder.name, size, facts["created"], facts.get("reason", ""))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _sweep() -> None:
    """Delete the drafts of processes that were killed."""
    for folder in cache_folder().glob(f"{DRAFT_PREFIX}*"):
        try:
            old = time.time() - folder.stat().st_mtime > STALE_SECONDS
        except OSError:
            continue
        if old:
            shutil.rmtree(folder, ignore_errors=True)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
