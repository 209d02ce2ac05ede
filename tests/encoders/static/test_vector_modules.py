"""Modules behind static vectors give the vectors of sentence-transformers; unknown ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcli.core.errors import ModelError
from embedcli.encoders.static.vector_modules import ACTIVATIONS
from reference import lowest_cosine
from static_models import TEXTS, encode, load, table, wordpiece


def save_with(folder: Path, *following: Any) -> Any:
    """A SentenceTransformer of a StaticEmbedding and more modules, saved by itself to `folder`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    embedding = StaticEmbedding(wordpiece(), embedding_weights=table(wordpiece().get_vocab_size()))
    pipeline = SentenceTransformer(modules=[embedding, *following], device="cpu")
    pipeline.save_pretrained(str(folder), create_model_card=False)
    return pipeline


def dense(activation: str = "Tanh", **options: Any) -> Any:
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense

    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn((12, 16), generator=generator), torch.randn(12, generator=generator)
    values = {"activation_function": getattr(torch.nn, activation)(), "init_weight": weight, "init_bias": bias}
    return Dense(16, 12, **(values | options))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_dense_module_gives_the_vectors_of_sentence_transformers(tmp_path: Path, activation: str) -> None:
    theirs = save_with(tmp_path, dense(activation))
    encoder = load(tmp_path)
    vectors = encode(encoder, TEXTS)
    assert vectors.dtype == np.float32
    assert encoder.dim == encoder.vector_space()["dim"] == vectors.shape[1] == 12
    assert encoder.vector_space()["normalize"] is False
    np.testing.assert_allclose(vectors, theirs.encode(TEXTS), atol=1e-5)


def test_modules_are_applied_in_their_order(tmp_path: Path) -> None:
    import torch
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Normalize

    norm = LayerNorm(12)
    with torch.no_grad():
        norm.norm.weight.copy_(torch.linspace(0.5, 2, 12))
        norm.norm.bias.copy_(torch.linspace(-1, 1, 12))
    theirs = save_with(tmp_path, Normalize(), dense("GELU", bias=False), norm, Normalize())
    expected = theirs.encode(TEXTS)
    vectors = encode(load(tmp_path), TEXTS)
    assert lowest_cosine(vectors, expected) >= 0.999999
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    del theirs[-1]
    np.testing.assert_allclose(encode(load(tmp_path, normalize=False), TEXTS), theirs.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"activation_function": "torch.nn.modules.activation.Softsign"}, "Softsign"),
        ({"activation_function": "os.system"}, r"os\.system"),
        ({"use_residual": True}, "residual"),
        ({"module_input_name": "token_embeddings"}, "other inputs"),
    ],
)
def test_other_settings_of_a_dense_module_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    save_with(tmp_path, dense())
    path = tmp_path / "1_Dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=says):
        load(tmp_path)


def test_other_modules_are_refused(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Dropout

    save_with(tmp_path, Dropout())
    with pytest.raises(ModelError, match="Dropout"):
        load(tmp_path)


def test_damaged_modules_are_model_errors(tmp_path: Path) -> None:
    save_with(tmp_path, dense())
    weights = tmp_path / "1_Dense" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-40])
    with pytest.raises(ModelError, match="1_Dense"):
        load(tmp_path)
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ModelError, match="pickle"):
        load(tmp_path)


def test_a_dense_module_for_other_vectors_is_refused(tmp_path: Path) -> None:
    save_with(tmp_path, dense(), dense())
    with pytest.raises(ModelError, match="12 numbers"):
        load(tmp_path)
