"""What a run that is stopped, resumed or empty says: the rows that are kept, those that are lost, and how to go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from test_progress import Terminal, as_jsonl, start_job, texts

import jobs

ROWS = 240


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jobs.word_model(tmp_path)
    return tmp_path


def kept_rows(folder: Path) -> int:
    """Rows in the part files, by their own metadata."""
    import pyarrow as pa

    paths = folder.glob("out.parquet.parts/part-*.arrow")
    return sum(json.loads(pa.ipc.open_file(path).schema.metadata[b"embedcli.part"])["read"] for path in paths)


def read_report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def check_kept(folder: Path) -> dict[str, Any]:
    """Check that the report counts what is on disk, and return it."""
    report = read_report(folder)
    rows = report["rows"]
    assert rows["read"] == rows["rows"] == kept_rows(folder) > 0
    assert rows["resumed"] + rows["this_run"] == rows["rows"]
    return report


def start_encoding(folder: Path, source: Path, *flags: object) -> subprocess.Popen[bytes]:
    arguments = [source, "out.parquet", "-m", "words.txt", "--chunk-rows", 100, "--report", "run.json", *flags]
    return subprocess.Popen(
        jobs.command("encode", *arguments),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize("flags", [(), ("--workers", 2)], ids=["alone", "workers"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_stopped_run_counts_what_is_on_disk(folder: Path, kind: str, flags: tuple[object, ...]) -> None:
    rows = jobs.rows(100_000)
    source = folder / f"in.{kind}"
    if kind == "csv":
        source.write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows))
    else:
        jobs.write_jsonl(source, rows)
    resumed = 0
    for _ in range(2):
        process = start_encoding(folder, source, *flags)
        before = kept_rows(folder)
        jobs.wait_for(lambda before=before: kept_rows(folder) >= before + 300, process)  # type: ignore[misc]
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=jobs.PATIENCE)
        assert process.returncode == 130, err.decode()
        report = check_kept(folder)
        assert report["rows"]["resumed"] == resumed
        assert f"rows      {kept_rows(folder):,} in, " in err.decode()
        assert (f"resumed   {resumed:,} rows were there already" in err.decode()) == bool(resumed)
        assert report["counters"]["fed_tokens"] > 0
        resumed = kept_rows(folder)
    process = start_encoding(folder, source, *flags)
    _, err = process.communicate(timeout=jobs.PATIENCE)
    assert process.returncode == 0, err.decode()
    assert f"resumed   {resumed:,} rows were there already" in err.decode()
    counts = read_report(folder)["rows"]
    assert (counts["resumed"], counts["this_run"]) == (resumed, len(rows) - resumed)


@pytest.mark.parametrize("output", ["out.parquet", "out/"])
def test_a_resumed_run_that_is_stopped_counts_resumed_rows(folder: Path, output: str) -> None:
    source = jobs.write_jsonl(folder / "in.jsonl", jobs.rows(400))
    command = ("encode", source, f"{folder}/{output}", "-m", folder / "words.txt", "--chunk-rows", 50)
    reported = ("--stop-after", 100, "--report", folder / "run.json")
    for resumed in (0, 100, 200):
        stopped = jobs.run(*command, *reported)
        assert stopped.code == 75
        rows = read_report(folder)["rows"]
        assert (rows["rows"], rows["resumed"], rows["this_run"]) == (resumed + 100, resumed, 100)
        assert (f"resumed   {resumed} rows were there already" in stopped.err) == bool(resumed)


def release(terminal: Terminal, batches: int) -> None:
    for _ in range(batches):
        assert terminal.release()
    terminal.wait_for_rows(sum(terminal.computed()))


def interrupt(terminal: Terminal) -> str:
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait(lambda: "press Ctrl-C again" in terminal.text)
    while terminal.release():
        pass
    ended = terminal.end()
    assert ended.code == 130
    return ended.err.splitlines()[-1]


def test_rows_of_an_unfinished_chunk_are_said_to_be_lost(folder: Path) -> None:
    (folder / "in.jsonl").write_bytes(as_jsonl(texts(ROWS)))
    terminal = start_job(folder, inputs=[str(folder / "in.jsonl")], chunk_rows=1024)
    release(terminal, 2)
    last = interrupt(terminal)
    lost = sum(terminal.computed())
    assert last == (
        f"stopped by SIGINT before a chunk of 1,024 rows was finished, so {lost} computed rows are lost: "
        "run the same command again; a smaller --chunk-rows keeps rows sooner"
    )
    speeds = [line for line in terminal.text.splitlines() if line.startswith("speed")]
    assert not speeds[0].startswith("speed     0 rows/s")


@pytest.mark.parametrize(
    ("chunk_rows", "hint"),
    [
        (1024, "run the same command again; encode and load continue where they stopped"),
        (10, "run the same command without --overwrite to continue"),
    ],
)
def test_a_second_ctrl_c_says_how_to_keep_the_work(folder: Path, chunk_rows: int, hint: str) -> None:
    (folder / "in.jsonl").write_bytes(as_jsonl(texts(ROWS)))
    terminal = start_job(folder, inputs=[str(folder / "in.jsonl")], chunk_rows=chunk_rows, overwrite=True)
    release(terminal, 1)
    if chunk_rows == 10:
        while kept_rows(folder) == 0:
            release(terminal, 1)
        release(terminal, 1)
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait(lambda: "press Ctrl-C again" in terminal.text)
    terminal.process.send_signal(signal.SIGINT)
    ended = terminal.end()
    assert ended.err.splitlines()[-1] == f"hint: {hint}"


def test_stopping_within_a_chunk_is_explained(folder: Path) -> None:
    source = jobs.write_jsonl(folder / "in.jsonl", jobs.rows(205))
    command = ("encode", source, folder / "out.parquet", "-m", folder / "words.txt")
    note = "--stop-after 50 stops at the end of a chunk, after 60 rows; --chunk-rows makes chunks smaller"
    stopped = jobs.run(*command, "--stop-after", 50, "--chunk-rows", 20)
    assert note in stopped.err
    assert "rows      60 in" in stopped.err
    again = jobs.run(*command, "--stop-after", 40, "--chunk-rows", 20)
    assert "stops at the end of a chunk" not in again.err


@pytest.mark.parametrize("output", ["out.parquet", "out/", "-"])
def test_an_input_without_rows(folder: Path, output: str) -> None:
    (folder / "in.csv").write_text("id,text\n")
    to = ("-", "--to", "jsonl") if output == "-" else (f"{folder}/{output}",)
    done = jobs.run("encode", folder / "in.csv", *to, "-m", folder / "words.txt")
    assert done.code == 0, done.err
    assert done.err.rstrip().endswith("Z the input has no rows")


def test_one_partition_is_in_the_singular(folder: Path) -> None:
    source = jobs.write_jsonl(folder / "in.jsonl", jobs.rows(5))
    done = jobs.run("encode", source, folder / "out.parquet", "-m", folder / "words.txt", "--workers", 2)
    assert "the input is divided into 1 partition;" in done.err
