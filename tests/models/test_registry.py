"""Every alias in the table of known models loads in its published layout, from a hub cache, without a network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pyarrow.parquet as pq
import pytest

import models
import own_code
import published
from embedcli.core.errors import UsageError
from embedcli.encoders.torch.device import cpu_supports
from embedcli.models.registry import MODEL_REGISTRY, find_registered_model
from jobs import run, write_jsonl
from reference import encode as batched
from reference import load, lowest_cosine, samples

# The last one is longer than most models read.
TEXTS = [samples()[0], samples()[40], "a", " ".join(samples())[:4000]]
STATIC = (*published.MODEL2VEC, *published.STATIC_EMBEDDINGS)
NETWORKS = (*published.TRANSFORMERS, *published.WHOLE, *published.VARIANTS)
# Compiled as well: the models that Chinese and multilingual users ask for most.
COMPILED = (
    "m3e-base",
    "text2vec-base-chinese",
    "text2vec-base-chinese-sentence",
    "text2vec-base-chinese-paraphrase",
    "text2vec-large-chinese",
    "paraphrase-multilingual-MiniLM-L12-v2",
    "text2vec-base-multilingual",
    *published.VARIANTS,
)


def install(name: str, cache: Path) -> tuple[str, Path]:
    """Build a model in a hub cache. Returns its alias and its snapshot folder."""
    alias = name.partition(",")[0]
    entry = find_registered_model(alias)
    assert entry is not None
    folder = published.snapshot(cache, entry.hub_id)
    published.build(name, folder)
    return alias, folder


def encode(alias: str, folder: Path, *options: str, texts: list[str] = TEXTS) -> Any:
    """float32 [len(texts), dim] from `embedcli encode --offline`."""
    write_jsonl(folder / "rows.jsonl", [{"id": i, "text": text} for i, text in enumerate(texts)])
    paths = (str(folder / "rows.jsonl"), str(folder / "out.parquet"))
    ended = run("encode", *paths, "-m", alias, "--offline", "--cache-dir", str(folder / "cache"), *options)
    assert ended.code == 0, ended.err
    return np.stack(pq.read_table(folder / "out.parquet")["embedding"].to_numpy())


def reference(snapshot: Path, texts: list[str] = TEXTS) -> Any:
    """What sentence-transformers computes in float32, one text at a time, so that no padding takes part."""
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(snapshot), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
    )
    return np.concatenate([model.encode([text], show_progress_bar=False) for text in texts])


def test_every_alias_has_a_published_layout() -> None:
    described = {*published.TRANSFORMERS, *published.WHOLE, *STATIC, *published.WORD_VECTORS, *published.OWN_CODE}
    assert described == {entry.alias for entry in MODEL_REGISTRY}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_the_vectors_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    alias, snapshot = install(name, tmp_path / "cache")
    vectors = encode(alias, tmp_path, "--engine", "torch", "--device", "cpu", "--dtype", "float32")
    if name == "nomic-embed-text-v1.5":
        # transformers alone does not understand the keys of its configuration.
        shutil.copy(models.folder(name) / "config.json", snapshot / "config.json")
    assert lowest_cosine(vectors, reference(snapshot)) >= 0.999999


@pytest.mark.parametrize("name", COMPILED)
def test_the_compiled_network_gives_the_same_vectors(name: str, tmp_path: Path) -> None:
    alias, snapshot = install(name, tmp_path / "cache")
    vectors = encode(alias, tmp_path, "--engine", "openvino", "--device", "cpu", "--dtype", "float32")
    assert lowest_cosine(vectors, reference(snapshot)) >= 0.999999


@pytest.mark.parametrize("name", STATIC)
def test_a_static_model_gives_the_vectors_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    alias, snapshot = install(name, tmp_path / "cache")
    # model2vec reads 512 tokens, sentence-transformers all of them.
    texts = TEXTS[:2]
    assert lowest_cosine(encode(alias, tmp_path, texts=texts), reference(snapshot, texts)) >= 0.999999


@pytest.mark.parametrize("name", published.WORD_VECTORS)
def test_word_vectors_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    alias, snapshot = install(name, tmp_path / "cache")
    content = (snapshot / "light_Tencent_AILab_ChineseEmbedding.bin").read_bytes()
    head = content.partition(b"\n")[0]
    start = content.index(b"\na ")
    numbers = content[start + len(b"\na ") :]
    vectors = encode(alias, tmp_path, texts=["a"])
    np.testing.assert_allclose(vectors[0], np.frombuffer(numbers, "<f4", int(head.split()[1])), rtol=1e-6)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("name", published.OWN_CODE)
def test_a_model_with_own_code_is_loaded_natively(name: str, engine: str, tmp_path: Path) -> None:
    """Without trust, and without the repository of the code."""
    alias, _ = install(name, tmp_path / "cache")
    own = load(own_code.with_code_beside(name, tmp_path / "own"), trust_remote_code=True)
    vectors = encode(alias, tmp_path, "--engine", engine, "--device", "cpu", "--dtype", "float32")
    assert lowest_cosine(vectors, batched(own, TEXTS)) >= 0.999999


def has_bfloat16(engine: str) -> bool:
    """Whether an engine computes in bfloat16 here: PyTorch does on AVX-512, OpenVINO only on bfloat16 instructions."""
    if engine == "torch":
        return cpu_supports("bf16")
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("name", [*COMPILED[:7], *published.OWN_CODE])
def test_bfloat16_is_close_where_the_processor_has_it(name: str, engine: str) -> None:
    folder = models.folder(name)
    if not has_bfloat16(engine):
        with pytest.raises(UsageError, match="no bfloat16"):
            load(folder, engine=engine, dtype="bfloat16")
        return
    vectors = batched(load(folder, engine=engine, dtype="bfloat16"), TEXTS)
    assert lowest_cosine(vectors, batched(load(folder), TEXTS)) >= 0.999
