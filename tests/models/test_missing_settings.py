"""What is assumed of multi-vector models that lack files, and that people are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import jobs
import multi_vector_models as built
from embedcli.core.job import Job
from embedcli.models.config import read_model_config
from embedcli.models.resolve import resolve_model


def read_notes(folder: Path, name: str) -> list[str]:
    """The notes about a model folder without one of its files."""
    (folder / name).unlink()
    job = Job(inputs=(), output="-", model=str(folder), offline=True)
    return [note for note in read_model_config(resolve_model(job), job).notes if "are assumed" in note]


@pytest.mark.parametrize(
    ("name", "assumed"),
    [
        ("config_sentence_transformers.json", "no markers before queries and documents are assumed"),
        ("sentence_bert_config.json", "no other limit than the network's, and no fill-up, are assumed"),
        ("2_MultiVectorMask/config.json", "vectors of all tokens, punctuation included, are assumed"),
    ],
)
def test_a_missing_file_of_a_saved_encoder(tmp_path: Path, name: str, assumed: str) -> None:
    built.build_multi_vector(tmp_path / "model", tmp_path)
    (note,) = read_notes(tmp_path / "model", name)
    assert assumed in note


def test_missing_files_of_the_older_layouts(tmp_path: Path) -> None:
    built.build_pylate(tmp_path / "pylate")
    (note,) = read_notes(tmp_path / "pylate", "config_sentence_transformers.json")
    assert "no markers before queries and documents, and vectors of all tokens, punctuation included, are" in note
    built.build_original(tmp_path / "original")
    (note,) = read_notes(tmp_path / "original", "artifact.metadata")
    assert "has no artifact.metadata: the markers [unused0] and [unused1], queries of 32 tokens" in note


@pytest.mark.parametrize("name", ["README.md", "1_Dense/unused.txt"])
def test_a_complete_model_has_no_such_note(tmp_path: Path, name: str) -> None:
    built.build_pylate(tmp_path / "pylate")
    built.build_original(tmp_path / "original")
    built.build_multi_vector(tmp_path / "own", tmp_path)
    for folder in ("pylate", "original", "own"):
        file = tmp_path / folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
        assert read_notes(tmp_path / folder, name) == []


def test_commands_and_the_report_say_it(tmp_path: Path) -> None:
    built.build_original(tmp_path / "original")
    (tmp_path / "original" / "artifact.metadata").unlink()
    source = jobs.write_jsonl(tmp_path / "in.jsonl", [{"id": 1, "text": "Some words."}])
    flags = ("-m", tmp_path / "original", "--offline", "--device", "cpu", "--engine", "torch")
    planned = jobs.run("plan", source, *flags)
    ended = jobs.run("encode", source, tmp_path / "out.parquet", *flags, "--report", tmp_path / "report.json")
    notes = json.loads((tmp_path / "report.json").read_text())["notes"]
    for text in (" ".join(planned.err.split()), " ".join(ended.err.split()), " ".join(notes)):
        assert "has no artifact.metadata: the markers [unused0] and [unused1]" in text
