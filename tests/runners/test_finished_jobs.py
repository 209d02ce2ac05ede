"""A finished job that is run again: recognised without reading anything, and whenever something differs, looked at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jobs
from embedcli import runners
from embedcli.core.job import Job
from embedcli.core.job_options import validate_options
from embedcli.runners import finished_jobs

OUTPUTS = ["out.parquet", "out.npy", "out.jsonl", "out.arrow", "out/"]
OPTIONS = ("-m", "words.txt", "--chunk-rows", 8, "--part-size", 600)
LISTING = """
import sys
from embedcli.cli import main
try: main()
finally: print(*sys.modules)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return jobs.enter_folder(tmp_path, monkeypatch, 40)


def encode(output: str = "out.parquet", *options: object, source: str = "in.jsonl") -> jobs.Ended:
    return jobs.run("encode", source, output, *OPTIONS, *options)


def recognised(output: str = "out.parquet", source: str = "in.jsonl", **options: Any) -> bool:
    """Whether a job is found finished without a closer look."""
    given: dict[str, Any] = {"model": "words.txt", "chunk_rows": 8, "part_size": "600"} | options
    job = Job(inputs=(source,), output=output, **validate_options(given))
    return runners.find_finished_result(job, jobs.Silent()) is not None


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_finished_job_is_recognised_and_says_the_same(here: Path, output: str) -> None:
    encode(output, "-q")
    assert recognised(output)
    quick, quick_report = encode(output, "--report", "run.json"), read_report()
    finished_jobs.record_path(output).unlink()
    assert not recognised(output)
    slow, slow_report = encode(output, "--report", "run.json"), read_report()
    assert recognised(output), "a closer look does not remember what it saw"
    assert quick.code == slow.code == 0
    assert lines(quick) == lines(slow)
    assert "nothing to do: the output is finished" in lines(quick)[-1]
    assert quick_report == slow_report


def read_report() -> dict[str, Any]:
    """The run report, without what is measured."""
    measured = ("started", "seconds", "peak_memory_mb", "startup_seconds", "stage_seconds")
    report = json.loads(Path("run.json").read_text())
    notes = [note for note in report["notes"] if not note.startswith("memory ")]
    return {key: value for key, value in (report | {"notes": notes}).items() if key not in measured}


def lines(ended: jobs.Ended) -> list[str]:
    """What was printed, without the times of day and the line that measures the memory."""
    return [line.split(" ", 1)[-1] for line in ended.err.splitlines() if " memory " not in line]


def test_a_finished_job_needs_no_library(here: Path) -> None:
    encode()
    arguments = ["encode", "in.jsonl", "out.parquet", *map(str, OPTIONS)]
    done = subprocess.run([sys.executable, "-c", LISTING, *arguments], capture_output=True, text=True, check=True)
    assert "nothing to do" in done.stderr
    heavy = {"numpy", "pyarrow", "tokenizers", "openvino", "torch", "rich", "tqdm", "ssl", "pandas"}
    loaded = set(done.stdout.split())
    assert {name.partition(".")[0] for name in loaded} & heavy == set()
    unused = ("cli.plan", "cli.search", "cli.batch", "readers", "checkpoint", "pipeline.engine", "runners.run_job")
    assert {f"embedcli.{name}" for name in unused} & loaded == set()
    assert {"embedcli.cli.encode", "embedcli.runners.finished_jobs"} <= loaded


def test_rejects_are_told_again(here: Path) -> None:
    with Path("in.jsonl").open("a") as stream:
        stream.write("{broken\n")
    assert encode().code == 3
    assert recognised()
    again = encode()
    assert again.code == 3
    assert "bad JSON" in again.err
    assert "in.jsonl:41" in again.err
    assert "1 row was rejected" in again.err
    quiet = encode("out.parquet", "-q")
    assert (quiet.code, "1 row was rejected" in quiet.err) == (3, True)
    Path("out.parquet.rejects.jsonl").unlink()
    assert not recognised()


def replace_row() -> None:
    """Change a row but not the size of the file, and set the time back, as `rsync -t` and restored backups do."""
    path = Path("in.jsonl")
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b"word1 ", b"word2 ", 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def append_row() -> None:
    with Path("in.jsonl").open("a") as stream:
        stream.write('{"id": "late", "text": "word1"}\n')


def change_model() -> None:
    text = Path("words.txt").read_text()
    Path("words.txt").write_text(text.replace("word7 ", "word8888 ", 1))


def touch_output() -> None:
    os.utime("out.parquet")


def start_another() -> None:
    Path("out.parquet.parts").mkdir()


CHANGES = [replace_row, append_row, change_model, touch_output, start_another, lambda: Path("out.parquet").unlink()]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_takes_a_closer_look(here: Path, change: Callable[[], None]) -> None:
    encode()
    assert recognised()
    change()
    assert not recognised()


@pytest.mark.parametrize("change", [replace_row, append_row, change_model])
def test_a_changed_job_is_refused(here: Path, change: Callable[[], None]) -> None:
    encode()
    change()
    refused = encode()
    assert (refused.code, "nothing to do" in refused.err) == (2, False), refused.err


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_rows": 9},
        {"text_column": "id"},
        {"precision": "float16"},
        {"normalize": True},
        {"limit": 3},
        {"update": True},
    ],
)
def test_another_command_takes_a_closer_look(here: Path, options: dict[str, Any]) -> None:
    encode()
    assert not recognised(**options)
    assert recognised()


def test_the_default_rows_per_chunk_are_recognised(here: Path) -> None:
    jobs.run("encode", "in.jsonl", "out.parquet", "-m", "words.txt")
    assert recognised(chunk_rows=None, part_size="256MB")


def test_an_overwrite_is_never_skipped(here: Path) -> None:
    encode("out.parquet", "--overwrite")
    assert not recognised(overwrite=True)
    assert "nothing to do" not in encode("out.parquet", "--overwrite").err


def test_the_same_names_in_another_folder_are_another_job(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = str(here / "out.parquet")
    encode(output)
    assert recognised(output)
    other = here / "other"
    other.mkdir()
    for name in ("in.jsonl", "words.txt"):
        shutil.copy2(name, other / name)
    monkeypatch.chdir(other)
    assert not recognised(output)


@pytest.mark.parametrize("source", ["rows", "rows/*.jsonl"])
def test_files_that_come_and_go_are_noticed(here: Path, source: str) -> None:
    rows = here / "rows"
    rows.mkdir()
    for number in (2, 10):
        shutil.copy2("in.jsonl", rows / f"part-{number}.jsonl")
    assert encode(source=source).code == 0
    assert recognised(source=source)
    shutil.copy2("in.jsonl", rows / "part-3.jsonl")
    assert not recognised(source=source)
    (rows / "part-3.jsonl").unlink()
    assert recognised(source=source)
    (rows / "part-2.jsonl").rename(rows / "part-11.jsonl")
    assert not recognised(source=source)


def test_an_input_that_was_left_out_takes_a_closer_look(here: Path) -> None:
    """What embedcli wrote is recognised by its content, which may change."""
    rows = here / "rows"
    rows.mkdir()
    shutil.copy2("in.jsonl", rows / "in.jsonl")
    encode("rows/before.parquet")
    assert encode(source="rows").code == 0
    assert not recognised(source="rows")
    assert "nothing to do" in encode(source="rows").err


def test_a_part_of_a_folder_output_that_is_gone_is_noticed(here: Path) -> None:
    encode("out/")
    assert recognised("out/")
    next(Path("out").glob("part-*")).unlink()
    assert not recognised("out/")
    refused = encode("out/")
    assert (refused.code, "a file of the finished output is missing" in refused.err) == (2, True)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"repeat": 7}', '{"repeat": {"command": {}}}'])
def test_a_damaged_record_costs_a_closer_look_only(here: Path, content: str) -> None:
    encode()
    finished_jobs.record_path("out.parquet").write_text(content)
    assert not recognised()
    assert "nothing to do" in encode().err
    assert recognised()


def test_another_version_takes_a_closer_look(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode()
    monkeypatch.setattr(finished_jobs, "__version__", "9.9")
    assert not recognised()


def test_streams_are_read(here: Path) -> None:
    data = Path("in.jsonl").read_bytes()
    jobs.run_apart("encode", "-", "out.parquet", "--format", "jsonl", *OPTIONS, stdin=data)
    assert not recognised(source="-", format="jsonl")
