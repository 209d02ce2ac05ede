"""Published models with own code are loaded as an architecture of transformers, with the vectors of their own code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import models
import own_code
import reference
from embedcli.core.errors import ModelError, UsageError
from embedcli.models.native import find_native_equivalent

pytestmark = pytest.mark.usefixtures("own_cache")

NAMES = ("bilingual-embedding-small", "bilingual-embedding-base", "bilingual-embedding-large", "gte-multilingual-base")
TEXTS = ["a", "Two words", "向量 et des vecteurs", "Un texte plus long. " * 12, "words " * 700]


@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize("name", NAMES)
def test_the_vectors_are_those_of_the_own_code(name: str, engine: str, tmp_path: Path) -> None:
    with_code = own_code.with_code_beside(name, tmp_path / "with-code")
    own = reference.load(with_code, engine="torch", trust_remote_code=True)
    assert type(own.model[0].model).__name__ in ("BilingualModel", "NewModel")
    native = reference.load(models.folder(name), engine=engine)
    assert native.tokenize(TEXTS).lengths.max() == (511 if name.endswith("small") else 512)
    vectors, expected = reference.encode(native, TEXTS), reference.encode(own, TEXTS)
    assert reference.lowest_cosine(vectors, expected) >= 0.999999
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01, "texts differ"


@pytest.mark.parametrize("name", NAMES)
def test_it_is_said_and_recorded(name: str) -> None:
    lines: list[str] = []
    from embedcli import encoders

    encoder = encoders.load_encoder(reference.job(models.folder(name), device="cpu"), notify=lines.append)
    architecture = "gte" if name.startswith("gte") else "xlm-roberta"
    assert encoder.vector_space()["loaded_as"] == architecture
    assert any(f"is loaded as {architecture} of transformers: its own code is not run" in line for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_jobs_may_change_between_own_code_and_equivalent(name: str, tmp_path: Path) -> None:
    from embedcli import encoders

    folder = own_code.with_code_beside(name, tmp_path / "model")
    identities = [encoders.encoder_identity(reference.job(folder, trust_remote_code=trust)) for trust in (False, True)]
    assert identities[0] == identities[1]


def test_code_is_neither_needed_nor_imported(tmp_path: Path) -> None:
    folder = own_code.with_code_beside("bilingual-embedding-small", tmp_path / "model")
    for file in folder.glob("*.py"):
        file.write_text("raise AssertionError('this must not run')")
    assert reference.encode(reference.load(folder), ["text"]).shape == (1, 32)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_weights_that_do_not_fit_are_refused(change: str, tmp_path: Path) -> None:
    import torch

    folder = shutil.copytree(models.folder("bilingual-embedding-base"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    if change == "missing":
        del weights["encoder.layer.1.output.dense.bias"]
    else:
        weights["encoder.adapter.weight"] = torch.zeros(4)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as refused:
        reference.load(folder)
    assert "--trust-remote-code" in refused.value.hint


@pytest.mark.parametrize(
    "change", [{"position_embedding_type": "absolute"}, {"logn_attention_scale": True}, {"rope_scaling": {"type": "x"}}]
)
def test_a_variant_that_transformers_does_not_compute_needs_its_own_code(
    change: dict[str, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(models.folder("gte-multilingual-base"), tmp_path / "model")
    own_code.edit(folder / "config.json", **change)
    with pytest.raises(UsageError, match="Alibaba-NLP/new-impl"):
        reference.load(folder)


def test_the_configuration_of_nomic_models_is_translated() -> None:
    published = {
        "model_type": "nomic_bert", "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf.Model"},
        "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": 3072, "n_positions": 8192, "vocab_size": 30528,
        "type_vocab_size": 2, "layer_norm_epsilon": 1e-12, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0,
        "activation_function": "swiglu", "qkv_proj_bias": False, "prenorm": False, "max_trained_positions": 2048.0,
    }  # fmt: skip
    equivalent = find_native_equivalent(published)
    assert equivalent is not None
    config = equivalent.config
    assert (config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]) == (768, 12, 3072)
    assert config["rope_parameters"]["rope_theta"] == 1000
    assert "auto_map" not in config
    assert find_native_equivalent(published | {"activation_function": "gelu"}) is None
    assert find_native_equivalent({"model_type": "nomic_bert", "hidden_size": 8}) is None
    assert json.dumps(dict(config))
