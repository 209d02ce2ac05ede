"""What Windows lacks is not needed: no module of POSIX at start, and jobs run where its functions are missing."""

from __future__ import annotations

import ast
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import embedcli
import jobs

SOURCES = sorted(Path(embedcli.__file__).parent.rglob("*.py"))
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
WITHOUT_POSIX = {"PYTHONPATH": str(Path(__file__).parent / "support" / "lacking"), "TESTS_LACK": "posix"}


def imported_at_start(source: str) -> set[str]:
    """The modules that are imported outside functions."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                waiting.append(node)
    return found


def test_no_module_of_posix_is_imported_at_start() -> None:
    assert imported_at_start("import os\nif x:\n    import fcntl\ndef f():\n    import pwd") == {"os", "fcntl"}
    found = {path.name: imported_at_start(path.read_text("utf-8")) & POSIX_MODULES for path in SOURCES}
    assert {name: modules for name, modules in found.items() if modules} == {}


@pytest.mark.parametrize("options", [(), ("--workers", "2"), ("--to", "npy")], ids=["alone", "workers", "npy"])
def test_a_job_without_the_functions_of_posix(tmp_path: Path, options: tuple[str, ...]) -> None:
    jobs.word_model(tmp_path)
    rows = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(40))
    output = tmp_path / ("out.npy" if "npy" in options else "out.parquet")
    encode = ("encode", rows, output, "-m", tmp_path / "words.txt", *options)
    for again in ((), ("--overwrite",)):
        done = jobs.run_apart(*encode, *again, stdin=None, **WITHOUT_POSIX)
        assert done.code == 0, done.err
    ids = output.with_suffix(".ids.parquet") if "npy" in options else output
    assert pq.read_table(ids).num_rows == 40
