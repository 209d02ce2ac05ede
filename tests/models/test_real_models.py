"""The script that compares the real models runs on the bundled model and on models in a hub cache."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import published
from embedcli.models import resolve
from embedcli.models.registry import find_registered_model
from reference import job, samples

ROOT = Path(__file__).resolve().parents[2]


def compare(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and lines of the script's table."""
    command = [sys.executable, str(ROOT / "scripts" / "real_models.py"), "--offline", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 1), ended.stderr
    return ended.returncode, ended.stdout.splitlines()


def install(alias: str, cache: Path) -> Path:
    entry = find_registered_model(alias)
    assert entry is not None
    folder = published.snapshot(cache, entry.hub_id)
    published.build(alias, folder)
    return folder


def test_the_bundled_model_is_equal() -> None:
    code, lines = compare("all-MiniLM-L6-v2")
    assert code == 0, lines
    assert lines[0].split()[:4] == ["all-MiniLM-L6-v2", "equal", "384", "dimensions;"]


def test_each_kind_has_its_line(tmp_path: Path) -> None:
    kinds = {"gte-small": "equal", "potion-base-8M": "equal", "w2v-light-tencent-chinese": "encoded"}
    # The first is compared with its own code, which the second lacks on this machine.
    kinds |= {"bilingual-embedding-small": "equal", "gte-multilingual-base": "encoded", "LaBSE": "skipped"}
    for alias in kinds:
        install(alias, tmp_path)
    code, lines = compare(*kinds, "--skip", "LaBSE", "--cache-dir", str(tmp_path))
    assert code == 0, lines
    assert {line.split()[0]: line.split()[1] for line in lines[:-1]} == kinds


def test_an_absent_model_fails(tmp_path: Path) -> None:
    code, lines = compare("m3e-small", "--cache-dir", str(tmp_path))
    assert code == 1
    assert lines[0].split()[:2] == ["m3e-small", "failed"]
    assert lines[-1].endswith(": m3e-small")


def test_other_vectors_are_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    real_models = importlib.import_module("real_models")
    folder = install("gte-small", tmp_path)
    monkeypatch.setattr(real_models, "encode_reference", lambda _, texts: np.eye(len(texts), 32, dtype=np.float32))
    files = resolve.load_from_path(folder)
    assert real_models.compare_vectors("gte-small", files, samples()[:3], job(folder)).status == "different"
