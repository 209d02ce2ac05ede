"""`embedcli report`: the summary that the run itself printed, from the file it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedcli.cli import app
from searchable import TEXTS, model_folder


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, args)))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run report, and what the run said on stderr."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{"id": i, "text": text} for i, text in enumerate([*TEXTS, ""])]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = model_folder(folder / "model")
    args = ("encode", folder / "in.jsonl", folder / "out.parquet", "-m", model, "--report", folder / "run.json")
    code, _, err = run(*args)
    assert code == 3
    return folder / "run.json", err


def test_it_says_what_the_run_said(made: tuple[Path, str]) -> None:
    path, said = made
    code, out, err = run("report", path)
    assert (code, err) == (0, "")
    summary = [
        line for line in out.splitlines() if line.startswith(("rows ", "tokens ", "model ", "output ", "stages "))
    ]
    assert len(summary) == 5
    assert all(line in said for line in summary)
    assert "ended     1 row was rejected" in out


def test_the_timeline_shows_busy_shares(made: tuple[Path, str], tmp_path: Path) -> None:
    content = json.loads(made[0].read_text())
    content |= {
        "timeline": None,
        "seconds": 10.0,
        "stage_seconds": {"read": 1.0, "forward": 10.0, "write": 0.0},
        "bottleneck": "forward",
    }
    (tmp_path / "run.json").write_text(json.dumps(content))
    lines = run("report", tmp_path / "run.json")[1].splitlines()[-3:]
    assert [line.split() for line in lines] == [
        ["read", "#####", "10%"], ["forward", "#" * 50, "100%"], ["write", "0%"],
    ]  # fmt: skip


def test_the_timeline_shows_when_a_stage_was_busy(made: tuple[Path, str], tmp_path: Path) -> None:
    content = json.loads(made[0].read_text())
    busy = {"read": [1.0, 0.0, 0.0, 0.0, 0.0], "forward": [0.0, 1.0, 1.0, 0.5, 0.0]}
    content |= {"seconds": 10.0, "stage_seconds": {"read": 2.0, "forward": 5.0}, "bottleneck": "forward"}
    (tmp_path / "run.json").write_text(json.dumps(content | {"timeline": {"seconds": 2.0, "busy": busy}}))
    read, forward = run("report", tmp_path / "run.json")[1].splitlines()[-2:]
    assert read == "read      " + "#" * 10 + " " * 42 + " 20%"
    assert forward == "forward   " + " " * 10 + "#" * 20 + "=" * 10 + " " * 12 + " 50%"


def test_a_report_records_when_stages_were_busy(made: tuple[Path, str]) -> None:
    content = json.loads(made[0].read_text())
    width, busy = content["timeline"]["seconds"], content["timeline"]["busy"]
    assert set(busy) == {"read", "tokenize", "forward", "write"}
    for name, shares in busy.items():
        assert sum(shares) * width == pytest.approx(content["stage_seconds"][name], abs=0.01)
        assert len(shares) <= content["seconds"] / width + 1


def test_json_and_picture(made: tuple[Path, str], tmp_path: Path) -> None:
    assert json.loads(run("report", made[0], "--json")[1]) == json.loads(made[0].read_text())
    pytest.importorskip("matplotlib")
    assert run("report", made[0], "--plot", tmp_path / "run.svg")[0] == 0
    assert b"<svg" in (tmp_path / "run.svg").read_bytes()
    assert run("report", made[0], "--plot", tmp_path / "run.html")[0] == 0
    page = (tmp_path / "run.html").read_text()
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</svg>")
    assert "http" not in page.replace("http://www.w3.org/", "").replace("http://purl.org/", "").replace(
        "http://creativecommons.org/", ""
    ).replace("https://matplotlib.org/", "")
    content = json.loads(made[0].read_text())
    del content["timeline"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert run("report", tmp_path / "old.json", "--plot", tmp_path / "old.svg")[0] == 0


def test_a_file_that_is_not_a_report_is_refused(made: tuple[Path, str], tmp_path: Path) -> None:
    for content in ("{}", "[]", "oops"):
        (tmp_path / "x.json").write_text(content)
        code, out, err = run("report", tmp_path / "x.json")
        assert (code, out) == (1, "")
        assert "is not a run report" in err
    code, _, err = run("report", tmp_path / "nothing.json")
    assert (code, "nothing.json: cannot be read" in err, "hint: give a file that" in err) == (1, True, True)


def test_the_report_of_a_failed_run_lists_finished_work(made: tuple[Path, str], tmp_path: Path) -> None:
    good = "".join(json.dumps({"text": TEXTS[0]}) + "\n" for _ in range(300_000))
    (tmp_path / "in.jsonl").write_text(good + "{bad\n")
    report = tmp_path / "run.json"
    args = ("-m", made[0].parent / "model", "--on-bad-row", "fail", "--chunk-rows", "1000", "--report", report)
    assert run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", *args)[0] == 1
    done = json.loads(report.read_text())["rows"]["this_run"]
    assert done > 0
    out = run("report", report)[1]
    assert f"\nrows      {done:,} embedded by this run\n" in out
    assert "tokens" not in out.replace("tokens/s", "").replace("of the tokens computed", "")


@pytest.mark.parametrize("workers", [1, 2])
def test_windows_are_not_counted_as_rows(made: tuple[Path, str], tmp_path: Path, workers: int) -> None:
    rows, report = tmp_path / "in.jsonl", tmp_path / "run.json"
    rows.write_text("".join(json.dumps({"text": " ".join(TEXTS)}) + "\n" for _ in range(50)))
    args = ("-m", made[0].parent / "model", "--overflow", "split", "--max-seq-length", "5", "--workers", workers)
    assert run("encode", rows, tmp_path / "out.parquet", *args, "--report", report)[0] == 0
    content = json.loads(report.read_text())
    assert content["counters"]["sequences"] > 1
    assert (content["rows"]["rows"], content["rows"]["this_run"]) == (50, 50)
    assert content["rows_per_second"] == pytest.approx(50 / content["seconds"], rel=0.05)


def test_the_extensions_of_plots_include_web_pages(made: tuple[Path, str]) -> None:
    code, _, err = run("report", made[0], "--plot", "run.xyz")
    assert code == 2
    assert "run.xyz: the extension must be one of .png, .svg, .pdf, .html" in err
