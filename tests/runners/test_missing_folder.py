"""An output in a folder that does not exist: said before the input is read, with the path as typed."""

from __future__ import annotations

import os
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


def test_the_folder_of_a_report_is_checked_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3))
    (tmp_path / "folder").mkdir()
    command = ("encode", "in.jsonl", "out.parquet", "--model", jobs.word_model(tmp_path))
    done = jobs.run(*command, "--report", "my data/run.json")
    assert done.code == 1
    assert done.err == ("error: my data/run.json: there is no folder my data\nhint: make it: mkdir -p 'my data'\n")
    assert "this is a folder" in jobs.run(*command, "--report", "folder").err
    assert not (tmp_path / "out.parquet").exists()
    assert jobs.run(*command, "--report", "folder/run.json").code == 0


@pytest.mark.parametrize("more", [("data/out.parquet",), ("out.parquet", "--report", "data/run.json")])
def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    # Permissions do not bind the superuser, who may run the tests.
    monkeypatch.setattr(os, "access", lambda path, mode: path != "data")
    done = jobs.run("encode", "absent.jsonl", *more)
    assert done.code == 1
    assert done.err == (f"error: {more[-1]}: no permission to write to the folder data\nhint: choose another folder\n")
