"""The vectors stay right whatever happens to the cache of compiled models."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from embedcli import encoders
from embedcli.core.errors import ModelError
from embedcli.encoders.openvino import cache as openvino_cache
from embedcli.encoders.openvino import loader as openvino_loader
from embedcli.encoders.openvino import runtime as openvino_runtime
from embedcli.models import resolve
from embedcli.models.config import read_model_config
from embedcli.models.fingerprint import cached_sha256
from jobs import wait_for
from reference import encode, job, load, lowest_cosine, samples

SAME = 0.99999
MODEL = "all-MiniLM-L6-v2-shape"
TEXTS = samples()[:12]
CONVERTED: dict[Path, Any] = {}
# Runs in a process of its own. Arguments: the model's folder, and a file to create before waiting for the lock. Writes
# the vectors to stdout; notes and the heavy libraries that were imported to stderr.
ENCODE = """
import sys
from pathlib import Path
from embedcli import encoders
from embedcli.core.job import Job
from embedcli.encoders.openvino import cache as openvino_cache
from reference import encode, samples
exclusive_lock = openvino_cache.exclusive_lock
def announce_and_lock(name):
    Path(sys.argv[2]).touch()
    return exclusive_lock(name)
openvino_cache.exclusive_lock = announce_and_lock
job = Job(inputs=(), output="", model=sys.argv[1], device="cpu", engine="openvino")
encoder = encoders.load_encoder(job, notify=lambda line: print(line, file=sys.stderr))
sys.stdout.buffer.write(encode(encoder, samples()[:12]).tobytes())
print(*{"torch"} & set(sys.modules), file=sys.stderr)
"""


@cache
def expected_vectors() -> Any:
    return encode(load(models.folder(MODEL)), TEXTS)


@cache
def filled_cache() -> Path:
    """A cache with one intact model, to copy from."""
    home = Path(os.environ["EMBEDCLI_CACHE"]).with_name("compiled-once")
    before = os.environ["EMBEDCLI_CACHE"]
    os.environ["EMBEDCLI_CACHE"] = str(home)
    try:
        load_and_compare()
    finally:
        os.environ["EMBEDCLI_CACHE"] = before
    return home


@pytest.fixture(autouse=True)
def _convert_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace and convert each model for the first test only: the tests are about what happens afterwards."""
    convert = openvino_loader._convert_network

    def convert_once(request: Any, *args: Any) -> Any:
        if request.files.path not in CONVERTED:
            CONVERTED[request.files.path] = convert(request, *args)
        return CONVERTED[request.files.path]

    monkeypatch.setattr(openvino_loader, "_convert_network", convert_once)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def entry(home: Path) -> Path:
    """The folder of the only model in a cache for one test."""
    expected_vectors()
    shutil.copytree(filled_cache(), home, dirs_exist_ok=True)
    (folder,) = (home / "compiled").iterdir()
    return folder


def load_and_compare() -> list[str]:
    """Load with --engine openvino, compare the vectors, and return the notes."""
    lines: list[str] = []
    encoder = encoders.load_encoder(job(models.folder(MODEL), device="cpu", engine="openvino"), notify=lines.append)
    vectors = encode(encoder, TEXTS)
    encoder.close()
    assert lowest_cosine(vectors, expected_vectors()) >= SAME
    return lines


def start_encoding(home: Path) -> subprocess.Popen[bytes]:
    support = str(Path(__file__).parents[2] / "support")
    return subprocess.Popen(
        [sys.executable, "-c", ENCODE, str(models.folder(MODEL)), str(home.with_name("waiting"))],
        env={**os.environ, "EMBEDCLI_CACHE": str(home), "PYTHONPATH": support},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_vectors(process: subprocess.Popen[bytes]) -> tuple[Any, str]:
    out, err = process.communicate()
    assert process.returncode == 0, err.decode()
    return np.frombuffer(out, np.float32).reshape(len(TEXTS), -1), err.decode()


def read_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".blob"}


def test_the_first_use_compiles_and_the_next_uses_the_cache(home: Path) -> None:
    assert len(load_and_compare()) == 1
    (folder,) = (home / "compiled").iterdir()
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert {*openvino_cache.STORED_FILES, "facts.json"} < set(before)
    assert load_and_compare() == []
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 0x10
    return bytes(flipped)


def grow(content: bytes) -> bytes:
    return content + b"0"


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip, grow, empty, None])
@pytest.mark.parametrize("name", ["model.xml", "model.bin", "tokenizer.json", "probe.npz", "facts.json"])
def test_damage_is_noticed(entry: Path, name: str, damage: Callable[[bytes], bytes] | None) -> None:
    assert openvino_cache.read_cached_model(entry)
    if damage:
        (entry / name).write_bytes(damage((entry / name).read_bytes()))
    else:
        (entry / name).unlink()
    with pytest.raises(openvino_cache.UnusableCacheEntryError, match=name):
        openvino_cache.read_cached_model(entry)


@pytest.mark.parametrize("name", ["model.bin", "facts.json"])
def test_a_damaged_model_is_compiled_again(entry: Path, name: str) -> None:
    (entry / name).write_bytes(flip((entry / name).read_bytes()))
    assert len(load_and_compare()) == 1
    assert load_and_compare() == []


def test_weights_that_change_behind_the_file_systems_back_are_never_used(
    entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and times are the same, so that the hash is not computed again: only the stored vectors tell."""
    hashes = {entry / name: cached_sha256(entry / name) for name in openvino_cache.STORED_FILES}
    monkeypatch.setattr(openvino_cache, "cached_sha256", hashes.__getitem__)
    weights, times = entry / "model.bin", (entry / "model.bin").stat()
    content = bytearray(weights.read_bytes())
    # The top bit of the exponent of every float in the last eighth: these are weights of the last layer.
    for i in range(len(content) * 7 // 8 // 4 * 4 + 3, len(content), 4):
        content[i] ^= 0x40
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    lines = load_and_compare()
    assert len(lines) == 1
    assert "compiling" in lines[0]
    monkeypatch.undo()


@pytest.mark.parametrize("damage", [cut, flip, grow, empty])
def test_a_damaged_blob_is_compiled_again(entry: Path, damage: Callable[[bytes], bytes]) -> None:
    (blob,) = entry.glob("*.blob")
    blob.write_bytes(damage(blob.read_bytes()))
    assert openvino_cache.read_checked_file(blob) is None
    assert load_and_compare() == []
    assert openvino_cache.read_checked_file(blob) is not None


def test_a_blob_that_openvino_rejects_is_compiled_again(entry: Path) -> None:
    (blob,) = entry.glob("*.blob")
    other = b"intact, but from another version"
    openvino_cache.write_checked_file(blob, other)
    assert openvino_cache.read_checked_file(blob) == other
    assert load_and_compare() == []
    assert openvino_cache.read_checked_file(blob) not in (None, other)


def test_a_model_that_openvino_rejects_is_compiled_again(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hashes match, but OpenVINO cannot read it."""
    compile_stored = openvino_runtime.OpenVinoRuntime._compile_stored
    failures = iter([RuntimeError("Cannot read it")])

    def fail_once(self: Any, *args: Any) -> Any:
        for error in failures:
            raise error
        return compile_stored(self, *args)

    monkeypatch.setattr(openvino_runtime.OpenVinoRuntime, "_compile_stored", fail_once)
    assert len(load_and_compare()) == 1
    assert next(failures, None) is None


def test_a_cache_that_cannot_be_written_is_reported(home: Path) -> None:
    home.write_text("a file, not a folder")
    lines = load_and_compare()
    assert len([line for line in lines if "could not be stored" in line]) == 1


def test_a_full_disk_is_reported(home: Path) -> None:
    """Convert with a limit of 100 kB per file, which is less than the weights."""
    CONVERTED.clear()
    (stored_bin,) = filled_cache().glob("compiled/*/model.bin")
    assert stored_bin.stat().st_size > 100_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        lines = load_and_compare()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len([line for line in lines if "could not be stored" in line]) == 1
    assert compiled_names(home) == []


def test_a_full_disk_while_publishing_is_reported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(openvino_cache, "publish_draft", fail)
    lines = load_and_compare()
    assert "No space left on device" in lines[-1]
    assert compiled_names(home) == []


def test_a_read_only_cache_is_used(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write fails: the stored model is used, and no new blob is stored."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    (blob,) = entry.glob("*.blob")
    blob.unlink()
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert load_and_compare() == []
    assert not list(entry.glob("*.blob"))


def test_a_damaged_model_in_a_read_only_cache_is_left_alone(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    (entry / "model.bin").write_bytes(flip((entry / "model.bin").read_bytes()))
    before = read_files(entry)
    monkeypatch.setattr(os, "mkdir", refuse)
    lines = load_and_compare()
    assert "Read-only file system" in lines[-1]
    assert read_files(entry) == before


def test_of_two_processes_at_once_one_compiles(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process starts while the first one converts, waits, and then needs no PyTorch."""
    expected_vectors()
    convert, others = openvino_loader._convert_network, []

    def convert_while_another_waits(*args: Any) -> Any:
        others.append(start_encoding(home))
        wait_for(home.with_name("waiting").exists, others[0])
        return convert(*args)

    monkeypatch.setattr(openvino_loader, "_convert_network", convert_while_another_waits)
    assert len(load_and_compare()) == 1
    (other,) = others
    vectors, lines = wait_for_vectors(other)
    assert lowest_cosine(vectors, expected_vectors()) >= SAME
    assert lines.split() == []
    assert len(compiled_names(home)) == 1


def test_the_slower_of_two_processes_uses_the_model_of_the_faster(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without working locks: the model appears in the cache while this process converts it."""
    before = read_files(entry)
    read = openvino_cache.read_cached_model
    calls: list[Path] = []

    def read_from_third_call_on(folder: Path) -> Any:
        calls.append(folder)
        return None if len(calls) < 3 else read(folder)

    monkeypatch.setattr(openvino_cache, "read_cached_model", read_from_third_call_on)
    assert len(load_and_compare()) == 1
    assert len(calls) == 3
    assert read_files(entry) == before
    assert compiled_names(entry.parent.parent) == [entry.name]


def test_drafts_of_killed_processes_are_deleted_after_a_day(home: Path) -> None:
    old, fresh = home / "compiled" / ".draft-old", home / "compiled" / ".draft-fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "model.bin").write_bytes(b"half")
    yesterday = time.time() - openvino_cache.STALE_SECONDS - 60
    os.utime(old, (yesterday, yesterday))
    assert openvino_loader.list_cached_models() == []
    load_and_compare()
    assert not old.exists()
    assert fresh.exists()


def test_the_key_covers_what_decides_the_network() -> None:
    def key(name: str, **values: Any) -> str:
        model_job = job(models.folder(name), **values)
        files = resolve.resolve_model(model_job)
        return openvino_cache.cache_key(files, read_model_config(files, model_job))

    plain = key(MODEL)
    same: list[dict[str, Any]] = [
        {"normalize": False},
        {"max_seq_length": 9},
        {"truncate_dim": 8},
        {"prompt": "q: "},
        {"dtype": "bfloat16"},
    ]
    assert {key(MODEL, **values) for values in same} == {plain}
    assert key("bge-small-en-v1.5") != plain
    assert key("instruct-model", prompt="a: ") != key("instruct-model", prompt="b: ")


@pytest.mark.usefixtures("entry")
def test_another_version_of_openvino_compiles_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(openvino_cache, "installed_version", lambda package: "1.0")
        assert len(load_and_compare()) == 1
    assert len(openvino_loader.list_cached_models()) == 2


def test_models_are_listed_and_cleared(entry: Path) -> None:
    (cached,) = openvino_loader.list_cached_models()
    assert cached.key == entry.name
    assert cached.name == str(models.folder(MODEL))
    assert cached.size_bytes == sum(file.stat().st_size for file in entry.iterdir())
    assert abs(cached.created_at - time.time()) < 24 * 3600
    assert openvino_loader.clear_cached_models() == 1
    assert openvino_loader.list_cached_models() == []
    assert list(entry.parent.iterdir()) == []
    assert openvino_loader.clear_cached_models() == 0


def test_a_damaged_model_is_listed_and_cleared(entry: Path) -> None:
    (entry / "facts.json").write_text(json.dumps({"name": "changed by hand"}))
    assert [cached.name for cached in openvino_loader.list_cached_models()] == ["(damaged)"]
    assert openvino_loader.clear_cached_models() == 1


def test_clearing_reports_what_cannot_be_deleted(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        openvino_loader.clear_cached_models()
    assert entry.exists()


def compiled_names(home: Path) -> list[str]:
    return [folder.name for folder in (home / "compiled").iterdir()]
