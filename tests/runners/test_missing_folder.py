"""An output in a folder that does not exist: said before the input is read, with the path as typed."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_it_is_said_before_the_input_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = jobs.run("encode", "absent.jsonl", f"my data/{name}")
    assert done.code == 1
    assert done.err == f"error: my data/{name}: there is no folder my data\nhint: make it: mkdir -p 'my data'\n"


def test_a_folder_output_is_made_with_its_parents(tmp_path: Path) -> None:
    jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3))
    model = jobs.word_model(tmp_path)
    done = jobs.run("encode", tmp_path / "in.jsonl", f"{tmp_path}/a/b/", "--model", model)
    assert done.code == 0, done.err
