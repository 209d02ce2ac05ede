"""Inputs that change while a run reads them, and inputs that were replaced although their times say otherwise."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jobs
from embedcli import readers

OUTPUTS = ["out.parquet", "out.npy", "out.jsonl", "out.arrow", "out/"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return jobs.enter_folder(tmp_path, monkeypatch, 40)


def encode(output: str, *options: object) -> jobs.Ended:
    fixed = ["-m", "words.txt", "-q", "--chunk-rows", 8, "--part-size", 600]
    return jobs.run("encode", "in.jsonl", output, *fixed, *options)


def replace_row(path: Path = Path("in.jsonl")) -> None:
    """Change a row but not the size of the file, and set the time back, as `rsync -t` and restored backups do."""
    times = path.stat()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"word1 ", b"word2 ", 1))
    assert path.read_bytes() != data
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def copy_over() -> None:
    """Replace the input by a copy of itself, with the same time."""
    shutil.copy2("in.jsonl", "in.copy")
    os.replace("in.copy", "in.jsonl")


def append_row() -> None:
    with Path("in.jsonl").open("a") as lines:
        lines.write('{"id": "late", "text": "word1"}\n')


def during_the_run(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]) -> None:
    """Make `change` happen once, when the last chunk has been read."""
    read_chunks = readers.read_chunks
    pending = [change]

    def read_and_change(*arguments: Any) -> Any:
        yield from read_chunks(*arguments)
        while pending:
            pending.pop()()

    monkeypatch.setattr(readers, "read_chunks", read_and_change)


@pytest.mark.parametrize("change", [replace_row, append_row])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_change_during_the_run_is_noticed(
    here: Path, output: str, change: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    during_the_run(monkeypatch, change)
    ended = encode(output)
    assert ended.code == 1, ended.err
    assert "in.jsonl has changed while it was read; nothing was published" in ended.err
    assert "are kept in out" in ended.err
    flag = "--overwrite" if output == "out.jsonl" else "--update"
    assert f"run the same command again with {flag}" in ended.err
    staged = here / ("out/_parts" if output == "out/" else f"{output}.parts")
    assert any(staged.iterdir())
    assert not (here / "out/_manifest.json" if output == "out/" else here / output).exists()
    done = encode(output, flag)
    assert done.code == 0, done.err
    again = jobs.run("verify", output)
    assert again.code == 0, again.out + again.err


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_copy_with_the_same_content_is_accepted(here: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    during_the_run(monkeypatch, copy_over)
    ended = encode(output)
    assert ended.code == 0, ended.err


def test_a_change_is_noticed_with_workers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedcli.runners import coordinator

    record = coordinator.record_partition_done
    pending = [replace_row]

    def record_and_change(*arguments: Any) -> None:
        record(*arguments)
        while pending:
            pending.pop()()

    monkeypatch.setattr(coordinator, "record_partition_done", record_and_change)
    ended = encode("out/", "--workers", 2)
    assert ended.code == 1, ended.err
    assert "has changed while it was read" in ended.err


def test_a_shard_notices_a_change_behind_the_same_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    during_the_run(monkeypatch, replace_row)
    ended = encode("out/", "--shard", "1/1")
    assert ended.code == 1, ended.err
    assert "in.jsonl has changed while partition 0" in ended.err
    assert encode("out/", "--shard", "1/1").code == 0
    assert jobs.run("verify", "out/").code == 0


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_finished_job_looks_at_a_replaced_input_again(here: Path, output: str) -> None:
    assert encode(output).code == 0
    assert "nothing to do" in report(output)["reason"]
    copy_over()
    assert "nothing to do" in report(output)["reason"]
    replace_row()
    changed = encode(output)
    assert changed.code == 2, changed.err
    assert "has changed since" in changed.err


def report(output: str) -> dict[str, Any]:
    assert encode(output, "--report", "in.report.json").code == 0
    found: dict[str, Any] = json.loads(Path("in.report.json").read_text())
    return found


def test_what_earlier_versions_noted_is_understood(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They kept size and time only: the input is looked at once, and not encoded."""
    monkeypatch.setenv("EMBEDCLI_CACHE", str(here / "in.cache"))
    assert encode("out.parquet").code == 0
    before = Path("out.parquet").stat().st_mtime_ns
    for path in (Path(os.environ["EMBEDCLI_CACHE"]) / "finished").glob("*.json"):
        files = json.loads(path.read_text())["files"]
        kept = {name: {key: stats[key] for key in ("size", "mtime_ns")} for name, stats in files.items()}
        path.write_text(json.dumps(kept))
    assert "nothing to do" in report("out.parquet")["reason"]
    assert Path("out.parquet").stat().st_mtime_ns == before


def test_a_completed_partition_is_read_again_when_its_input_was_replaced(here: Path) -> None:
    """The second partition was stopped; the first one has a record with the size and the time of the input."""
    for name in ("in.1.jsonl", "in.2.jsonl"):
        jobs.write_jsonl(here / name, jobs.rows(1000))
    arguments = ["in.1.jsonl", "in.2.jsonl", "out/", "-m", "words.txt", "-q", "--chunk-rows", 100, "--part-size", 1000]
    assert jobs.run("encode", *arguments, "--stop-after", 1500).code == 75
    assert list((here / "out/_parts").glob("share-000000-*"))
    replace_row(Path("in.1.jsonl"))
    refused = jobs.run("encode", *arguments)
    assert refused.code == 2, refused.err
    assert "in.1.jsonl has changed since" in refused.err


def test_a_moved_folder_is_not_encoded_again(here: Path) -> None:
    (here / "in.one").mkdir()
    os.replace("in.jsonl", "in.one/in.jsonl")
    fixed = ["-m", "words.txt", "-q", "--chunk-rows", 8]
    assert jobs.run("encode", "in.one/in.jsonl", "in.one/out.parquet", *fixed).code == 0
    shutil.copytree("in.one", "in.two", copy_function=shutil.copy)
    before = Path("in.two/out.parquet").stat().st_mtime_ns
    again = jobs.run("encode", "in.two/in.jsonl", "in.two/out.parquet", *fixed)
    assert again.code == 0, again.err
    assert Path("in.two/out.parquet").stat().st_mtime_ns == before
