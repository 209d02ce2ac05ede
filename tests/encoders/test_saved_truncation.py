"""A `truncate_dim` in a model's files: the vectors of sentence-transformers, and the truth about their length."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedcli
import models
from embedcli.analysis.verify import verify_against_input
from embedcli.core.types import InferenceEngine
from embedcli.outputs.dataset import open_dataset
from reference import samples


def save_model(folder: Path, name: str) -> Path:
    shutil.copytree(models.folder(name), folder)
    path = folder / "config_sentence_transformers.json"
    models.write(path, json.loads(path.read_text()) | {"truncate_dim": 8})
    return folder


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("flag", [None, True, False])
@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2-shape", "m3e-base"])
def test_vectors_and_metadata_are_those_of_sentence_transformers(
    name: str, flag: bool | None, engine: InferenceEngine, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = save_model(tmp_path / "model", name)
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.parquet"
    rows.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(samples()[:8])))
    options: dict[str, Any] = {"model": str(folder), "device": "cpu", "engine": engine, "normalize": flag}
    embedcli.encode_file(rows, out, **options)
    finished = open_dataset(str(out))
    vectors = np.concatenate([block.vectors for block in finished.read_blocks()])
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    if flag is False and name == "all-MiniLM-L6-v2-shape":
        del reference[-1]
    expected = np.array([reference.encode(text, normalize_embeddings=bool(flag)) for text in samples()[:8]])
    assert np.abs(vectors - expected).max() <= 1e-5 * np.abs(expected).max()
    assert finished.vector_space["truncate_dim"] == 8
    has_length_1 = bool((np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-5).all())
    assert finished.vector_space["normalize"] == has_length_1 == bool(flag)
    assert all(check.passed for check in verify_against_input(finished, (), None, device="cpu", engine=engine))
    with embedcli.load(str(folder), device="cpu", engine=engine, normalize=flag) as model:
        assert np.abs(model.encode(samples()[:8]) - expected).max() <= 1e-5 * np.abs(expected).max()
