"""A model whose weights do not fill its network, or do not fit its tokenizer, is refused by both engines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import models
import reference
from embedcli.core.errors import ModelError

pytestmark = pytest.mark.usefixtures("own_cache")

Tensors = dict[str, Any]
ENGINES = ("torch", "auto")


def changed(name: str, target: Path, change: Callable[[Tensors], Tensors], **config: Any) -> Path:
    """A copy of a model with other tensors and other values in config.json."""
    shutil.copytree(models.folder(name), target)
    save_file(change(load_file(target / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    values = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(values | config))
    return target


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}


def renamed(tensors: Tensors) -> Tensors:
    return {f"module.encoder_model.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, "lacks weights that its network needs: embeddings.LayerNorm.bias"),
        (without("layer.1."), "encoder.layer.1.attention.output.LayerNorm.bias, .* and 13 more"),
        (without("token_type"), "lacks weights .*token_type_embeddings"),
        (without("layer.0.output.dense.bias"), "lacks weights .*layer.0.output.dense.bias"),
    ],
    ids=["no name fits", "a layer", "token types", "one bias"],
)
def test_a_missing_tensor_is_named(tmp_path: Path, engine: str, change: Any, message: str) -> None:
    folder = changed("text2vec-base-chinese", tmp_path / "model", change)
    with pytest.raises(ModelError, match=message):
        reference.load(folder, engine=engine)
    assert not list(tmp_path.glob("cache/compiled/*/model.xml")), "a refused model is not compiled"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pooler_that_is_not_read_may_be_missing(tmp_path: Path, engine: str) -> None:
    texts = ["a", "Two words", "向量 and more words"]
    folder = changed("text2vec-base-chinese", tmp_path / "model", without("pooler"))
    vectors = reference.encode(reference.load(folder, engine=engine), texts)
    expected = reference.sentence_transformer(models.folder("text2vec-base-chinese")).encode(texts)
    assert reference.lowest_cosine(vectors, expected) > 0.999999


def test_a_head_beside_the_network_is_fine(tmp_path: Path) -> None:
    import torch

    def with_head(tensors: Tensors) -> Tensors:
        return {f"bert.{name}": tensor for name, tensor in tensors.items()} | {
            "cls.predictions.bias": torch.zeros(7),
            "classifier.weight": torch.zeros(2, 32),
        }

    folder = changed("text2vec-base-chinese", tmp_path / "model", with_head)
    assert np.isfinite(reference.encode(reference.load(folder), ["text"])).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_layers_that_the_config_leaves_out_are_named(tmp_path: Path, engine: str) -> None:
    folder = changed("text2vec-base-chinese", tmp_path / "model", dict, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"does not read: encoder.layer.1") as refused:
        reference.load(folder, engine=engine)
    assert "config.json" in refused.value.hint


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    folder = changed("text2vec-base-chinese", tmp_path / "model", dict, intermediate_size=48)
    with pytest.raises(ModelError, match=r"has the shape \(64,\), and config.json asks for \(48,\)"):
        reference.load(folder)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_token_without_a_vector_is_named(tmp_path: Path, engine: str) -> None:
    folder = changed("text2vec-base-chinese", tmp_path / "model", dict)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    size = len(tokenizer["model"]["vocab"])
    token = {"id": size, "content": "[NEW]", "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer["added_tokens"].append(token | {"normalized": False, "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=rf"'\[NEW\]' has the id {size}, and the embedding table has {size} rows"):
        reference.load(folder, engine=engine)


@pytest.mark.parametrize(
    "name", ["Qwen3-Embedding-0.6B", "distiluse-base-multilingual-cased-v2", "embeddinggemma-300m"]
)
def test_a_module_of_its_own_kind_must_be_whole_too(tmp_path: Path, name: str) -> None:
    def drop_last(tensors: Tensors) -> Tensors:
        return dict(list(tensors.items())[:-1])

    with pytest.raises(ModelError, match="lacks weights"):
        reference.load(changed(name, tmp_path / "model", drop_last))


def test_a_dense_layer_must_be_whole(tmp_path: Path) -> None:
    folder = changed("LaBSE", tmp_path / "model", dict)
    dense = folder / "2_Dense" / "model.safetensors"
    save_file(without("bias")(load_file(dense)), dense)
    with pytest.raises(ModelError, match=r"Missing key.*bias"):
        reference.load(folder)


def end_with(token_id: int, folder: Path) -> None:
    """Let the template of a tokenizer end every text with an id of its own."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [token_id]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    # BertTokenizer would write a template of its own.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_id_that_only_the_template_gives_is_found(tmp_path: Path, engine: str) -> None:
    folder = changed("text2vec-base-chinese", tmp_path / "model", dict)
    end_with(5000, folder)
    with pytest.raises(
        ModelError, match="the token that is added to every text has the id 5000, and the embedding table has"
    ):
        reference.load(folder, engine=engine)


def routed(target: Path) -> Path:
    """A model with a network for each role."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    network = str(models.folder("text2vec-base-chinese"))
    routes = {role: [modules.Transformer(network), modules.Pooling(32)] for role in ("query", "document")}
    SentenceTransformer(modules=[modules.Router(routes)], device="cpu").save(str(target), create_model_card=False)
    return target


def test_each_network_of_a_router_is_checked(tmp_path: Path) -> None:
    folder = routed(tmp_path / "model")
    assert reference.encode(reference.load(folder, as_="document"), ["text"]).shape == (1, 32)
    part = next(folder.glob("document_*Transformer"))
    weights = load_file(part / "model.safetensors")
    save_file(without("layer.1.")(weights), part / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks weights that its network needs: encoder\.layer\.1"):
        reference.load(folder, as_="document")
    save_file(weights, part / "model.safetensors", {"format": "pt"})
    end_with(5000, part)
    with pytest.raises(ModelError, match="has the id 5000"):
        reference.load(folder, as_="document")


@pytest.mark.parametrize("engine", ENGINES)
def test_damaged_numbers_are_named(tmp_path: Path, engine: str) -> None:
    def damaged(tensors: Tensors) -> Tensors:
        tensors["encoder.layer.1.output.dense.weight"][3, 5] = float("nan")
        return tensors

    folder = changed("text2vec-base-chinese", tmp_path / "model", damaged)
    with pytest.raises(ModelError, match=r"damaged: encoder\.layer\.1\.output\.dense\.weight contains NaN"):
        reference.load(folder, engine=engine)
