"""The commands and recipes of docs/guides/sparse-models.md run, with small models under the names of the page."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jobs
import sparse_models
from searchable import model_folder

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guides" / "sparse-models.md"
WORDS = ("money", "back", "order", "refund", "ship", "late")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with models in folders that are called as on the page, and rows."""
    monkeypatch.chdir(tmp_path)
    sparse_models.build_splade(tmp_path / "naver" / "splade-v3", tmp_path / "work")
    (tmp_path / "BAAI").mkdir()
    model_folder(tmp_path / "BAAI" / "bge-small-en-v1.5")
    chance = np.random.default_rng(0)
    texts = [" ".join(chance.choice(WORDS, 1 + i % 5)) for i in range(40)]
    jobs.write_jsonl(tmp_path / "texts.jsonl", [{"id": f"r{i}", "text": text} for i, text in enumerate(texts)])
    return tmp_path


def test_the_page_runs(home: Path) -> None:
    for line in "".join(blocks("sh")).splitlines():
        program, *words = shlex.split(line)
        ended = jobs.run(*words)
        assert (program, ended.code) == ("embedcli", 0), ended.err
    names: dict[str, Any] = {}
    for code in blocks("python"):
        exec(compile(code, str(PAGE), "exec"), names)
    first = json.loads((home / "texts.jsonl").read_text("utf-8").splitlines()[0])["text"]
    found = json.loads(jobs.run("search", "sparse.parquet", first, "--json").out)
    assert names["matrix"].shape[0] == 40
    assert np.sort(names["scores"])[::-1][:10] == pytest.approx([hit["score"] for hit in found], abs=1e-3)
    assert [score for _, score in names["ranking"]] == pytest.approx([hit["score"] for hit in found], abs=1e-3)
    by_id = dict(names["ranking"])
    assert len(names["nearest"]) == 10
    assert by_id[names["nearest"][0]] == pytest.approx(found[0]["score"], abs=1e-3)
