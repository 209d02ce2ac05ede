"""`embedcli load`: its report and its exit codes, with a SQLite file as the database."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import jobs
from loads import names, run
from sample_outputs import make_output, unit_vectors

pytest.importorskip("apsw")
pytest.importorskip("sqlite_vec")

STOPPED = """
import os, signal, sys
from embedcli.databases.sqlite import SQLiteTarget
from embedcli.__main__ import main
SQLiteTarget.batch_bytes = 5000
number, write = int(sys.argv.pop(1)), SQLiteTarget.insert_rows
def insert_rows(self, *args):
    write(self, *args)
    os.kill(os.getpid(), number)
SQLiteTarget.insert_rows = insert_rows
main()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(output: Path, *options: object) -> Any:
    return run("load", output, "sqlite:vectors.db", "--report", "run.json", *options)


def read_report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("run.json").read_bytes())
    return content


def counts(sent: int, unchanged: int, removed: int, rejected: int, table: int | None) -> dict[str, Any]:
    return {
        "output": sent + unchanged + rejected, "sent": sent, "unchanged": unchanged, "removed": removed,
        "rejected": rejected, "table": table,
    }  # fmt: skip


def test_the_report_counts_what_was_sent(folder: Path) -> None:
    output = make_output(folder / "out.parquet", unit_vectors(20, 8), ids=names(20))
    assert load(output).code == 0
    report = read_report()
    assert (report["exit_code"], report["reason"], report["hint"]) == (0, "all rows loaded", "")
    assert report["rows"] == counts(20, 0, 0, 0, 20)
    assert report["seconds"] > 0
    assert report["space"]["model"] == "tests/made-up"
    assert report["job"].items() >= {"output": str(output), "target": "sqlite:vectors.db", "sync": False}.items()
    assert load(output).code == 0
    assert read_report()["rows"] == counts(0, 20, 0, 0, 20)
    assert read_report()["reason"] == "nothing to do: the table is up to date"
    make_output(output, unit_vectors(9, 8), ids=names(9))
    assert load(output, "--sync").code == 0
    assert read_report()["rows"] == counts(0, 9, 11, 0, 9)


def test_the_report_of_rejects(folder: Path) -> None:
    output = make_output(folder / "out.parquet", unit_vectors(3, 8), ids=["a", "b", "a"])
    done = load(output)
    assert (done.code, done.err.splitlines()[-1]) == (3, "1 row was rejected")
    report = read_report()
    assert (report["exit_code"], report["reason"]) == (3, "1 row was rejected")
    assert report["rows"] == counts(2, 0, 0, 1, 2)
    (reason,) = report["reject_reasons"]
    assert (reason["reason"], reason["rows"]) == ("id appears twice in the output", 1)
    path = Path(report["rejects_path"])
    assert path.name.startswith("out.parquet.load-rejects-sqlite-embeddings-")
    done = load(output)
    assert f"1 id appears twice in the output; first: {output}:3; all in {path}" in done.err
    assert (done.code, read_report()["rows"]["rejected"]) == (3, 1)
    assert done.err.splitlines()[-1] == "nothing to do: the table is up to date; 1 row was rejected"
    assert run("load", output, "sqlite:vectors.db", "--quiet").err == done.err.splitlines()[-1] + "\n"


def test_the_report_of_a_failure(folder: Path) -> None:
    assert load(make_output(folder / "out.parquet", unit_vectors(3, 8), ids=names(3))).code == 0
    other = make_output(folder / "other.parquet", unit_vectors(3, 8), ids=names(3), space={"model": "tests/other"})
    done = load(other)
    report = read_report()
    assert (done.code, report["exit_code"], report["rows"]) == (2, 2, None)
    assert "holds vectors of another vector space" in report["reason"]
    assert "use --swap" in report["hint"]
    assert load(folder / "missing.parquet").code == 2
    assert "missing.parquet" in read_report()["reason"]


def test_a_report_that_cannot_be_written_is_found_before(folder: Path) -> None:
    output = make_output(folder / "out.parquet", unit_vectors(3, 8), ids=names(3))
    done = run("load", output, "sqlite:vectors.db", "--report", "missing/run.json")
    assert done.code == 1
    assert not (folder / "vectors.db").exists()


@pytest.mark.parametrize(("signal", "code"), [(15, 75), (2, 130)])
def test_a_stopped_load_says_how_to_go_on(folder: Path, signal: int, code: int) -> None:
    output = make_output(folder / "out.parquet", unit_vectors(400, 8), ids=names(400))
    command = ["load", str(output), "sqlite:vectors.db", "--report", "run.json"]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(signal), *command],
        capture_output=True, text=True, timeout=jobs.PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith(
        "error: interrupted\nhint: run the same command again; only rows that are missing are sent\n"
    )
    report = read_report()
    assert (report["exit_code"], report["reason"]) == (code, "interrupted")
    done = load(output)
    assert done.code == 0
    assert 0 < read_report()["rows"]["unchanged"] < 400
    assert run("verify", output, "sqlite:vectors.db", "--all").code == 0


def test_embedcli_report_shows_it(folder: Path) -> None:
    done = load(make_output(folder / "out.parquet", unit_vectors(20, 8), ids=names(20)))
    shown = run("report", "run.json")
    assert (shown.code, shown.err) == (0, "")
    started, *summary, ended = shown.out.splitlines()
    assert summary == done.err.splitlines()[:-1]
    assert (started.split()[0], ended) == ("started", "ended     all rows loaded")
    assert json.loads(run("report", "run.json", "--json").out) == read_report()
    refused = run("report", "run.json", "--plot", "run.png")
    assert (refused.code, "which has no stages" in refused.err) == (2, True)


def test_the_report_is_no_input(folder: Path) -> None:
    (folder / "in").mkdir()
    load(make_output(folder / "out.parquet", unit_vectors(3, 8), ids=names(3)))
    Path("run.json").rename(folder / "in" / "run.json")
    jobs.write_jsonl(folder / "in" / "rows.jsonl", jobs.rows(5))
    done = run("encode", "in", "encoded.parquet", "-m", jobs.word_model(folder))
    assert done.code == 0, done.err
    assert "hold no rows are not read: run.json" in done.err
