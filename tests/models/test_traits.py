"""Measured traits are kept for the same model, settings and libraries; a damaged file counts as absent."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import models
from embedcli import encoders
from embedcli.core.errors import UsageError
from embedcli.models import resolve, traits
from embedcli.models.config import ModelConfig, read_model_config
from embedcli.models.files import ModelFiles
from embedcli.models.traits import ModelTraits, read_traits, write_traits
from reference import job

MODEL = "all-MiniLM-L6-v2-shape"
MEASURED = ModelTraits(510, 514, needs_equal_lengths=True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model() -> tuple[ModelFiles, ModelConfig]:
    files = resolve.resolve_model(job(models.folder(MODEL)))
    return files, read_model_config(files, job(models.folder(MODEL)))


def test_what_is_written_is_read_back_for_the_same_model_and_settings(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, config = model()
    assert read_traits(files, config, "float32") is None
    write_traits(files, config, "float32", MEASURED)
    assert read_traits(files, config, "float32") == MEASURED
    assert [path.name[0] for path in (home / "traits").iterdir()] != ["."], "no draft is left"
    others: list[Any] = [
        (replace(files, fingerprint="0" * 64), config, "float32"),
        (files, config, "half"),
        (files, replace(config, pooling="cls"), "float32"),
        (files, replace(config, pools_prompt=False, prompt="query: "), "float32"),
        (files, replace(config, task="query"), "float32"),
    ]
    assert [read_traits(*other) for other in others] == [None] * len(others)
    # A prompt that is pooled like the text changes nothing.
    assert read_traits(files, replace(config, prompt="query: "), "float32") == MEASURED
    monkeypatch.setattr(traits, "installed_version", lambda package: "0.1")
    assert read_traits(files, config, "float32") is None


@pytest.mark.parametrize("damage", [lambda text: text.replace("510", "514"), lambda text: text[:-5], lambda text: ""])
def test_a_damaged_file_counts_as_absent(home: Path, damage: Any) -> None:
    files, config = model()
    write_traits(files, config, "float32", MEASURED)
    (path,) = (home / "traits").iterdir()
    path.write_text(damage(path.read_text("utf-8")), "utf-8")
    assert read_traits(files, config, "float32") is None


def test_a_cache_that_cannot_be_written_is_no_error(home: Path) -> None:
    home.write_text("a file")
    files, config = model()
    write_traits(files, config, "float32", MEASURED)
    assert read_traits(files, config, "float32") is None


def test_many_writers_leave_one_whole_file(home: Path) -> None:
    files, config = model()

    def write_often() -> None:
        for _ in range(20):
            write_traits(files, config, "float32", MEASURED)

    threads = [threading.Thread(target=write_often) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_traits(files, config, "float32") == MEASURED
    assert len(list((home / "traits").iterdir())) == 1


def test_a_model_is_measured_once_and_its_identity_stays_the_same(home: Path) -> None:
    """The first start loads the model, later ones import no torch; both give the same identity."""
    code = """
import json, sys
from embedcli import encoders
from embedcli.core.job import Job
identity = encoders.encoder_identity(Job(inputs=("a",), output="b", model=sys.argv[1], device="cpu"))
print(json.dumps([identity, "torch" in sys.modules]))
"""
    starts = [
        json.loads(subprocess.run([sys.executable, "-c", code, folder], capture_output=True, check=True).stdout)
        for folder in [str(models.folder("xlm-roberta-raw"))] * 2
    ]
    assert [imported for _, imported in starts] == [True, False]
    assert starts[0][0] == starts[1][0]
    assert starts[0][0]["max_seq_length"] == 512


def test_a_limit_above_the_usable_positions_is_refused_with_the_true_number(home: Path) -> None:
    limited = job(models.folder("xlm-roberta-raw"), max_seq_length=513)
    with pytest.raises(UsageError, match="513 is more than the 512 tokens"):
        encoders.encoder_identity(limited)
