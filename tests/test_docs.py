"""The documentation agrees with the program and with itself: generated parts, links, commands, examples, keys."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.main import get_command

import embedcli
import jobs
from embedcli.cli import app

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
PACKAGE = ROOT / "src" / "embedcli"
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md"), ROOT / "sample_data" / "README.md"])
LINE_WIDTH = 119
README_BYTES = 10_000
README_LINES = 150


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_page = pytest.mark.parametrize("page", PAGES, ids=page_name)


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    """scripts/docs.py, which `make docs` runs."""
    spec = importlib.util.spec_from_file_location("docs", ROOT / "scripts" / "docs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fences(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


# Generated parts


def test_generated_parts_are_up_to_date(docs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    assert docs.main() == 0, "run `make docs`"


def test_a_stale_block_is_noticed(docs: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("before\n<!-- packages -->\nold\n<!-- end -->\nafter\n", "utf-8")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    filled = docs.fill(Path("page.md"), {"packages": "new"})
    assert filled == "before\n<!-- packages -->\nnew\n<!-- end -->\nafter\n"
    with pytest.raises(SystemExit, match="no marker for layers"):
        docs.fill(Path("page.md"), {"packages": "new", "layers": "new"})
    with pytest.raises(SystemExit, match="no block for the marker packages"):
        docs.fill(Path("page.md"), {})


def test_every_command_says_what_it_does(docs: ModuleType) -> None:
    for command in docs.commands():
        assert re.match(rf"Usage: embedcli {command} .+?\n\n  \w", docs.help_text(command), re.DOTALL), command


def test_every_command_is_in_the_reference(docs: ModuleType) -> None:
    headings = re.findall(r"^## embedcli (.+)$", (DOCS / "reference" / "cli.md").read_text("utf-8"), re.MULTILINE)
    assert headings == docs.commands()


def test_the_help_shown_is_what_the_program_prints(docs: ModuleType) -> None:
    program = Path(sys.executable).with_name("embedcli")
    env = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run([program, "encode", "--help"], env=env, capture_output=True, text=True, check=True)
    assert docs.help_text("encode") == "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def test_changelog_begins_with_unreleased_then_the_version() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = headings[1:]
    assert not released or released[0] == embedcli.__version__
    assert released == sorted(released, key=lambda version: [int(part) for part in version.split(".")], reverse=True)


# Form


@each_page
def test_lines_wrap(page: Path) -> None:
    """A crontab entry is one line by definition; everything else can be wrapped."""
    text = re.sub(r"^```crontab\n.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > LINE_WIDTH] == []


def test_the_readme_is_short() -> None:
    text = README.read_text("utf-8")
    assert len(text.encode()) <= README_BYTES
    assert len(text.splitlines()) <= README_LINES
    assert "Usage: embedcli" not in text, "help texts belong into docs/reference/cli.md"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_fences(page.read_text("utf-8"))):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page_name(page)} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page_name(page)} links to {link}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_fences(page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_linked_from_another() -> None:
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", without_fences(page.read_text("utf-8")))
    }
    assert [page_name(page) for page in DOCS.glob("**/*.md") if page.resolve() not in linked] == []


# What the pages say about the program


def options_by_command() -> dict[str, set[str]]:
    """The options of every command by its name; "" is the program itself."""
    found: dict[str, set[str]] = {}

    def add(command: Any, name: str) -> None:
        options = [option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]]
        found[name] = {"--help", "-h", *(option for option in options if option.startswith("-"))}
        for child, inner in getattr(command, "commands", {}).items():
            add(inner, f"{name} {child}".strip())

    add(get_command(app), "")
    return found


def shown_commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `embedcli ...` in the fenced blocks and code spans of a page, up to a pipe or the like."""
    blocks = [content for language, content in fences(text) if language not in ("text", "python", "toml")]
    spans = re.findall(r"`([^`\n]+)`", without_fences(text))
    for code in [*blocks, *spans]:
        for line in code.replace("\\\n", " ").splitlines():
            for found in re.finditer(r"(?:^|[\s/])embedcli (.*?)(?=\s(?:\||&&|&|;|#|2>>|>)(?:\s|$)|$)", line):
                yield shlex.split(found[1])


@each_page
def test_commands_and_options_exist(page: Path) -> None:
    known = options_by_command()
    for words in shown_commands(page.read_text("utf-8")):
        command = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        command = "" if command.startswith("-") else command
        assert command in known, f"embedcli {command}"
        options = {word.partition("=")[0] for word in words if re.match(r"-{1,2}[a-z]", word)}
        assert options <= known[command], f"embedcli {shlex.join(words)}"


# Options of other programs.
FOREIGN = {"--export-application", "--exclusive"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=page_name)
def test_options_named_alone_exist(page: Path) -> None:
    """The changelog also names options that were removed."""
    known = set().union(*options_by_command().values()) | FOREIGN
    named = re.findall(r"`(--[a-z-]+)[^`\n]*`", without_fences(page.read_text("utf-8")))
    assert set(named) - known == set()


def test_commands_are_found_in_pages() -> None:
    page = "Type `embedcli --help`.\n\n```sh\nembedcli encode a \\\n    b --to npy | jq . # --x\n```\n"
    assert list(shown_commands(page)) == [["encode", "a", "b", "--to", "npy"], ["--help"]]


def test_the_example_prints_what_the_readme_shows(docs: ModuleType) -> None:
    found = docs.EXAMPLE.search(README.read_text("utf-8"))
    assert docs.masked(docs.example_output(found[1])) == docs.masked(found[1]), "run `python scripts/docs.py --example`"


def test_only_measurements_of_an_example_are_masked(docs: ModuleType) -> None:
    assert docs.masked("205 in, 3.1 s in all, 1,024 MB, 53 rows/s") == "205 in, N s in all, N MB, N rows/s"


def test_the_python_examples_print_what_the_guide_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs.write_jsonl(tmp_path / "rows.jsonl", [{"id": i, "title": "a", "text": f"text {i}"} for i in range(3)])
    blocks = fences((DOCS / "guides" / "python-api.md").read_text("utf-8"))
    names: dict[str, Any] = {}
    printed = ""
    shown = 0
    for language, content in blocks:
        if language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(content, names)
            printed = out.getvalue()
        else:
            assert printed == content
            shown += 1
    assert shown == 4


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished job: words.txt, in.jsonl, out.parquet, run.json."""
    folder = tmp_path_factory.mktemp("job")
    model = jobs.word_model(folder)
    rows = jobs.write_jsonl(folder / "in.jsonl", jobs.rows(20))
    options = ("--precision", "int8", "--overflow", "split", "--report", folder / "run.json")
    done = jobs.run("encode", rows, folder / "out.parquet", "-m", model, *options)
    assert done.code == 0, done.err
    return folder


def documented(page: str) -> set[str]:
    """The names in the first cells of a page's tables."""
    cells = re.findall(r"^\| (`.*?) \|", (DOCS / "reference" / page).read_text("utf-8"), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_key_of_the_run_report_is_documented(job: Path) -> None:
    assert set(json.loads((job / "run.json").read_text("utf-8"))) - documented("run-report.md") == set()


def test_every_column_and_metadata_key_is_documented(job: Path) -> None:
    schema = pq.read_schema(job / "out.parquet")
    names = {*schema.names, *json.loads(schema.metadata[b"embedcli"])}
    assert "window" in names
    assert "ranges" in names
    assert names - documented("outputs.md") == set()


def test_every_variable_of_the_environment_is_documented() -> None:
    page = (DOCS / "reference" / "settings.md").read_text("utf-8")
    read = r"environ(?:\.get|\.setdefault|\.pop)?[(\[]\s*\"([A-Z][A-Z0-9_]+)\"|\"(EMBEDCLI_[A-Z_]+)\""
    found = {
        name
        for path in PACKAGE.rglob("*.py")
        for pair in re.findall(read, path.read_text("utf-8"))
        for name in pair
        if name
    }
    assert "EMBEDCLI_CACHE" in found
    assert {name for name in found if f"`{name}" not in page} == set()


@each_page
def test_tests_that_are_named_exist(page: Path) -> None:
    """`tests/folder/test_name.py` and `test_name.py` are files, `test_name` is a function."""
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    sources = "\n".join((ROOT / file).read_text("utf-8") for file in files)
    names = files | {Path(file).name for file in files} | set(re.findall(r"def (test_\w+)", sources))
    named = re.findall(r"`((?:tests/[\w/]*)?test_[\w.]+)`", page.read_text("utf-8"))
    assert set(named) - names == set()


def test_modules_that_the_architecture_page_names_exist() -> None:
    named = re.findall(r"`((?:[a-z_]+/)+(?:[\w]+\.py)?)`", (DOCS / "architecture.md").read_text("utf-8"))
    named = [name for name in named if name.split("/")[0] not in ("src", "docs", "benchmarks", "tests")]
    assert len(named) > 20
    assert [name for name in named if not (PACKAGE / name).exists()] == []
