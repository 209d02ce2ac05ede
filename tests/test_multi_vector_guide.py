"""The commands and the recipe of docs/guides/multi-vector-models.md run, with small models under the page's names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jobs
import multi_vector_models
from searchable import model_folder

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guides" / "multi-vector-models.md"
WORDS = ("money", "back", "order", "refund", "ship", "late")


def read_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with models in folders that are called as on the page, rows and questions."""
    monkeypatch.chdir(tmp_path)
    multi_vector_models.build_multi_vector(tmp_path / "lightonai" / "GTE-ModernColBERT-v1", tmp_path / "work")
    (tmp_path / "BAAI").mkdir()
    model_folder(tmp_path / "BAAI" / "bge-small-en-v1.5")
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(WORDS, 1 + i % 5)) for i in range(40)]
    jobs.write_jsonl(tmp_path / "passages.jsonl", [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)])
    jobs.write_jsonl(tmp_path / "questions.jsonl", [{"id": "q", "text": "money back"}])
    (tmp_path / "relevance.tsv").write_text("query_id\tdocument_id\trelevance\nq\tr3\t1\n", "utf-8")
    return tmp_path


def test_the_page_runs(home: Path) -> None:
    for line in "".join(read_blocks("sh")).replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line)
        ended = jobs.run(*words)
        assert (program, ended.code) == ("embedcli", 0), ended.err
    model = "lightonai/GTE-ModernColBERT-v1"
    assert jobs.run("encode", "passages.jsonl", "passages.npy", "-m", model).code == 0
    names: dict[str, Any] = {}
    for code in read_blocks("python"):
        exec(compile(code, str(PAGE), "exec"), names)
    assert names["first"].shape == (names["ids"][0]["length"], multi_vector_models.DIM)
