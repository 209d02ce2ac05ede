"""Adapters are merged into the weights, and give the vectors of sentence-transformers with the adapter unmerged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from adapters import add_tokenizer, build_adapter_pipeline, build_raw_adapter
from embedcli.core.errors import ModelError
from embedcli.encoders.torch import adapters as torch_adapters
from reference import encode, load, lowest_cosine, samples

SAME = 0.999999
MINILM, QWEN = "all-MiniLM-L6-v2-shape", "Qwen3-Embedding-0.6B"
BUILDERS: dict[str, Callable[[Path], None]] = {
    "pipeline": partial(build_adapter_pipeline, name=MINILM),
    "pipeline-causal": partial(build_adapter_pipeline, name=QWEN),
    "raw": partial(build_raw_adapter, name=MINILM, tokenizer=True),
    "raw-causal": partial(build_raw_adapter, name=QWEN, tokenizer=True),
    "task-type": partial(build_raw_adapter, name=MINILM, tokenizer=True, task_type="FEATURE_EXTRACTION"),
    "rslora": partial(build_raw_adapter, name=MINILM, tokenizer=True, use_rslora=True, target_modules="all-linear"),
    "embeddings": partial(build_raw_adapter, name=MINILM, tokenizer=True, target_modules=["word_embeddings", "key"]),
    "modules-to-save": partial(build_adapter_pipeline, name=MINILM, modules_to_save=["LayerNorm"]),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    home = tmp_path_factory.mktemp("adapters")

    def build(name: str) -> Path:
        if not (home / name).exists():
            BUILDERS[name](home / name)
        return home / name

    return build


def reference_vectors(folder: Path) -> Any:
    """By sentence-transformers, which keeps the adapter beside the weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from sentence_transformers import SentenceTransformer

    pipeline = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert any(isinstance(module, BaseTunerLayer) for module in pipeline.modules())
    return np.array([pipeline.encode(text) for text in samples()[:12]])


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("name", BUILDERS)
def test_an_adapter_gives_the_vectors_of_sentence_transformers(
    name: str, engine: str, built: Callable[[str], Path]
) -> None:
    folder = built(name)
    encoder = load(folder, engine=engine)
    vectors = encode(encoder, samples()[:12])
    assert lowest_cosine(vectors, reference_vectors(folder)) >= SAME
    base = QWEN if "causal" in name else MINILM
    assert lowest_cosine(vectors, encode(load(models.folder(base)), samples()[:12])) < 0.99


def test_no_layer_of_an_adapter_is_left(built: Callable[[str], Path]) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name in ("pipeline", "modules-to-save"):
        network = load(built(name)).model
        assert not any(isinstance(module, BaseTunerLayer) for module in network.modules())
        assert {type(module).__module__.partition(".")[0] for module in network.modules()}.isdisjoint({"peft"})


def test_a_raw_adapter_without_a_tokenizer_uses_that_of_its_base(tmp_path: Path, built: Callable[[str], Path]) -> None:
    bare = shutil.copytree(built("raw"), tmp_path / "bare")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (bare / file).unlink()
    encoder = load(bare)
    assert encoder.config.max_seq_length == load(built("raw")).config.max_seq_length == 512
    assert lowest_cosine(encode(encoder, samples()[:12]), reference_vectors(built("raw"))) >= SAME


def test_a_base_named_by_a_relative_path_is_found_beside_the_adapter(tmp_path: Path) -> None:
    shutil.copytree(models.folder(MINILM), tmp_path / "base")
    build_adapter_pipeline(tmp_path / "adapter", MINILM, tmp_path / "base")
    reference = reference_vectors(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    models.write(path, json.loads(path.read_text()) | {"base_model_name_or_path": "../base"})
    assert lowest_cosine(encode(load(tmp_path / "adapter"), samples()[:12]), reference) >= SAME


def test_an_adapter_in_the_folder_of_its_base_is_applied(tmp_path: Path, built: Callable[[str], Path]) -> None:
    folder = shutil.copytree(built("raw"), tmp_path / "both")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(models.folder(MINILM) / name, folder / name)
    path = folder / "adapter_config.json"
    models.write(path, json.loads(path.read_text()) | {"base_model_name_or_path": "nowhere/model"})
    assert lowest_cosine(encode(load(folder), samples()[:12]), reference_vectors(built("raw"))) >= SAME


def test_half_precision_is_close(built: Callable[[str], Path]) -> None:
    encoder = load(built("pipeline"), dtype="bfloat16")
    assert lowest_cosine(encode(encoder, samples()[:12]), reference_vectors(built("pipeline"))) >= 0.999


def test_without_peft_the_package_is_named(built: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_adapters, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package peft") as caught:
        load(built("pipeline"))
    assert caught.value.hint == "run pip install 'embedcli[adapters]'"


def test_an_adapter_that_transformers_reads_only_in_part_is_refused(tmp_path: Path) -> None:
    """Of DoRA adapters as peft saves them, it leaves out the magnitudes."""
    build_raw_adapter(tmp_path / "dora", MINILM, tokenizer=True, use_dora=True)
    with pytest.raises(ModelError, match=r"lacks weights that its network needs: .*lora_magnitude_vector"):
        load(tmp_path / "dora")


LOAD_WITHOUT_NETWORK = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("a connection was tried")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import embedcli
embedcli.encode_file(sys.argv[1], sys.argv[2], model=sys.argv[3], offline=True, device="cpu", engine="torch",
    cache_dir=sys.argv[4])
"""


def test_offline_an_adapter_of_a_cached_base_opens_no_connection(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--bert-base-uncased" / "snapshots" / ("a" * 40)
    shutil.copytree(models.folder(MINILM), snapshot)
    models.write(tmp_path / "hub" / "models--bert-base-uncased" / "refs" / "main", "a" * 40)
    build_raw_adapter(tmp_path / "adapter", MINILM, snapshot)
    add_tokenizer(tmp_path / "adapter", snapshot)
    path = tmp_path / "adapter" / "adapter_config.json"
    models.write(path, json.loads(path.read_text()) | {"base_model_name_or_path": "bert-base-uncased"})
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(samples()[:3])))
    arguments = [str(rows), str(tmp_path / "out.parquet"), str(tmp_path / "adapter"), str(tmp_path / "hub")]
    command = [sys.executable, "-c", LOAD_WITHOUT_NETWORK, *arguments]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
