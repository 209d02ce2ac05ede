"""The rooms of the house: who may import what, how large things grow, and what a start costs."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "embedcli"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# The packages that may import a heavy library, and only inside functions.
OWNERS = {
    "torch": ("encoders/torch/",),
    "transformers": ("encoders/torch/",),
    "sentence_transformers": ("encoders/torch/",),
    "openvino": ("encoders/openvino/",),
    "jieba": ("encoders/static/",),
    "truststore": ("encoders/hosted/",),
    "urllib3": ("encoders/hosted/",),
    "fsspec": ("storage/",),
    "ray": ("runners/",),
    "matplotlib": ("analysis/",),
}
# Run by path, each in a process of its own, and imported by nobody: the other side of a comparison.
PROGRAMS = PACKAGE / "benchmark" / "programs"
# Allowed anywhere, but not at start: `embedcli --help` needs none of them.
LATE = {"numpy", "pyarrow", "tokenizers", "huggingface_hub", "safetensors"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_FUNCTION_LINES = 13


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """(top-level package, is it inside a function?) of each import that runs; type checking runs none."""
    if is_type_checking(node):
        return
    if isinstance(node, ast.Import):
        yield from ((alias.name.partition(".")[0], inside) for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module:
        yield node.module.partition(".")[0], inside
    inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from imports(child, inside)


@pytest.mark.parametrize("path", [path for path in SOURCES if PROGRAMS not in path.parents], ids=name_of)
def test_heavy_libraries_stay_with_their_owner(path: Path) -> None:
    for library, inside in imports(parsed(path)):
        if library in OWNERS:
            assert name_of(path).startswith(OWNERS[library]), f"only {OWNERS[library]} may import {library}"
            assert inside, f"{library} is imported inside functions only"


def test_nobody_imports_the_programs() -> None:
    assert [name_of(path) for path in SOURCES if re.search(r"import.*\bprograms\b", path.read_text("utf-8"))] == []
    assert not (PROGRAMS / "__init__.py").exists()


def test_the_import_scanner_sees_what_it_should() -> None:
    code = """
import torch.nn
if TYPE_CHECKING:
    import ray
def f():
    from openvino import Core
"""
    assert list(imports(ast.parse(code))) == [("torch", False), ("openvino", True)]


def test_help_starts_without_heavy_libraries() -> None:
    code = """
import sys
sys.argv = ["embedcli", "--help"]
from embedcli.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "encode" in done.stdout
    assert "embedcli" in loaded
    assert not loaded & (set(OWNERS) | LATE)


def test_files_and_functions_stay_small() -> None:
    files = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in files.items() if lines > MAX_FILE_LINES} == {}
    functions = {f"{name_of(path)}:{name}": lines for path in SOURCES for name, lines in function_lengths(path)}
    assert {name: lines for name, lines in functions.items() if lines > MAX_FUNCTION_LINES} == {}
    assert median(functions.values()) < MAX_MEDIAN_FUNCTION_LINES


def function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            first = node.body[0]
            docstring = first if ast.get_docstring(node, clean=False) is not None else None
            documented = docstring.end_lineno - docstring.lineno + 1 if docstring and docstring.end_lineno else 0
            yield f"{node.lineno} {node.name}", node.end_lineno - node.lineno + 1 - documented


def test_what_is_imported_is_declared() -> None:
    """A library that only the development environment brings would break the installed program."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in ("dev", "test")}
    declared = {normal(line) for line in [*project["dependencies"], *chain(*extras.values())]}
    homes = importlib.metadata.packages_distributions()
    used = {library for path in SOURCES for library, _ in imports(parsed(path))}
    foreign = used - set(sys.stdlib_module_names) - {"embedcli"}
    missing = {library for library in foreign if not {normal(home) for home in homes.get(library, [])} & declared}
    assert missing == set()


def normal(requirement: str) -> str:
    """The canonical name of a distribution in a requirement line."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_constraints_pin_every_declared_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    pins = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert {normal(line) for line in lines} - {normal(pin) for pin in pins} == {"embedcli"}


# Code that has to read the text of errors, since the library behind it raises one type for everything.
READS_FOREIGN_TEXT = {
    "encoders/errors.py": "OpenVINO and PyTorch raise RuntimeError where memory is short",
    "encoders/torch/errors.py": "PyTorch raises RuntimeError for a device that has failed",
}
TEXT_METHODS = {"replace", "startswith", "endswith", "find", "index", "partition", "rpartition"}
TEXT_METHODS |= {"removeprefix", "removesuffix"}


def error_names(tree: ast.Module) -> set[str]:
    """Return the names of exceptions: those of except clauses, and parameters annotated as errors."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation and re.search("Error|Exception", ast.unparse(node.annotation)):
            names.add(node.arg)
    return names


def has_message_text(node: ast.AST, errors: set[str]) -> bool:
    """Return whether an expression reads `.message`, or `str(error)` of an exception."""
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and part.attr == "message":
            return True
        if isinstance(part, ast.Call) and ast.unparse(part.func) == "str":
            arguments = {value.id for value in part.args if isinstance(value, ast.Name)}
            if arguments & errors:
                return True
    return False


def message_decisions(tree: ast.Module) -> Iterator[int]:
    """Yield the lines that compare, search or edit the message of an error."""
    errors = error_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare | ast.Call):
            continue
        texts: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            texts = [node.left, *node.comparators]
        elif isinstance(node.func, ast.Attribute):
            if node.func.attr in TEXT_METHODS:
                texts = [node.func.value]
            elif ast.unparse(node.func.value) == "re":
                texts = node.args
        if any(has_message_text(text, errors) for text in texts):
            yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_code_is_steered_by_the_text_of_a_message(path: Path) -> None:
    found = list(message_decisions(parsed(path)))
    if name_of(path) in READS_FOREIGN_TEXT:
        assert found, "the exception is not needed any more"
    else:
        assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "if 'busy' in error.message: pass",
        "if error.message == 'busy': pass",
        "if 'busy' in str(error).lower(): pass",
        "message = error.message.replace('--keep', '--columns')",
        "if str(error).startswith('busy'): pass",
        "if re.search('busy', str(error)): pass",
    ],
)
def test_a_decision_by_text_would_be_found(line: str) -> None:
    assert list(message_decisions(ast.parse(f"try: ...\nexcept OSError as error:\n    {line}"))) == [3]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_job_of_a_run_never_changes(path: Path) -> None:
    """Only `self.job` of a constructor is assigned: a changed job is a new one, passed on explicitly."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr == "job":
            assert ast.unparse(node.value) == "self", node.lineno
