"""The cron and systemd examples of docs/guides/unattended.md, run as cron and systemd would run them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jobs

GUIDE = (Path(__file__).parent.parent / "docs" / "guides" / "unattended.md").read_text("utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    """The folder of the examples, with a model that needs no hub, and `embedcli` where they look for it."""
    jobs.write_jsonl(tmp_path / "articles.jsonl", jobs.rows(40))
    jobs.word_model(tmp_path)
    home = tmp_path / "bin"
    home.mkdir()
    command = home / "embedcli"
    model = f"EMBEDCLI_MODEL={tmp_path}/words.txt"
    command.write_text(f'#!/bin/sh\n{model} HOME={tmp_path} exec {sys.executable} -m embedcli "$@"\n')
    command.chmod(0o755)
    return tmp_path


def placed(text: str, dumps: Path) -> str:
    return text.replace("/opt/embedcli/bin", f"{dumps}/bin").replace("/srv/dumps", str(dumps))


def check(dumps: Path) -> None:
    report = json.loads((dumps / "run.json").read_text())
    assert (report["exit_code"], report["rows"]["rows"]) == (0, 40)
    assert (dumps / "vectors.parquet").exists()


def by_cron(line: str) -> str:
    """The command that cron(8) runs: five fields of time first; a bare % ends it, \\% is a %."""
    command = line.split(None, 5)[5]
    return re.split(r"(?<!\\)%", command)[0].replace("\\%", "%")


def test_the_cron_example_runs_every_night(dumps: Path) -> None:
    (table,) = blocks("crontab")
    lines = [line for line in placed(table, dumps).splitlines() if line and not line.startswith("#")]
    path, entry = lines
    assert path.startswith("PATH=")
    for _ in range(2):
        done = subprocess.run(
            ["/bin/sh", "-c", by_cron(entry)],
            env={"PATH": path.removeprefix("PATH=")},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, (dumps / "embed.log").read_text()
        check(dumps)
    log = (dumps / "embed.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:]+Z ", line) for line in log)
    assert "nothing to do" in log[-1]


def test_the_systemd_example_runs(dumps: Path) -> None:
    service, timer = (placed(block, dumps) for block in blocks("ini"))
    line = re.search(r"^ExecStart=(.*)$", service.replace("\\\n", " "), re.MULTILINE)
    assert line
    done = subprocess.run(line[1].replace("%%", "%").split(), cwd=dumps, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check(dumps)
    assert "SuccessExitStatus=3 75" in service
    assert "OnCalendar=" in timer


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(dumps: Path) -> None:
    for name, block in zip(("embed.service", "embed.timer"), blocks("ini"), strict=True):
        (dumps / name).write_text(placed(block, dumps))
    files = [str(dumps / name) for name in ("embed.service", "embed.timer")]
    done = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
