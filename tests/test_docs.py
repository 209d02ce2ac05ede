"""The documents say what the program does: generated parts are fresh, every command is shown, versions agree."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import embedcli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    """scripts/docs.py, which `make docs` runs."""
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "docs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_up_to_date(docs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    assert docs.main() == 0, "run `make docs`"


def test_a_stale_block_is_noticed(docs: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("before\n<!-- modules -->\nold\n<!-- end -->\nafter\n", "utf-8")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    filled = docs.fill(Path("page.md"), {"modules": "new"})
    assert filled == "before\n<!-- modules -->\nnew\n<!-- end -->\nafter\n"
    with pytest.raises(SystemExit, match="no block for layers"):
        docs.fill(Path("page.md"), {"modules": "new", "layers": "new"})


def test_every_command_says_what_it_does(docs: ModuleType) -> None:
    for command in docs.commands():
        assert re.match(rf"Usage: embedcli {command} .+?\n\n  \w", docs.help_text(command), re.DOTALL), command


def test_the_help_shown_is_what_the_program_prints(docs: ModuleType) -> None:
    program = Path(sys.executable).with_name("embedcli")
    env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run([program, "encode", "--help"], env=env, capture_output=True, text=True, check=True)
    assert docs.help_text("encode") == "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def test_changelog_begins_with_unreleased_then_the_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = headings[1:]
    assert not released or released[0] == embedcli.__version__
    assert released == sorted(released, key=lambda version: [int(part) for part in version.split(".")], reverse=True)


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "sample_data" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
