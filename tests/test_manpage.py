"""The man page: it lists every command and option, and troff finds nothing wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from embedcli.cli import app
from embedcli.cli.config_file import collect_options

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "embedcli.1"


def test_every_command_and_flag_is_on_it() -> None:
    text = PAGE.read_text("utf-8").replace("\\-", "-")
    sections = dict(re.findall(r"^\.SH \"?(.+?)\"?\n(.*?)(?=^\.SH |\Z)", text, re.MULTILINE | re.DOTALL))
    assert {"NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "FILES", "ENVIRONMENT"} <= set(sections)
    for command, options in collect_options(get_command(app)).items():
        section = sections[f"EMBEDCLI {command.replace('.', ' ').upper()}"]
        assert [flag for flag in options if f"--{flag}" not in section] == []


def test_no_line_is_taken_for_a_request_by_mistake() -> None:
    requests = {line.split()[0] for line in PAGE.read_text("utf-8").splitlines() if line.startswith((".", "'"))}
    assert requests <= {".TH", ".SH", ".PP", ".TP", ".B", ".I", ".BR", ".nf", ".fi"}


@pytest.mark.parametrize("command", [["mandoc", "-T", "lint", "-W", "error"], ["groff", "-man", "-ww", "-z"]], ids=str)
def test_troff_finds_nothing_wrong(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"not installed: {command[0]}")
    done = subprocess.run([*command, PAGE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_wheel_installs_it() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    shared = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {"docs/embedcli.1": "share/man/man1/embedcli.1"}
