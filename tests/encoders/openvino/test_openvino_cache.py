"""Whatever happens to the cache of compiled models, the vectors are right."""

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
from embedcli.models import resolve
from embedcli.models.config import read_model_config
from jobs import wait_for
from reference import encode, job, load, lowest_cosine, samples

SAME = 0.99999
MODEL = "all-MiniLM-L6-v2-shape"
TEXTS = samples()[:12]
CONVERTED: dict[Path, Any] = {}
# Run in a process of its own: argv is the model's folder, and a file that is there when it waits for its turn;
# stdout gets the vectors, stderr the lines told, and the heavy libraries that were imported.
ENCODE = """
import sys
from pathlib import Path
from embedcli import encoders
from embedcli.core.job import Job
from embedcli.encoders.openvino import cache as openvino_cache
from reference import encode, samples
turn = openvino_cache.exclusive_lock
def waiting(name):
    Path(sys.argv[2]).touch()
    return turn(name)
openvino_cache.exclusive_lock = waiting
job = Job(inputs=(), output="", model=sys.argv[1], device="cpu", engine="openvino")
encoder = encoders.load_encoder(job, notify=lambda line: print(line, file=sys.stderr))
sys.stdout.buffer.write(encode(encoder, samples()[:12]).tobytes())
print(*{"torch"} & set(sys.modules), file=sys.stderr)
"""


@cache
def wanted() -> Any:
    return encode(load(models.folder(MODEL)), TEXTS)


@cache
def stored() -> Path:
    """A cache folder with one good model, to copy from."""
    home = Path(os.environ["EMBEDCLI_CACHE"]).with_name("compiled-once")
    before = os.environ["EMBEDCLI_CACHE"]
    os.environ["EMBEDCLI_CACHE"] = str(home)
    try:
        told()
    finally:
        os.environ["EMBEDCLI_CACHE"] = before
    return home


@pytest.fixture(autouse=True)
def _converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are of what is done with a converted network: PyTorch traces it for the first, and it is kept."""
    converted = openvino_loader._converted

    def once(asked: Any, *args: Any) -> Any:
        if asked.files.path not in CONVERTED:
            CONVERTED[asked.files.path] = converted(asked, *args)
        return CONVERTED[asked.files.path]

    monkeypatch.setattr(openvino_loader, "_converted", once)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def entry(home: Path) -> Path:
    """The folder of the one model in a cache of this test's own."""
    wanted()
    shutil.copytree(stored(), home)
    (found,) = (home / "compiled").iterdir()
    return found


def told() -> list[str]:
    """Load compiled, by force, and compare the vectors; the lines that were told."""
    lines: list[str] = []
    encoder = encoders.load_encoder(job(models.folder(MODEL), device="cpu", engine="openvino"), notify=lines.append)
    made = encode(encoder, TEXTS)
    encoder.close()
    assert lowest_cosine(made, wanted()) >= SAME
    return lines


def child(home: Path) -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parents[2] / "support")
    return subprocess.Popen(
        [sys.executable, "-c", ENCODE, str(models.folder(MODEL)), str(home.with_name("waiting"))],
        env={**os.environ, "EMBEDCLI_CACHE": str(home), "PYTHONPATH": here},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def vectors_of(process: subprocess.Popen[bytes]) -> tuple[Any, str]:
    out, err = process.communicate()
    assert process.returncode == 0, err.decode()
    return np.frombuffer(out, np.float32).reshape(len(TEXTS), -1), err.decode()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".blob"}


def test_the_first_use_compiles_and_the_next_uses_it(home: Path) -> None:
    assert len(told()) == 1
    (folder,) = (home / "compiled").iterdir()
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert {*openvino_cache.STORED_FILES, "facts.json"} < set(before)
    assert told() == []
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    made = bytearray(content)
    made[len(made) // 2] ^= 0x10
    return bytes(made)


def grow(content: bytes) -> bytes:
    return content + b"0"


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip, grow, empty, None])
@pytest.mark.parametrize("name", ["model.xml", "model.bin", "tokenizer.json", "facts.json"])
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
    assert len(told()) == 1
    assert told() == []


@pytest.mark.parametrize("damage", [cut, flip, grow, empty])
def test_a_damaged_blob_is_made_again(entry: Path, damage: Callable[[bytes], bytes]) -> None:
    (blob,) = entry.glob("*.blob")
    blob.write_bytes(damage(blob.read_bytes()))
    assert openvino_cache.read_checked_file(blob) is None
    assert told() == []
    assert openvino_cache.read_checked_file(blob) is not None


def test_a_blob_that_openvino_refuses_is_made_again(entry: Path) -> None:
    (blob,) = entry.glob("*.blob")
    other = b"whole, but from another version"
    openvino_cache.write_checked_file(blob, other)
    assert openvino_cache.read_checked_file(blob) == other
    assert told() == []
    assert openvino_cache.read_checked_file(blob) not in (None, other)


def test_a_model_that_openvino_refuses_is_compiled_again(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hashes are right, and still it does not open."""
    compile_stored = openvino_loader.OpenVinoRuntime._compile_stored
    failures = iter([RuntimeError("Cannot read it")])

    def once(self: Any, *args: Any) -> Any:
        for error in failures:
            raise error
        return compile_stored(self, *args)

    monkeypatch.setattr(openvino_loader.OpenVinoRuntime, "_compile_stored", once)
    assert len(told()) == 1
    assert next(failures, None) is None


def test_an_unwritable_cache(home: Path) -> None:
    home.write_text("a file is in its place")
    lines = told()
    assert len([line for line in lines if "cannot be kept" in line]) == 1


def test_a_full_disk(home: Path) -> None:
    """No file may grow beyond 100 kB; the network's weights are larger. It is converted under this limit, too."""
    CONVERTED.clear()
    (stored_bin,) = stored().glob("compiled/*/model.bin")
    assert stored_bin.stat().st_size > 100_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        lines = told()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len([line for line in lines if "cannot be kept" in line]) == 1
    assert compiled_names(home) == []


def test_a_full_disk_at_the_last_moment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(openvino_cache, "publish_draft", full)
    lines = told()
    assert "No space left on device" in lines[-1]
    assert compiled_names(home) == []


def test_a_cache_that_can_only_be_read(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that writes fails, as for another user: what is there is used, and a new blob is not kept."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    (blob,) = entry.glob("*.blob")
    blob.unlink()
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert told() == []
    assert not list(entry.glob("*.blob"))


def test_a_damaged_model_in_a_cache_that_can_only_be_read(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    (entry / "model.bin").write_bytes(flip((entry / "model.bin").read_bytes()))
    before = snapshot(entry)
    monkeypatch.setattr(os, "mkdir", refuse)
    lines = told()
    assert "Read-only file system" in lines[-1]
    assert snapshot(entry) == before


def test_of_two_processes_at_once_one_compiles(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other comes while this one is at it, waits, and then needs no PyTorch."""
    wanted()
    converted, others = openvino_loader._converted, []

    def slowly(*args: Any) -> Any:
        others.append(child(home))
        wait_for(home.with_name("waiting").exists, others[0])
        return converted(*args)

    monkeypatch.setattr(openvino_loader, "_converted", slowly)
    assert len(told()) == 1
    (other,) = others
    made, lines = vectors_of(other)
    assert lowest_cosine(made, wanted()) >= SAME
    assert lines.split() == []
    assert len(compiled_names(home)) == 1


def test_the_slower_of_two_uses_what_the_faster_kept(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no locks: the model appears while ours is being compiled."""
    before = snapshot(entry)
    read = openvino_cache.read_cached_model
    seen: list[Path] = []

    def late(folder: Path) -> Any:
        seen.append(folder)
        return None if len(seen) < 3 else read(folder)

    monkeypatch.setattr(openvino_cache, "read_cached_model", late)
    assert len(told()) == 1
    assert len(seen) == 3
    assert snapshot(entry) == before
    assert compiled_names(entry.parent.parent) == [entry.name]


def test_a_killed_process_leaves_nothing_for_long(home: Path) -> None:
    old, fresh = home / "compiled" / ".draft-old", home / "compiled" / ".draft-fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "model.bin").write_bytes(b"half")
    yesterday = time.time() - openvino_cache.STALE_SECONDS - 60
    os.utime(old, (yesterday, yesterday))
    assert openvino_loader.list_cached_models() == []
    told()
    assert not old.exists()
    assert fresh.exists()


def test_the_key_is_of_what_decides_the_network() -> None:
    def key(name: str, **values: Any) -> str:
        asked = job(models.folder(name), **values)
        files = resolve.resolve_model(asked)
        return openvino_cache.cache_key(files, read_model_config(files, asked))

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
def test_another_converter_is_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(openvino_cache, "installed_version", lambda package: "1.0")
        assert len(told()) == 1
    assert len(openvino_loader.list_cached_models()) == 2


def test_listing_and_clearing(entry: Path) -> None:
    (found,) = openvino_loader.list_cached_models()
    assert found.key == entry.name
    assert found.name == str(models.folder(MODEL))
    assert found.size_bytes == sum(file.stat().st_size for file in entry.iterdir())
    assert abs(found.created_at - time.time()) < 24 * 3600
    assert openvino_loader.clear_cached_models() == 1
    assert openvino_loader.list_cached_models() == []
    assert list(entry.parent.iterdir()) == []
    assert openvino_loader.clear_cached_models() == 0


def test_a_damaged_model_is_listed_and_cleared(entry: Path) -> None:
    (entry / "facts.json").write_text(json.dumps({"name": "changed by hand"}))
    assert [found.name for found in openvino_loader.list_cached_models()] == ["(damaged)"]
    assert openvino_loader.clear_cached_models() == 1


def test_clearing_says_what_it_may_not(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        openvino_loader.clear_cached_models()
    assert entry.exists()


def compiled_names(home: Path) -> list[str]:
    return [folder.name for folder in (home / "compiled").iterdir()]
