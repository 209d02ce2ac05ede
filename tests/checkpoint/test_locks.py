"""Locks where the file system has none, and what a run that ends early leaves behind."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

import jobs
from embedcli import storage
from embedcli.checkpoint import Ledger
from embedcli.core.errors import OutputLocked
from embedcli.encoders.openvino import cache as openvino_cache

NO_LOCKS = sorted({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP})
OUTPUTS = ["out.parquet", "out.npy", "out/", "new/folders/out/"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return jobs.enter_folder(tmp_path, monkeypatch, 12)


@pytest.fixture(params=NO_LOCKS, ids=errno.errorcode.get)
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses every lock, as NFS without lockd and some FUSE file systems do."""

    def refuse(*_: Any) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(fcntl, "lockf", refuse)


def encode(output: str, *options: object) -> jobs.Ended:
    return jobs.run("encode", "in.jsonl", output, "-m", "words.txt", "-q", "--chunk-rows", 3, *options)


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("output", ["out.parquet", "out/"])
def test_a_job_runs_without_locks(here: Path, output: str) -> None:
    assert encode(output, "--stop-after", 4).code == 75
    done = encode(output)
    assert done.code == 0, done.err
    assert encode(output, "--overwrite").code == 0
    assert jobs.left_in(here) == [output.rstrip("/")]


@pytest.mark.usefixtures("without_locks")
def test_shards_run_without_locks(here: Path) -> None:
    for shard in ("1/2", "2/2"):
        done = encode("out/", "--shard", shard, "--part-size", 100)
        assert done.code == 0, done.err
    assert [path.name for path in (here / "out").iterdir() if not path.name.startswith("part-")] == ["_manifest.json"]


@pytest.mark.usefixtures("without_locks")
def test_a_shard_without_locks_leaves_the_folder_of_others(here: Path) -> None:
    """It cannot know whether the other shard, which has not written anything yet, is alive."""
    (here / "out.parquet.parts").mkdir()
    (here / "out.parquet.parts" / "_lock-2-of-2").touch()
    assert encode("out.parquet", "--shard", "1/2", "--max-tokens", 5).code == 2
    assert (here / "out.parquet.parts" / "_lock-2-of-2").exists()


@pytest.mark.usefixtures("without_locks")
def test_the_cache_of_compiled_models_works_without_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path))
    with openvino_cache.exclusive_lock("a"), openvino_cache.exclusive_lock("a"):
        pass


def test_the_cache_goes_on_when_a_lock_is_held_for_too_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path))
    monkeypatch.setattr(openvino_cache, "LOCK_TIMEOUT_SECONDS", 0)
    with openvino_cache.exclusive_lock("a"), openvino_cache.exclusive_lock("a"):
        pass


def test_an_error_that_is_not_about_locks_is_reported(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    done = encode("out.parquet")
    assert (done.code, "Input/output error" in done.err) == (1, True)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("shard", [(), ("--shard", "1/2")], ids=["whole", "shard"])
def test_a_job_that_ends_early_leaves_no_folder(here: Path, output: str, shard: tuple[str, ...]) -> None:
    (here / "words.bad.txt").write_text("1 3\nword 1 2 bad\n")  # noticed when it is loaded, under the lock
    ended = encode(output, "-m", "words.bad.txt", *shard)
    assert ended.code == 1, ended.err
    assert "words.bad.txt" in ended.err
    assert jobs.left_in(here) == []


@pytest.mark.parametrize("shard", [(), ("--shard", "1/2")], ids=["whole", "shard"])
def test_a_refused_job_leaves_no_folder(here: Path, shard: tuple[str, ...]) -> None:
    (here / "out.parquet").write_bytes(b"somebody else's")
    assert encode("out.parquet", *shard).code == 2
    assert jobs.left_in(here) == ["out.parquet"]


def test_a_failed_lock_leaves_no_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("embedcli.storage.local.LocalFileSystem.acquire_lock", fail)
    assert encode("new/out/").code == 1
    assert jobs.left_in(here) == []


def test_a_temporary_file_of_a_killed_worker_goes_with_the_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It appears while the run goes on, so that the sweep at the beginning does not see it."""
    leftover = here / "out/_parts" / f".part-000000-000000-00.arrow.tmp-{2**22 + 1}-{'0' * 16}"
    add_chunk = Ledger.add_chunk

    def add_and_leave(self: Ledger, *values: Any) -> Any:
        leftover.touch()
        return add_chunk(self, *values)

    monkeypatch.setattr(Ledger, "add_chunk", add_and_leave)
    assert encode("out/").code == 0
    assert not (here / "out/_parts").exists()


def test_a_lock_that_is_a_link_is_not_followed(here: Path) -> None:
    (here / "victim").write_text("precious")
    (here / "out.parquet.parts").mkdir()
    (here / "out.parquet.parts" / "_lock").symlink_to(here / "victim")
    assert encode("out.parquet").code == 1
    assert (here / "victim").read_text() == "precious"


def test_a_lock_is_refused_and_released(tmp_path: Path) -> None:
    lock, output = str(tmp_path / "_lock"), str(tmp_path / "out")
    unlock = storage.acquire_lock(lock, output)
    for shared in (False, True):
        with pytest.raises(OutputLocked):
            storage.acquire_lock(lock, output, shared=shared)
    unlock()
    one, two = (storage.acquire_lock(lock, output, shared=True) for _ in range(2))
    with pytest.raises(OutputLocked):
        storage.acquire_lock(lock, output)
    one()
    two()
    storage.acquire_lock(lock, output)()
