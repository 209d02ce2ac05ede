"""Every program of benchmarks/ starts as its README says, and prints figures on a small input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ledger_cost
import models
import plan_cost
import random_static_models
import small_bench

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SHARED = {"cached_network.py", "command_line.py"}
PROGRAMS = sorted(path.name for path in BENCHMARKS.glob("*.py") if path.name not in SHARED)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_explains_itself(program: str) -> None:
    command = [sys.executable, str(BENCHMARKS / program), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().startswith("usage:") or "Usage:" in done.stdout


def test_the_readme_lists_every_program() -> None:
    text = (BENCHMARKS / "README.md").read_text("utf-8")
    assert [program for program in PROGRAMS if f"| `{program}` |" not in text] == []
    assert text.count("\n| `") == len(PROGRAMS)


def test_programs_of_their_own_run_without_embedcli() -> None:
    for program in (BENCHMARKS / "programs").glob("*.py"):
        assert "import embedcli" not in program.read_text("utf-8")
        assert "from embedcli" not in program.read_text("utf-8")
        compiled = subprocess.run([sys.executable, "-I", "-m", "py_compile", str(program)], check=False)
        assert compiled.returncode == 0


def test_a_static_model_is_compared_on_the_rows(tmp_path: Path) -> None:
    """The tokenizer is that of a transformer; model2vec must read the model."""
    small_bench.write_inputs(tmp_path)
    words = [str(tmp_path / "in.jsonl"), "-m", str(models.folder("all-MiniLM-L6-v2-shape")), "--rows", "5"]
    target = tmp_path / "figures.json"
    done = CliRunner().invoke(random_static_models.app, [*words, "--rounds", "1", "--json", str(target)])
    assert done.exit_code == 0, done.output
    figures = json.loads(target.read_text())
    assert figures["baseline"].startswith("model2vec ")
    assert figures["model"]["dim"] == random_static_models.DIMENSIONS
    assert figures["input"]["rows"] == 5
    assert figures["baseline"] in done.stdout


def test_planning_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan_cost, "FILES", 3)
    monkeypatch.setattr(sys, "argv", ["plan_cost.py", "parquet", "--count-rows"])
    plan_cost.main()
    output = capsys.readouterr().out
    assert output.startswith("parquet: 3 input splits, 1 partitions in ")
    assert "rows before 3 splits counted" in output


def test_the_ledger_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ledger_cost.py", "--parts", "2", "--rows", "5", "--rows-per-second", "80"])
    assert ledger_cost.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 part files of up to 5 rows, 384 float32 dimensions each"
    costs = ["write a part file", "verify a part file", "read its rows again"]
    assert [line[:20].rstrip() for line in lines[1:]] == costs
    assert list(tmp_path.iterdir()) == []
