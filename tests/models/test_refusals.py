"""Models that embedcli cannot use are named as what they are, by both engines, before anything is computed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
import reference
import sparse_models
from embedcli.core.errors import EmbedcliError, ModelError
from embedcli.models import refusals
from embedcli.storage.lfs import POINTER_START
from jobs import rows, run, write_jsonl

pytestmark = pytest.mark.usefixtures("own_cache")

ENGINES = ("torch", "auto")
POINTER = POINTER_START + b"\noid sha256:" + b"0" * 64 + b"\nsize 90000000\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw folder of an ordinary network."""
    return shutil.copytree(models.folder("text2vec-large-chinese"), tmp_path / "model")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A pipeline of sentence-transformers."""
    return shutil.copytree(models.folder("m3e-base"), tmp_path / "model")


def edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | values))


def refusal(folder: Path, engine: str = "torch") -> EmbedcliError:
    with pytest.raises(EmbedcliError) as refused:
        reference.load(folder, engine=engine)
    return refused.value


# Models of another kind


def make_reranker(folder: Path) -> None:
    edit(folder / "config.json", architectures=["BertForSequenceClassification"])


def make_classifier(folder: Path) -> None:
    edit(folder / "config.json", architectures=["BertForSequenceClassification"], id2label={"0": "sad", "1": "happy"})


def make_cross_encoder(folder: Path) -> None:
    edit(folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid"})


def make_colbert_architecture(folder: Path) -> None:
    edit(folder / "config.json", architectures=["HF_ColBERT"])


def make_colbert_metadata(folder: Path) -> None:
    edit(folder / "artifact.metadata", dim=128, query_maxlen=32)


def make_colbert_projection(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    renamed = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed | {"linear.weight": torch.zeros(16, 32)}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_reranker, "reranker"),
        (make_classifier, "classifier"),
        (make_cross_encoder, "CrossEncoder"),
        (make_colbert_architecture, "ColBERT"),
        (make_colbert_metadata, "ColBERT"),
        (make_colbert_projection, "ColBERT"),
    ],
)
def test_a_raw_folder_of_another_kind(raw: Path, engine: str, make: Callable[[Path], None], kind: str) -> None:
    make(raw)
    error = refusal(raw, engine)
    assert kind in error.message
    assert "embedcli models" in error.hint


@pytest.mark.parametrize("head", ["BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering"])
def test_other_heads_leave_an_ordinary_base_model(raw: Path, head: str) -> None:
    edit(raw / "config.json", architectures=[head])
    assert reference.encode(reference.load(raw), ["text"]).shape == (1, 32)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("pylate.models.Other.Other", "ColBERT"),
        ("sentence_transformers.cross_encoder.modules.LogitScore", "reranker"),
    ],
)
def test_a_pipeline_of_another_kind(saved: Path, module: str, kind: str) -> None:
    listed = json.loads((saved / "modules.json").read_text())
    (saved / "modules.json").write_text(json.dumps([*listed[:1], listed[1] | {"type": module}]))
    shutil.copy(saved / "model.safetensors", saved / "1_Pooling")
    assert kind in refusal(saved).message


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("CrossEncoder", "CrossEncoder"), ("NewEncoder", "NewEncoder"),
    ],
)  # fmt: skip
def test_a_folder_that_says_another_kind(saved: Path, kind: str, name: str) -> None:
    edit(saved / "config_sentence_transformers.json", model_type=kind)
    assert name in refusal(saved).message


# Files that are not there


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "modules.json"])
def test_a_git_lfs_pointer_is_named(saved: Path, engine: str, name: str) -> None:
    (saved / name).write_bytes(POINTER)
    error = refusal(saved, engine)
    assert f"{name} is a Git LFS pointer" in error.message
    assert "git lfs pull" in error.hint


def test_a_pointer_that_no_one_reads_is_no_error(saved: Path) -> None:
    (saved / "onnx").mkdir()
    for name in ("onnx/model.onnx", "pytorch_model.bin", "tf_model.h5"):
        (saved / name).write_bytes(POINTER)
    assert reference.encode(reference.load(saved), ["text"]).shape == (1, 32)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model-00001-of-00001.safetensors"])
def test_weights_in_another_layout_that_are_a_pointer(saved: Path, name: str) -> None:
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    if name.endswith(".safetensors"):
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
        (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    (saved / name).write_bytes(POINTER)
    assert f"{name} is a Git LFS pointer" in refusal(saved).message


def test_word_vectors_that_are_a_pointer(tmp_path: Path) -> None:
    (tmp_path / "words.bin").write_bytes(POINTER)
    assert "Git LFS pointer" in refusal(tmp_path / "words.bin", "auto").message


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.parquet", "in.tsv", "in.jsonl.gz"])
def test_an_input_that_is_a_pointer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    ended = run("encode", tmp_path / name, tmp_path / "out.parquet")
    assert ended.code == 1
    assert "Git LFS pointer" in ended.err
    assert "git lfs pull" in ended.err


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "name",
    [
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "1_Pooling/config.json",
    ],
)
def test_a_link_that_points_nowhere_is_a_missing_file(saved: Path, engine: str, name: str) -> None:
    """As in a hub cache that has lost a blob."""
    (saved / name).unlink()
    (saved / name).symlink_to(saved.parent / "blobs" / "gone")
    assert f"{name} is missing" in refusal(saved, engine).message


@pytest.mark.parametrize("content", ['{"0": "x"}', "[1]", "[{}]", "null"])
def test_a_list_of_modules_that_is_none(saved: Path, content: str) -> None:
    (saved / "modules.json").write_text(content)
    assert "modules.json is not a list of modules" in refusal(saved).message


# Files that would lead elsewhere or run code


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "1_Pooling/../../elsewhere"])
def test_a_module_outside_of_the_folder(saved: Path, path: str) -> None:
    shutil.copytree(saved / "1_Pooling", saved.parent / "elsewhere")
    listed = json.loads((saved / "modules.json").read_text())
    (saved / "modules.json").write_text(json.dumps([listed[0], listed[1] | {"path": path}]))
    assert "outside of" in refusal(saved).message


@pytest.mark.parametrize("shard", ["../weights.safetensors", "/tmp/weights.safetensors"])
def test_weights_outside_of_the_folder(saved: Path, shard: str) -> None:
    names = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").rename(saved.parent / "weights.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside of" in refusal(saved).message


class RunsCode:
    """What creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "arguments", [{}, {"model_args": {"weights_only": False}, "model_kwargs": {"weights_only": False}}]
)
def test_a_pickle_with_code_is_never_run(saved: Path, engine: str, arguments: dict[str, Any]) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": RunsCode(saved / "ran")}, saved / "pytorch_model.bin")
    edit(saved / "sentence_bert_config.json", **arguments)
    error = refusal(saved, engine)
    assert not (saved / "ran").exists()
    assert "pytorch_model.bin: the weights are a pickle" in error.message
    assert "weights_only" not in error.message + error.hint
    assert "safetensors" in error.hint
    pickle.loads(pickle.dumps(RunsCode(saved / "ran")))  # noqa: S301 - shows that the pickle would have run
    assert (saved / "ran").exists()


def test_a_pickle_in_a_module_is_never_run(tmp_path: Path) -> None:
    folder = shutil.copytree(models.folder("LaBSE"), tmp_path / "model")
    (folder / "2_Dense" / "model.safetensors").unlink()
    torch.save({"linear.weight": RunsCode(tmp_path / "ran")}, folder / "2_Dense" / "pytorch_model.bin")
    assert "2_Dense/pytorch_model.bin: the weights are a pickle" in refusal(folder).message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("key", ["model_args", "model_kwargs"])
@pytest.mark.parametrize(
    ("option", "file"),
    [({"use_safetensors": False}, "pytorch_model.bin"), ({"variant": "fp16"}, "model.fp16.safetensors")],
)
def test_a_config_cannot_choose_other_weights(saved: Path, key: str, option: dict[str, Any], file: str) -> None:
    """The fingerprint covers the file that is loaded without the option."""
    expected = reference.encode(reference.load(saved), ["text"])
    others = {name: tensor.flip(0).contiguous() for name, tensor in load_file(saved / "model.safetensors").items()}
    if file.endswith(".bin"):
        torch.save(others, saved / file)
    else:
        save_file(others, saved / file, {"format": "pt"})
    edit(saved / "sentence_bert_config.json", **{key: option})
    assert (reference.encode(reference.load(saved), ["text"]) == expected).all()


@pytest.mark.parametrize("key", ["model_args", "config_args", "tokenizer_args"])
def test_a_config_cannot_trust_code(tmp_path: Path, key: str) -> None:
    folder = shutil.copytree(models.folder("own-code-model"), tmp_path / "model")
    edit(folder / "sentence_bert_config.json", **{key: {"trust_remote_code": True}})
    assert "--trust-remote-code" in refusal(folder).hint


def test_a_pickle_of_tensors_is_read(saved: Path) -> None:
    expected = reference.encode(reference.load(saved), ["text"])
    torch.save(load_file(saved / "model.safetensors"), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    assert (reference.encode(reference.load(saved), ["text"]) == expected).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_onnx_and_openvino_files_in_the_folder_are_not_used(saved: Path, engine: str) -> None:
    expected = reference.encode(reference.load(saved, engine=engine), ["text"])
    for name in ("onnx/model.onnx", "openvino/openvino_model.xml", "openvino/openvino_model.bin", "model.onnx"):
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_bytes(b"other weights")
    assert (reference.encode(reference.load(saved, engine=engine), ["text"]) == expected).all()


# Packages


@pytest.fixture
def sentencepiece_only(saved: Path, tmp_path: Path) -> Path:
    """A tokenizer of a SentencePiece file alone, as some older XLM-R models have it."""
    import sentencepiece

    folder = shutil.copytree(models.folder("multilingual-e5-base"), tmp_path / "pieces")
    (folder / "tokenizer.json").unlink()
    (tmp_path / "texts.txt").write_text("\n".join(models.texts()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts.txt"), model_prefix=str(tmp_path / "pieces" / "sentencepiece.bpe"),
        vocab_size=890, model_type="unigram", minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "sentencepiece.bpe.vocab").unlink()
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sentencepiece_tokenizer_is_read(sentencepiece_only: Path, engine: str) -> None:
    texts = ["hello world", "naïve café", "向量"]
    vectors = reference.encode(reference.load(sentencepiece_only, engine=engine), texts)
    expected = reference.sentence_transformer(sentencepiece_only).encode(texts)
    assert reference.lowest_cosine(vectors, expected) > 0.999999


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_a_missing_package_is_named(sentencepiece_only: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert not refusals.is_installed(package)
    error = refusal(sentencepiece_only)
    assert f"needs the package {package.rsplit('.', maxsplit=1)[-1]}" in error.message
    assert error.hint == "pip install 'embedcli[sentencepiece]'"


def test_a_missing_tiktoken_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / "tokenizer.json").unlink()
    (saved / "qwen.tiktoken").write_text("IQ== 0")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    error = refusal(saved)
    assert "needs the package tiktoken" in error.message
    assert error.hint == "pip install 'embedcli[accurate-counts]'"


def test_a_tokenizer_without_a_vocabulary(saved: Path) -> None:
    """transformers loads it, and every text becomes unknown tokens."""
    (saved / "tokenizer.json").unlink()
    error = refusal(saved)
    assert isinstance(error, ModelError)
    assert "knows no word" in error.message


def test_rows_are_not_touched_by_a_refused_model(raw: Path, tmp_path: Path) -> None:
    make_reranker(raw)
    write_jsonl(tmp_path / "in.jsonl", rows(3))
    ended = run("encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "--model", raw)
    assert ended.code == 1
    assert "reranker" in ended.err
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "is missing"), ("{}", "does not name SparseEncoder as model_type")]
)
def test_a_sparse_encoder_that_is_not_marked_as_such(tmp_path: Path, content: str | None, problem: str) -> None:
    """sentence-transformers would take it for a dense model, and append random weights to it."""
    sparse_models.build_splade(tmp_path / "model", tmp_path)
    settings = tmp_path / "model" / "config_sentence_transformers.json"
    settings.unlink()
    if content is not None:
        settings.write_text(content)
    assert f"its config_sentence_transformers.json {problem}" in str(refusal(tmp_path / "model"))
