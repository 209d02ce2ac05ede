"""The recipe of docs/guides/databases.md for databases without a target."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sample_outputs import make_output, unit_vectors

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guides" / "databases.md"


def test_the_lines_for_other_databases_have_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vectors = unit_vectors(5, 16)
    make_output(Path("out.parquet"), vectors, ids=list("abcde"), kept={"text": ["one", "two", None, "", "five"]})
    (code,) = re.findall(r"^```python\n(import json\n.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    lines = [json.loads(line) for line in Path("bulk.jsonl").read_text("utf-8").splitlines()]
    assert [line["index"]["_id"] for line in lines[::2]] == list("abcde")
    assert [line["text"] for line in lines[1::2]] == ["one", "two", None, "", "five"]
    assert np.array_equal(np.array([line["embedding"] for line in lines[1::2]], np.float32), vectors)
