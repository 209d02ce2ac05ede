"""Real faults: disks that fail or corrupt any write, full disks, kills, damage, and unusual file names."""

from __future__ import annotations

import errno
import io
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import jobs
from embedcli.storage import atomic_write as storage_disk

ROWS = jobs.rows(120)
OUTPUTS = ("out.parquet", "out.npy", "out.jsonl", "out.arrow", "out/")


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str], list[Any]]:
    """Arguments of a small job of four chunks with one bad row, for an output name."""
    model = jobs.word_model(tmp_path)
    source = jobs.write_jsonl(tmp_path / "in.jsonl", ROWS)
    with source.open("a") as out:
        out.write("{bad\n")
    return lambda name: ["encode", source, f"{tmp_path}/{name}", "-m", model, "--chunk-rows", 40, "-q"]


def read_files(folder: Path) -> dict[str, bytes]:
    """Read every file in a folder, inputs excepted, by its path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith(("in.", "words.")):
            found[name] = path.read_bytes()
    return found


def is_published(found: dict[str, bytes]) -> bool:
    """Whether an output has its final name."""
    return any(name in found for name in ("out.parquet", "out.npy", "out.jsonl", "out.arrow", "out/_manifest.json"))


class Disk:
    """Counts the writes of all files and makes the n-th one fail."""

    def __init__(self, fault: str, at: int) -> None:
        self.fault = fault
        self.at = at
        self.writes = 0

    def open(self, path: str) -> io.RawIOBase:
        disk = self

        class File(io.FileIO):
            def write(self, data: Any, /) -> int:
                disk.writes += 1
                if disk.writes != disk.at:
                    return super().write(data)
                match disk.fault:
                    case "error":
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    case "short":
                        return super().write(memoryview(data)[: max(1, len(data) // 2)])
                    case "torn":
                        super().write(memoryview(data)[: len(data) // 2])
                    case "flipped":
                        super().write(bytes([data[0] ^ 1]) + bytes(data[1:]))
                return len(data)

        return File(path, "wb")


def count_writes(job: list[Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Count the writes of the job when nothing fails."""
    disk = Disk("none", 0)
    monkeypatch.setattr(storage_disk, "open_raw", disk.open)
    assert jobs.run(*job).code == 3
    return disk.writes


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("fault", ["error", "short", "dropped", "torn", "flipped"])
def test_any_write_that_fails_or_is_corrupted_is_detected(
    tmp_path: Path, job: Callable[[str], list[Any]], monkeypatch: pytest.MonkeyPatch, fault: str, name: str
) -> None:
    count = count_writes(job(name), monkeypatch)
    expected = read_files(tmp_path)
    assert count > 5
    for at in range(1, count + 1):
        remove_outputs(tmp_path)
        monkeypatch.setattr(storage_disk, "open_raw", Disk(fault, at).open)
        done = jobs.run(*job(name))
        found = read_files(tmp_path)
        if done.code == 3:
            assert found == expected
            assert fault == "short", "a fault of this kind must not pass"
            continue
        assert done.code == 1
        assert "Traceback" not in done.err
        assert not is_published(found)
        monkeypatch.setattr(storage_disk, "open_raw", Disk("none", 0).open)
        again = jobs.run(*job(name))
        assert again.code == 3, again.err
        assert read_files(tmp_path) == expected


def test_a_failed_fsync_ends_the_run(
    tmp_path: Path, job: Callable[[str], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.run(*job("out.parquet"))
    expected = read_files(tmp_path)
    sync, calls = os.fsync, 0

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    at = 0
    while True:
        at, calls = at + 1, 0
        remove_outputs(tmp_path)
        monkeypatch.setattr(os, "fsync", failing)
        done = jobs.run(*job("out.parquet"))
        monkeypatch.setattr(os, "fsync", sync)
        if calls < at:
            break
        assert done.code == 1, f"fsync number {at} failed, and the run ended with {done.code}"
        again = jobs.run(*job("out.parquet"))
        assert again.code in (0, 3)
        assert read_files(tmp_path) == expected
    assert at > 6


def remove_outputs(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.name.startswith(("in.", "words.")):
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(("limit", "where"), [(300, "manifest"), (4000, "part"), (9000, "merge")])
def test_a_file_size_limit_ends_with_a_message_and_resumes(
    tmp_path: Path, job: Callable[[str], list[Any]], limit: int, where: str
) -> None:
    arguments = job("out.parquet")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(jobs.command(*arguments), preexec_fn=limited, capture_output=True, check=False)
    assert done.returncode == 1, done.stderr
    assert b"cannot be written" in done.stderr
    assert b"Traceback" not in done.stderr
    staged = [path.name for path in (tmp_path / "out.parquet.parts").glob("part-*")] if where != "manifest" else []
    assert bool(staged) == (where == "merge")
    assert not (tmp_path / "out.parquet").exists()
    assert jobs.run(*arguments).code == 3
    assert jobs.left_in(tmp_path) == ["out.parquet", "out.parquet.rejects.jsonl"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk(tmp_path: Path, job: Callable[[str], list[Any]]) -> None:
    disk = tmp_path / "in.disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let us mount")
    try:
        arguments = job("in.disk/out.parquet")
        done = jobs.run_apart(*arguments)
        assert done.code == 1
        assert "No space left on device" in done.err
        assert not (disk / "out.parquet").exists()
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
        assert jobs.run_apart(*arguments).code == 3
        assert jobs.left_in(disk) == ["out.parquet", "out.parquet.rejects.jsonl"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written(tmp_path: Path, job: Callable[[str], list[Any]]) -> None:
    done = jobs.run(*job("nowhere/out.parquet"))
    assert done.code == 1
    assert "mkdir -p" in done.err


def test_kills_at_random_moments() -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "kill_test.py"
    command = [sys.executable, str(script), "--kills", "20", "--rows", "2000", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills survived" in done.stdout


NAMES = ["with space", "new\nline", "größe-文", "quote'\"", "[a-b]*?", "-dash", "percent%20"]


@pytest.mark.parametrize("name", NAMES)
def test_file_names_of_every_kind(tmp_path: Path, name: str) -> None:
    model = jobs.word_model(tmp_path)
    source = jobs.write_jsonl(tmp_path / f"in.{name}.jsonl", ROWS)
    output = tmp_path / f"{name}.parquet"
    done = jobs.run("encode", source, output, "-m", model)
    assert done.code == 0, done.err
    assert pq.read_metadata(output).num_rows == 120
    assert jobs.left_in(tmp_path) == [output.name]


def test_a_hundred_thousand_equal_ids_and_texts(tmp_path: Path) -> None:
    model = jobs.word_model(tmp_path)
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "same", "text": "word1 word2"}\n' * 100_000)
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "--report", tmp_path / "run.json")
    assert done.code == 0, done.err
    table = pq.read_table(tmp_path / "out.parquet")
    assert (table.num_rows, len(table.column("id").unique())) == (100_000, 1)
    assert '"duplicates": 99993' in (tmp_path / "run.json").read_text()


def test_an_interrupted_job_whose_input_changed_is_refused_then_updated(
    tmp_path: Path, job: Callable[[str], list[Any]]
) -> None:
    arguments = job("out.parquet")
    assert jobs.run(*arguments, "--stop-after", 1).code == 75
    source = tmp_path / "in.jsonl"
    source.write_text(source.read_text().replace("word1 ", "word9 ", 1))
    refused = jobs.run(*arguments)
    assert refused.code == 2
    assert "has changed since" in refused.err
    assert jobs.run(*arguments, "--update").code == 3
    updated = read_files(tmp_path)
    remove_outputs(tmp_path)
    jobs.run(*arguments)
    assert read_files(tmp_path) == updated
