"""model2vec and StaticEmbedding models: the same vectors as the tools that made them, nothing lost unsaid."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.encoders.static import encoder as static_encoder
from embedcli.models import resolve
from embedcli.models.files import ModelFiles
from static_models import TEXTS, byte_pairs, encode, load, table, unigram, wordlevel, wordpiece

KINDS = {"wordpiece": wordpiece, "wordlevel": wordlevel, "unigram": unigram, "byte-pairs": byte_pairs}


def model2vec(folder: Path, tokenizer: Any, vectors: Any = None, **options: Any) -> Any:
    """A StaticModel of model2vec, saved by itself to `folder`."""
    from model2vec import StaticModel

    vectors = table(tokenizer.get_vocab_size()) if vectors is None else vectors
    made = StaticModel(vectors, tokenizer, config={"model_type": "model2vec"}, **options)
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_model2vec(tmp_path: Path, kind: str, normalize: bool) -> None:
    theirs = model2vec(tmp_path, KINDS[kind](), normalize=normalize)
    np.testing.assert_allclose(encode(load(tmp_path), TEXTS), theirs.encode(TEXTS), atol=1e-6)


@pytest.mark.parametrize(("dtype", "close"), [("float16", 1e-2), ("int8", 1e-4), ("float64", 1e-5)])
def test_other_number_types_are_summed_in_float32(tmp_path: Path, dtype: str, close: float) -> None:
    tokenizer = wordpiece()
    theirs = model2vec(tmp_path, tokenizer, (table(tokenizer.get_vocab_size()) * 20).astype(dtype))
    made = encode(load(tmp_path), TEXTS)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, theirs.encode(TEXTS), atol=close, rtol=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_quantized_vocabulary_is_followed_through_mapping_and_weights(tmp_path: Path, normalize: bool) -> None:
    tokenizer = wordpiece()
    size = tokenizer.get_vocab_size()
    theirs = model2vec(
        tmp_path,
        tokenizer,
        table(10),
        normalize=normalize,
        token_mapping=np.arange(size) % 10,
        weights=np.linspace(0.1, 2, size, dtype=np.float32),
    )
    np.testing.assert_allclose(encode(load(tmp_path), TEXTS), theirs.encode(TEXTS), atol=1e-5)


def test_a_folder_whose_config_lacks_the_model_type_is_recognised_by_its_tensors(tmp_path: Path) -> None:
    """The config.json and the tensors of the model in the wheel tokenlearn-static-model."""
    tokenizer = wordpiece()
    size = tokenizer.get_vocab_size()
    theirs = model2vec(
        tmp_path,
        tokenizer,
        (table(10) * 40).astype(np.int8),
        normalize=True,
        token_mapping=np.arange(size) % 10,
        weights=np.linspace(0.1, 2, size, dtype=np.float32),
    )
    (tmp_path / "modules.json").unlink()
    config = {"normalize": True, "embedding_dtype": "int8", "vocabulary_quantization": 10}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert resolve.resolve_model(Job((), "", model=str(tmp_path))).kind == "static"
    np.testing.assert_allclose(encode(load(tmp_path), TEXTS), theirs.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_max_seq_length_cuts_as_model2vec_cuts(tmp_path: Path, limit: int) -> None:
    theirs = model2vec(tmp_path, wordpiece())
    encoder = load(tmp_path, max_seq_length=limit)
    np.testing.assert_allclose(encode(encoder, TEXTS), theirs.encode(TEXTS, max_length=limit), atol=1e-6)
    assert encoder.vector_space()["max_seq_length"] == limit


@pytest.mark.parametrize(("saved", "limit"), [(512, 512), (20, 20), (None, None)])
def test_the_limit_is_the_models_own(tmp_path: Path, saved: int | None, limit: int | None) -> None:
    theirs = model2vec(tmp_path, wordpiece(), max_length=saved)
    encoder = load(tmp_path)
    assert encoder.vector_space()["max_seq_length"] == limit
    np.testing.assert_allclose(encode(encoder, TEXTS), theirs.encode(TEXTS), atol=1e-6)


def test_a_row_is_called_truncated_exactly_where_tokens_were_lost(tmp_path: Path) -> None:
    model2vec(tmp_path, wordpiece(), max_length=4)
    texts = ["the fox", "the quick fox jumps", "the quick fox jumps over", "", "q" * 9]
    tokens = load(tmp_path).tokenize(texts)
    assert tokens.untruncated_lengths.tolist()[:4] == [2, 4, 5, 0]
    assert (tokens.untruncated_lengths > tokens.lengths).tolist() == [False, False, True, False, False]
    assert tokens.lengths[4] == 0, "one unknown word: nothing the model knows"


def test_white_space_beyond_the_character_cut_loses_nothing_and_a_cut_word_does(tmp_path: Path) -> None:
    theirs = model2vec(tmp_path, wordpiece(), max_length=3)
    # The last one is cut inside filler001, one token whole and several in part.
    texts = ["the fox" + " " * 50, "fox" * 30, "the " + " " * 50 + "fox", "the" + " " * 18 + "filler001"]
    encoder = load(tmp_path)
    tokens = encoder.tokenize(texts)
    assert (tokens.untruncated_lengths > tokens.lengths).tolist() == [False, True, True, True]
    np.testing.assert_allclose(encode(encoder, texts), theirs.encode(texts), atol=1e-6)


def test_a_row_of_unknown_words_has_no_tokens(tmp_path: Path) -> None:
    model2vec(tmp_path, wordlevel())
    encoder = load(tmp_path)
    tokens = encoder.tokenize(["xyzzy", "the xyzzy fox", ""])
    assert tokens.lengths.tolist() == tokens.untruncated_lengths.tolist() == [0, 2, 0]
    assert encoder.empty_reason == "no known word"


def test_a_row_longer_than_a_block_is_summed_whole(tmp_path: Path) -> None:
    vectors = table(wordpiece().get_vocab_size(), 512)
    model2vec(tmp_path, wordpiece(), vectors, max_length=None)
    texts = ["the quick brown fox. " * 5000, "fox"]
    encoder = load(tmp_path)
    ids = encoder.tokenize(texts).ids
    assert len(ids) == 25001
    np.testing.assert_allclose(encode(encoder, texts)[0], vectors[ids[:-1]].mean(axis=0, dtype=np.float64), atol=1e-5)


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    model2vec(tmp_path, wordpiece())
    encoder = load(tmp_path)
    tokens, order = encoder.tokenize(TEXTS), np.array([5, 0, 3, 3, 8])
    made = encoder.collect(encoder.forward(tokens, order))
    for i, row in enumerate(order):
        np.testing.assert_array_equal(made[i], encoder.encode_float32(tokens, np.array([row]))[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("limit", "overlap"), [(5, 0), (9, 3), (40, 0)])
def test_windows_cover_a_text_and_each_is_read_whole(tmp_path: Path, kind: str, limit: int, overlap: int) -> None:
    model2vec(tmp_path, KINDS[kind](), max_length=limit)
    encoder = load(tmp_path)
    for text in [*TEXTS[:7], " ".join(TEXTS[:7]) * 5]:
        spans = encoder.split_into_windows(text, overlap)
        assert spans[0][0] == 0
        assert spans[-1][1] == len(text)
        for (start, stop), (following, _) in itertools.pairwise([*spans, (len(text), 0)]):
            assert start < following <= stop or not text[stop:following].strip()
        tokens = encoder.tokenize([text[start:stop] for start, stop in spans])
        assert tokens.untruncated_lengths.tolist() == tokens.lengths.tolist()
    with pytest.raises(UsageError, match="--split-overlap"):
        encoder.split_into_windows("the fox " * 50, limit)


def test_a_character_of_more_tokens_than_fit_ends_the_overlap(tmp_path: Path) -> None:
    model2vec(tmp_path, byte_pairs(), max_length=4)
    assert load(tmp_path).split_into_windows("\U0001f600" * 3, 3) == [(0, 1), (1, 2), (2, 3)]


def test_normalize_flags_override_the_model(tmp_path: Path) -> None:
    model2vec(tmp_path, wordpiece(), normalize=True)
    lengths = np.linalg.norm(encode(load(tmp_path, normalize=False), TEXTS[:3]), axis=1)
    assert not np.allclose(lengths, 1)
    np.testing.assert_allclose(np.linalg.norm(encode(load(tmp_path), TEXTS[:3]), axis=1), 1, atol=1e-6)


def sentence_transformer(folder: Path, vectors: Any, normalize: bool, **options: Any) -> Any:
    """A SentenceTransformer with a StaticEmbedding, saved by itself to `folder`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    modules: list[Any] = [
        StaticEmbedding(wordpiece(), embedding_weights=vectors),
        *([Normalize()] if normalize else []),
    ]
    made = SentenceTransformer(modules=modules, device="cpu", **options)
    made.save_pretrained(str(folder), create_model_card=False)
    return made


def in_subfolder(folder: Path) -> None:
    """Rearrange a saved StaticEmbedding model the way older releases wrote it."""
    (folder / "0_StaticEmbedding").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).rename(folder / "0_StaticEmbedding" / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_StaticEmbedding"
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("sub", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_those_of_sentence_transformers(tmp_path: Path, normalize: bool, sub: bool) -> None:
    theirs = sentence_transformer(tmp_path, table(wordpiece().get_vocab_size()), normalize)
    if sub:
        in_subfolder(tmp_path)
    encoder = load(tmp_path)
    np.testing.assert_allclose(encode(encoder, TEXTS), theirs.encode(TEXTS), atol=1e-6)
    assert encoder.vector_space()["max_seq_length"] is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_tables_are_upcast(tmp_path: Path, dtype: str) -> None:
    import torch

    vectors = torch.from_numpy(table(wordpiece().get_vocab_size())).to(getattr(torch, dtype))
    sentence_transformer(tmp_path / "half", vectors, False)
    theirs = sentence_transformer(tmp_path / "full", vectors.float(), False)
    np.testing.assert_allclose(encode(load(tmp_path / "half"), TEXTS), theirs.encode(TEXTS), atol=1e-6)


def test_prompts_are_put_before_the_text(tmp_path: Path) -> None:
    vectors = table(wordpiece().get_vocab_size())
    theirs = sentence_transformer(tmp_path, vectors, True, prompts={"query": "the fox: ", "document": ""})
    made = encode(load(tmp_path, as_="query"), TEXTS)
    np.testing.assert_allclose(made, theirs.encode(TEXTS, prompt_name="query"), atol=1e-6)


@pytest.mark.parametrize("direction", ["right", "left"])
def test_a_tokenizer_that_truncates_is_obeyed_and_counted(tmp_path: Path, direction: str) -> None:
    sentence_transformer(tmp_path, table(wordpiece().get_vocab_size()), False)
    tokenizer = wordpiece()
    tokenizer.enable_truncation(5, direction=direction)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    from sentence_transformers import SentenceTransformer

    encoder = load(tmp_path)
    np.testing.assert_allclose(encode(encoder, TEXTS), SentenceTransformer(str(tmp_path)).encode(TEXTS), atol=1e-6)
    assert encoder.tokenize([TEXTS[0]]).untruncated_lengths.tolist() == [10]


def test_facts_are_the_same_before_and_after_loading(tmp_path: Path) -> None:
    model2vec(tmp_path, wordpiece(), normalize=True)
    job = Job((), "", model=str(tmp_path), max_seq_length=9)
    before = static_encoder.static_model_identity(resolve.resolve_model(job), job)
    assert before == {
        key: value for key, value in load(tmp_path, max_seq_length=9).vector_space().items() if key in before
    }
    assert before["max_seq_length"] == 9
    assert before["normalize"] is True


def more_tokens(folder: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.add_tokens(["one-more"])
    tokenizer.save(str(folder / "tokenizer.json"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x07"), "no static vectors"),
        (lambda folder: cut(folder / "model.safetensors"), "model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no static vectors"),
        (more_tokens, "its tokenizer knows"),
    ],
)
def test_damaged_models_are_model_errors(tmp_path: Path, spoil: Any, says: str) -> None:
    model2vec(tmp_path, wordpiece(), max_length=None)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=says):
        load(tmp_path)


def test_a_pickled_table_is_refused(tmp_path: Path) -> None:
    sentence_transformer(tmp_path, table(wordpiece().get_vocab_size()), False)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    job = Job((), "", model=str(tmp_path))
    files = ModelFiles(str(tmp_path), tmp_path, None, "static", "")
    with pytest.raises(ModelError, match="pickle"):
        static_encoder.load_static_encoder(files, job, print)


def test_a_forced_engine_is_refused_and_a_device_is_said_to_change_nothing(tmp_path: Path) -> None:
    model2vec(tmp_path, wordpiece())
    with pytest.raises(UsageError, match="--engine torch"):
        load(tmp_path, engine="torch")
    said: list[str] = []
    load(tmp_path, said, device="cuda", dtype="bfloat16")
    assert [line for line in said if "--device cuda" in line]
    assert [line for line in said if "--dtype bfloat16" in line]


@pytest.mark.parametrize("other", ["config.json", "README.md"])
def test_other_folders_are_not_recognised(tmp_path: Path, other: str) -> None:
    (tmp_path / other).write_text("{}")
    assert static_encoder.detect_static_format(tmp_path) is None


@pytest.mark.parametrize("kind", ["model2vec", "glove"])
def test_a_start_imports_no_heavy_library(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model"
    if kind == "model2vec":
        model2vec(path, wordpiece())
    else:
        path = path.with_suffix(".txt")
        path.write_text("the 1 2 3\nfox 4 5 6\n")
    code = """
import sys
from embedcli.core.job import Job
from embedcli.models import resolve
from embedcli.encoders.static import encoder as static_encoder
job = Job((), "", model=sys.argv[1])
assert "numpy" in sys.modules
encoder = static_encoder.load_static_encoder(resolve.resolve_model(job), job, print)
tokens = encoder.tokenize(["the fox", "中文"])
encoder.collect(encoder.forward(tokens, tokens.offsets[:1]))
heavy = {"torch", "transformers", "sentence_transformers", "model2vec", "scipy", "gensim", "jieba", "openvino"}
heavy.add("pandas")
print(sorted(heavy & set(sys.modules)))
"""
    made = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"
    assert made.stderr == ""
