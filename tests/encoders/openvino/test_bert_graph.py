"""The bundled model is compiled without PyTorch, and has PyTorch's tokens and vectors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcli import encoders
from embedcli.encoders.openvino import bert
from embedcli.encoders.tokenize.fast import build_tokens
from reference import job, load, samples, varied

LENGTHS = (1, 2, 9, 64, 129, 300, 512)
# As in an environment without these packages: their imports fail, and they have no version.
ENCODE_WITHOUT = """
import importlib.metadata, sys
missing = {"torch", "transformers", "sentence_transformers", "scipy"}
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
def find_installed(name, path=None, target=None):
    return None if name.partition(".")[0] in missing else find_spec(name, path, target)
PathFinder.find_spec = find_installed
version = importlib.metadata.version
def installed(name):
    if name.replace("-", "_") in missing:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = installed
from embedcli.cli import main
main()
"""


def load_fresh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bundled model, compiled now."""
    monkeypatch.setenv("EMBEDCLI_CACHE", str(folder))
    return encoders.load_encoder(job(device="cpu", engine="openvino", normalize=False))


def run_without_torch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    rows = folder / "rows.jsonl"
    rows.write_text('{"id": 1, "text": "one"}\n{"id": 2, "text": "two"}\n')
    return subprocess.run(
        [sys.executable, "-c", ENCODE_WITHOUT, "encode", str(rows), str(folder / "out.parquet"), *arguments],
        env={**os.environ, "EMBEDCLI_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_graph_has_the_vectors_of_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = load_fresh(tmp_path, monkeypatch), load(normalize=False)
    random = np.random.default_rng(1)
    tokens = build_tokens([random.integers(1000, 30000, n).tolist() for n in LENGTHS], np.array(LENGTHS, np.int32))
    expected = theirs.encode_float32(tokens, np.arange(len(LENGTHS)))
    for vectors in (
        ours.encode_float32(tokens, np.arange(len(LENGTHS))),
        ours.collect(ours.forward(tokens, np.arange(len(LENGTHS)))),
    ):
        scale = np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors / scale, expected / scale, rtol=0, atol=1e-6)


def test_the_tokens_are_those_of_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = load_fresh(tmp_path, monkeypatch), load()
    texts = [*varied(), *samples(), "[CLS] [MASK] [PAD]", ""]
    np.testing.assert_array_equal(ours.tokenize(texts).ids, theirs.tokenize(texts).ids)


def test_a_graph_with_other_vectors_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at the first start is not left out."""
    monkeypatch.setattr(bert.BertModel, "_encode_rows", lambda self, rows: np.ones((len(rows), 384), np.float32))
    with pytest.raises(Exception, match="its vectors differ"):
        load_fresh(tmp_path, monkeypatch)
