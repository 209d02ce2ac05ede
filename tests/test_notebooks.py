"""The notebooks run from top to bottom, and are stored without outputs."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").exists())
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def code_cells(path: Path) -> list[str]:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cells(cells: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """Run cells as a kernel does: the value of a cell is that of its last expression."""
    names: dict[str, Any] = {}
    shown: list[Any] = []
    for number, cell in enumerate(cells, 1):
        tree = ast.parse(cell, f"cell {number}")
        last = tree.body[-1]
        if isinstance(last, ast.Expr):
            tree.body[-1] = ast.copy_location(ast.Assign([ast.Name("_", ast.Store())], last.value), last)
        exec(compile(ast.fix_missing_locations(tree), f"cell {number}", "exec"), names)
        shown.append(repr(names.get("_")))
    return shown, names


@each_notebook
def test_no_output_is_stored(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
    for cell in json.loads(text)["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["python-api.ipynb"]


def test_the_notebook_of_the_python_api_runs() -> None:
    pytest.importorskip("pandas")
    shown, names = run_cells(code_cells(ROOT / "docs" / "notebooks" / "python-api.ipynb"))
    try:
        assert names["best"] == "Knead the dough for ten minutes and let it rise."
        assert list(names["embedded"].columns) == ["id", "text", "embedding"]
        assert "data['text']" in names["refusal"]
        assert (names["result"].rows, names["result"].rejects) == (3, 1)
        assert "((3, 128), (3, 48), dtype('uint8'))" in shown
        assert any("empty" in value for value in shown)
    finally:
        shutil.rmtree(names["folder"])
