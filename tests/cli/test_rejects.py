"""The report of rejected rows: counts by reason, the first place, the file, and what to try."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import jobs

GOOD = b'{"id": "g", "text": "word1"}\n'
NULL = b'{"id": "n", "text": null}\n'
EMPTY = b'{"id": "e", "text": ""}\n'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return jobs.word_model(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(GOOD * 4 + EMPTY + GOOD + b"{not json\n" + EMPTY)
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "out.jsonl", "out/"])
def test_the_summary_and_the_report_count_rejects_by_reason(
    tmp_path: Path, model: Path, source: Path, name: str
) -> None:
    report = tmp_path / "run.json"
    done = jobs.run("encode", source, f"{tmp_path}/{name}", "-m", model, "--report", report)
    file = f"{tmp_path}/out/_rejects.jsonl" if name == "out/" else f"{tmp_path}/{name}.rejects.jsonl"
    assert done.code == 3, done.err
    assert f"rejects   2 text is empty, 1 bad JSON; first: {source}:5; all in {file}\n" in done.err
    content = json.loads(report.read_text())
    reasons = content["reject_reasons"]
    assert [(each["reason"], each["rows"]) for each in reasons] == [("text is empty", 2), ("bad JSON", 1)]
    assert reasons[0]["example"] == "text is empty"
    assert reasons[1]["example"].startswith("bad JSON: ")
    assert (content["first_reject"], content["rejects_path"]) == (f"{source}:5", file)


def test_a_resumed_run_counts_the_rejects_of_all_runs(tmp_path: Path, model: Path, source: Path) -> None:
    command = ("encode", source, tmp_path / "out.parquet", "-m", model, "--chunk-rows", 2)
    assert jobs.run(*command, "--max-rejects", "20%").code == 1
    done = jobs.run(*command)
    assert "8 rows were there already" in done.err
    assert f"rejects   2 text is empty, 1 bad JSON; first: {source}:5" in done.err
    again = jobs.run(*command)
    assert "nothing to do" in again.err
    assert f"rejects   2 text is empty, 1 bad JSON; first: {source}:5" in again.err


def test_a_quiet_run_says_in_one_line_why_it_does_not_end_with_0(tmp_path: Path, model: Path, source: Path) -> None:
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "-q")
    file = f"{tmp_path}/out.parquet.rejects.jsonl"
    assert done.code == 3
    line = f"3 rows were rejected; first: {source}:5 (text is empty); all in {file}\n"
    assert done.err.endswith(line)
    assert done.err.count("\n") == 1
    source.write_bytes(GOOD * 500)
    command = ("encode", source, tmp_path / "b.parquet", "-m", model, "-q")
    stopped = jobs.run(*command, "--chunk-rows", 2, "--stop-after", 1)
    assert stopped.code == 75
    assert stopped.err.count("\n") == 1
    assert "stopped by --stop-after 1: run the same command again to go on" in stopped.err


def test_a_quiet_run_shows_the_first_place_with_its_own_reason(tmp_path: Path, model: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(GOOD + b"{not json\n" + EMPTY + GOOD + EMPTY)
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "-q", "--report", tmp_path / "run.json")
    assert f" 3 rows were rejected; first: {source}:2 (bad JSON); all in " in done.err
    reasons = json.loads((tmp_path / "run.json").read_text())["reject_reasons"]
    assert [(each["reason"], each["first"]) for each in reasons] == [
        ("text is empty", f"{source}:3"),
        ("bad JSON", f"{source}:2"),
    ]


def test_a_quiet_run_without_rejects_says_nothing(tmp_path: Path, model: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(GOOD)
    done = jobs.run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "-m", model, "-q")
    assert (done.code, done.err) == (0, "")


def test_rejects_of_an_output_to_stdout_are_counted_too(tmp_path: Path, model: Path, source: Path) -> None:
    done = jobs.run("encode", source, "-", "-m", model)
    assert f"rejects   2 text is empty, 1 bad JSON; first: {source}:5\n" in done.err


@pytest.mark.parametrize(
    ("name", "content", "suggestion"),
    [
        ("in.csv", b"text\nword1\n" + b"word1,word2\n" * 4, "--delimiter"),
        ("in.csv", b"id,text\n" + b"2,word1,\n" * 4, "rows have 3 fields, the header 2: a separator at the end of the"),
        ("in.csv", b"id,text,n\n" + b"2,word1\n" * 4, "rows have 2 fields, the header 3: fields missing"),
        ("in.csv", b"id,text\n1,word1\n" + b"2,\xe9\n" * 4, "--encoding latin-1"),
        ("in.jsonl", GOOD + b"word1 word2\n" * 4, "--format"),
        ("in.jsonl", GOOD + NULL * 4, "--text-column"),
    ],
)
def test_one_reason_for_most_rows_comes_with_a_suggestion(
    tmp_path: Path, model: Path, name: str, content: bytes, suggestion: str
) -> None:
    source = tmp_path / name
    source.write_bytes(content)
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "--text-column", "text")
    hints = [line for line in done.err.splitlines() if "hint      " in line]
    assert len(hints) == 1, done.err
    assert suggestion in hints[0]
    assert ("--delimiter" in hints[0]) == (suggestion == "--delimiter")


def test_few_rejects_come_without_a_suggestion(tmp_path: Path, model: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(GOOD * 6 + NULL * 4)
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model)
    assert "rejects   4 text is missing or null" in done.err
    assert "hint      " not in done.err


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "out/"])
@pytest.mark.parametrize("more", [(), ("--workers", "2"), ("--shard", "1/1")])
def test_too_many_rejects_can_be_read_without_an_output(
    tmp_path: Path, model: Path, source: Path, name: str, more: tuple[str, ...]
) -> None:
    command = ("encode", source, f"{tmp_path}/{name}", "-m", model, "--chunk-rows", 2, *more)
    done = jobs.run(*command, "--max-rejects", "20%")
    file = tmp_path / (f"{name}_unpublished-rejects.jsonl" if name == "out/" else f"{name}.unpublished-rejects.jsonl")
    assert done.code == 1
    assert "3 rows were rejected, more than --max-rejects 20% allows" in done.err
    assert f"look at the rejected rows in {file}, correct the input" in done.err
    assert [row["line"] for row in read_lines(file)] == [5, 7, 8]
    done = jobs.run(*command)
    assert done.code == 3, done.err
    assert not file.exists()


@pytest.mark.parametrize("more", [(), ("--workers", "2")])
def test_a_number_of_rejects_ends_the_run_early(
    tmp_path: Path, model: Path, source: Path, more: tuple[str, ...]
) -> None:
    done = jobs.run("encode", source, tmp_path / "out.parquet", "-m", model, "--max-rejects", 1, *more)
    assert done.code == 1
    assert len(read_lines(tmp_path / "out.parquet.unpublished-rejects.jsonl")) == 3


def test_unpublished_rejects_are_no_input(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "in.jsonl").write_bytes(GOOD + NULL * 4)
    assert jobs.run("encode", folder, folder / "out.parquet", "-m", model, "--max-rejects", 1).code == 1
    assert (folder / "out.parquet.unpublished-rejects.jsonl").exists()
    done = jobs.run("encode", folder, folder / "other.parquet", "-m", model)
    assert "5 in, 1 embedded, 4 rejected" in done.err
    assert "out.parquet.unpublished-rejects.jsonl (rejects)" in done.err


@pytest.mark.parametrize("output", ["out.parquet", "out/", "-"])
@pytest.mark.parametrize("limit", ["1", "20%"])
def test_the_report_of_too_many_rejects_counts_them_by_reason(
    tmp_path: Path, model: Path, source: Path, output: str, limit: str
) -> None:
    report = tmp_path / "run.json"
    to = "-" if output == "-" else f"{tmp_path}/{output}"
    done = jobs.run("encode", source, to, "-m", model, "--max-rejects", limit, "--report", report, "-q")
    assert done.code == 1
    assert f"(2 text is empty, 1 bad JSON; first: {source}:5)" in done.err
    content = json.loads(report.read_text())
    counts = [(entry["reason"], entry["rows"]) for entry in content["reject_reasons"]]
    assert counts == [("text is empty", 2), ("bad JSON", 1)]
    assert content["reject_reasons"][1]["example"].startswith("bad JSON: ")
    assert content["first_reject"] == f"{source}:5"
    if output == "-":
        assert content["rejects_path"] is None
    else:
        assert len(read_lines(Path(content["rejects_path"]))) == 3
