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

from embedcli.core.cache_dir import cache_home
from embedcli.core.errors import ModelError
from embedcli.models.config import Recipe
from embedcli.models.files import ModelFiles, sha256

log = logging.getLogger(__name__)

# Raised whenever the network or the facts of an equal model would come out otherwise.
FORMAT = 1
STORED = ("model.xml", "model.bin", "tokenizer.json")
DRAFT = ".draft-"
# A draft this old belongs to a process that was killed.
STALE_SECONDS = 24 * 3600
# Longer than converting takes: then a lock is not given back, or the model is very large.
PATIENCE_SECONDS = 1800
CONVERTERS = ("torch", "transformers", "sentence-transformers")


class Unusable(Exception):
    """What lies in a folder is not, or no longer, what can be used."""


@dataclass(frozen=True)
class Cached:
    """A model in the cache: its size on disk in bytes, when it was made (seconds since 1970), and its `reason` if it
    is only remembered as one that cannot be compiled."""

    name: str
    key: str
    bytes: int
    created: float
    reason: str = ""


def home() -> Path:
    """The folder of all compiled models; not created."""
    return cache_home() / "compiled"


def key(files: ModelFiles, recipe: Recipe) -> str:
    """The name of a model's folder: the same for the same network made by the same converter.

    A prompt counts only where pooling leaves it out, as its length is then part of the network; a task counts where
    the model has a way for each. Normalising, truncating and the limit are done outside the network.
    """
    prompt = "" if recipe.include_prompt else recipe.prompt
    parts = {"format": FORMAT, "model": files.fingerprint, "openvino": installed("openvino"), "prompt": prompt}
    parts |= {"task": recipe.task} if recipe.task else {}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def read(folder: Path) -> dict[str, Any] | None:
    """The facts of a stored model, its files checked against them; None where there is none.

    Contents are read only when a file is new or has another size or time than last time. Raises Unusable.
    """
    if not folder.is_dir():
        return None
    facts = _facts(folder)
    if facts.get("reason"):
        if facts["versions"] != versions():
            raise Unusable("it was tried with other libraries")
        return facts
    for name, wanted in facts["sha256"].items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise Unusable(f"{folder / name} cannot be read: {error.strerror}") from error
        if found != wanted:
            raise Unusable(f"{folder / name} is not what was stored")
    return facts


def versions() -> dict[str, str | None]:
    """The libraries that decide whether a model can be converted."""
    return {name: installed(name) for name in CONVERTERS}


@contextmanager
def turn(name: str) -> Iterator[None]:
    """One process after the other. Where locks cannot be had, or one is held too long, all at once."""
    from filelock import FileLock, Timeout

    lock = FileLock(cache_home() / "locks" / name)
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE_SECONDS)
    except (OSError, Timeout, NotImplementedError) as error:
        log.debug("no lock: %s", error)
    try:
        yield
    finally:
        lock.release()


def discard(folder: Path) -> None:
    """Take a folder out of use at once, then delete it. Raises OSError where that is not allowed."""
    work = Path(tempfile.mkdtemp(prefix=DRAFT, dir=folder.parent))
    os.rename(folder, work / "discarded")
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def draft() -> Iterator[Path]:
    """A new folder to build a model in; it is gone afterwards, unless published. Raises OSError."""
    home().mkdir(parents=True, exist_ok=True)
    _sweep()
    work = Path(tempfile.mkdtemp(prefix=DRAFT, dir=home()))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def seal(work: Path, facts: Mapping[str, Any]) -> None:
    """Write the facts of a draft, with the hashes of its files. Raises OSError."""
    hashes = {name: _hash(work / name) for name in STORED if (work / name).exists()}
    facts = {**facts, "format": FORMAT, "versions": versions(), "created": time.time(), "sha256": hashes}
    text = json.dumps(facts, sort_keys=True)
    with (work / "facts.json").open("w", encoding="utf-8") as stream:
        stream.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
        stream.flush()
        os.fsync(stream.fileno())


def publish(work: Path, folder: Path) -> None:
    """Rename a sealed draft to its place. If another process was first, its model stays. Raises OSError."""
    work.chmod(0o755)
    try:
        os.rename(work, folder)
    except OSError:
        if not folder.is_dir():
            raise


def remember(folder: Path, name: str, reason: str) -> None:
    """Keep in mind that a model cannot be compiled; where that cannot be written, it is tried again next time."""
    try:
        if folder.exists():
            discard(folder)
        with draft() as work:
            seal(work, {"name": name, "reason": reason})
            publish(work, folder)
    except OSError as error:
        log.debug("that %s cannot be compiled is not remembered: %s", name, error)


def cached() -> list[Cached]:
    """All compiled models, by name."""
    folders = [folder for folder in _entries(home()) if not folder.name.startswith(DRAFT)]
    return sorted((_cached(folder) for folder in folders), key=lambda entry: (entry.name, entry.key))


def clear() -> int:
    """Delete all compiled models; returns how many there were. Raises ModelError where one cannot be deleted."""
    count = len(cached())
    for folder in _entries(home()):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            log.debug("%s is gone already", folder)
        except OSError as error:
            raise ModelError(
                f"{folder} cannot be deleted: {error.strerror}", "check its owner and permissions"
            ) from error
    return count


def recall(path: Path) -> bytes | None:
    """The contents of a file written by `store`, or None where it is not there or not whole."""
    try:
        made = path.read_bytes()
    except OSError:
        return None
    size = hashlib.sha256().digest_size
    return made[size:] if hashlib.sha256(made[size:]).digest() == made[:size] else None


def store(path: Path, contents: bytes) -> None:
    """Write a file that `recall` reads, whole or not at all."""
    work = path.with_name(f"{DRAFT}{os.getpid()}-{path.name}")
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
        raise Unusable(f"{folder / 'facts.json'} cannot be read") from error
    text = text.removesuffix("\n")
    if hashlib.sha256(text.encode()).hexdigest() != wanted:
        raise Unusable(f"{folder / 'facts.json'} is not what was stored")
    made: dict[str, Any] = json.loads(text)
    return made


def _cached(folder: Path) -> Cached:
    size = sum(_size(file) for file in _entries(folder))
    try:
        facts = _facts(folder)
    except Unusable:
        return Cached("(damaged)", folder.name, size, 0.0)
    return Cached(facts["name"], folder.name, size, facts["created"], facts.get("reason", ""))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _sweep() -> None:
    """Delete the drafts of processes that were killed."""
    for folder in home().glob(f"{DRAFT}*"):
        try:
            old = time.time() - folder.stat().st_mtime > STALE_SECONDS
        except OSError:
            continue
        if old:
            shutil.rmtree(folder, ignore_errors=True)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
