"""The vectors are those of sentence-transformers, for every kind of model, on every row, in the right place."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import published
from embedcli import encoders
from embedcli.core.errors import DeviceOutOfMemoryError, ModelError, UsageError
from embedcli.encoders.torch import device as torch_device
from embedcli.encoders.torch import linear_prepack
from embedcli.models import resolve
from reference import encode, encoded, job, load, lowest_cosine, samples, sentence_transformer, varied

SAME = 0.99999
TRUSTED = {"own-code-model", "slow-tokenizer"}
# What sentence-transformers cannot do itself: it fails on rows longer than the positions (see below).
STATIC = {"potion-base-8M", "w2v-light-tencent-chinese"}
# Loaded as other architectures: tests/models/test_native.py compares them with their own code.
NATIVE = set(published.OWN_CODE)
PIPELINES = sorted(set(models.BUILDERS) - STATIC - NATIVE - {"xlm-roberta-raw"})


def forty() -> list[str]:
    """Rows of many languages, empty, odd, and longer than every limit but the longest."""
    return [*samples()[::6], "", " ", "a", "🙂", "長" * 400, "word " * 200]


def rows_with_tokens(encoder: Any, texts: list[str]) -> list[str]:
    return [text for text, length in zip(texts, encoder.tokenize(texts).lengths, strict=True) if length]


def theirs(name: str, texts: list[str], **values: Any) -> Any:
    return sentence_transformer(models.folder(name), name in TRUSTED).encode(texts, show_progress_bar=False, **values)


def test_the_default_model_on_a_thousand_varied_rows() -> None:
    texts = varied()
    ours = encode(load(), texts)
    reference = encoded(texts)
    assert len(texts) >= 1000
    assert lowest_cosine(ours, reference) >= SAME
    # The right row: no other row of the reference is nearer.
    nearest = (ours @ reference.T).argmax(axis=1)
    assert all(
        texts[i] == texts[j] or np.allclose(reference[i], reference[j], atol=1e-5) for i, j in enumerate(nearest)
    )


def test_vectors_do_not_depend_on_the_token_budget() -> None:
    encoder = load()
    texts = varied()[:60]
    np.testing.assert_allclose(encode(encoder, texts, 64), encode(encoder, texts, 4096), atol=1e-5)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_kind_of_model(name: str) -> None:
    encoder = load(models.folder(name), trust_remote_code=name in TRUSTED)
    texts = rows_with_tokens(encoder, forty())
    reference = theirs(name, texts, prompt=encoder.config.prompt or None)
    assert len(texts) >= 40
    assert lowest_cosine(encode(encoder, texts, 900), reference) >= SAME
    np.testing.assert_allclose(encode(encoder, texts[:5]), reference[:5], atol=1e-4)
    # Rows differ enough that a wrong pooling or cut would show.
    unit = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    assert np.median(unit @ unit.T) < 0.9


@pytest.mark.parametrize("name", ["text2vec-base-multilingual-raw", "text2vec-large-chinese", "xlm-roberta-raw"])
def test_a_raw_folder_is_transformers_and_the_mean_over_tokens(name: str) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = str(models.folder(name))
    network, words = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = forty()
    batch = words(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.inference_mode():
        states = network(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    means = (states * mask).sum(1) / mask.sum(1)
    assert lowest_cosine(encode(load(folder), texts), means.numpy()) >= SAME


def test_text2vec_gives_the_same_vectors_in_both_layouts() -> None:
    pipeline, raw = (load(models.folder(f"text2vec-base-multilingual{end}")) for end in ("", "-raw"))
    short = rows_with_tokens(pipeline, [text for text in samples() if len(text) < 200])
    assert lowest_cosine(encode(pipeline, short), encode(raw, short)) >= SAME
    assert (pipeline.config.max_seq_length, raw.config.max_seq_length) == (256, 512)
    assert pipeline.model[0].model.config.model_type == "bert"


@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "m3e-base", "LaBSE"])
@pytest.mark.parametrize("normalize", [True, False])
def test_normalize_adds_or_drops_the_models_last_step(name: str, normalize: bool) -> None:
    texts = samples()[:12]
    encoder = load(models.folder(name), normalize=normalize)
    made, plain = encode(encoder, texts), theirs(name, texts)
    lengths = np.linalg.norm(made, axis=1)
    assert lowest_cosine(made, plain) >= SAME
    assert np.allclose(lengths, 1, atol=1e-5) is normalize
    assert encoder.vector_space()["normalize"] is normalize


def test_a_normalize_that_is_not_the_last_step_leaves_lengths_as_they_are(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    network = modules.Transformer(str(models.folder("m3e-base")))
    steps = [network, modules.Pooling(32), modules.Normalize(), modules.Dense(32, 16)]
    made = SentenceTransformer(modules=steps, device="cpu")
    made.save(str(tmp_path / "model"))
    encoder = load(tmp_path / "model")
    np.testing.assert_allclose(encode(encoder, samples()[:5]), made.encode(samples()[:5]), atol=1e-5)
    assert encoder.vector_space()["normalize"] is False


# Prompts


@pytest.mark.parametrize(
    ("name", "role", "prompt"),
    [
        ("e5-with-prompts", "query", "query: "),
        ("e5-with-prompts", "document", "passage: "),
        ("e5-with-prompts", "none", ""),
        ("e5-with-prompts", None, ""),
        ("instruct-model", "query", "Represent the question for retrieving documents: "),
        ("instruct-model", None, "Represent the text: "),
        ("instruct-model", "none", ""),
        ("embeddinggemma-300m", "document", "title: none | text: "),
        ("Qwen3-Embedding-0.6B", "document", ""),
    ],
)
def test_the_resolved_prompt_is_what_sentence_transformers_would_prepend(name: str, role: Any, prompt: str) -> None:
    encoder = load(models.folder(name), as_=role)
    texts = samples()[:12]
    assert encoder.vector_space()["prompt"] == prompt
    assert lowest_cosine(encode(encoder, texts), theirs(name, texts, prompt=prompt)) >= SAME


def test_as_document_uses_a_saved_passage_prompt_and_encode_document_does_not() -> None:
    texts = samples()[:6]
    model = sentence_transformer(models.folder("e5-with-prompts"))
    unprompted, prompted = model.encode(texts), model.encode(texts, prompt="passage: ")
    np.testing.assert_allclose(model.encode_document(texts), unprompted, atol=1e-6)
    ours = encode(load(models.folder("e5-with-prompts"), as_="document"), texts)
    assert lowest_cosine(ours, prompted) >= SAME
    assert lowest_cosine(ours, unprompted) < 0.999


def test_a_prompt_that_pooling_leaves_out_is_still_read() -> None:
    texts = samples()[:6]
    encoder = load(models.folder("instruct-model"), prompt="Sort by topic: ")
    assert encoder.prompt_length
    made = encode(encoder, texts)
    assert lowest_cosine(made, theirs("instruct-model", texts, prompt="Sort by topic: ")) >= SAME
    assert lowest_cosine(made, theirs("instruct-model", texts, prompt="")) < 0.9999


# A model's own code


def test_a_models_own_code_runs_only_when_trusted() -> None:
    folder = models.folder("own-code-model")
    with pytest.raises(UsageError, match="contains custom Python code") as caught:
        load(folder)
    assert "config.py (RolledConfig)" in caught.value.message
    assert "modeling.py (RolledModel)" in caught.value.message
    assert "--trust-remote-code" in caught.value.hint
    encoder = load(folder, trust_remote_code=True)
    assert type(encoder.model[0].model).__name__ == "RolledModel"
    assert encoder.dim == models.SIZE["hidden_size"]


# Other pipelines


def test_a_pipeline_on_word_lists_goes_through_its_own_preprocessing(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    vocabulary = sorted({word.lower() for text in samples() for word in text.split()})
    weights = np.random.default_rng(3).standard_normal((len(vocabulary), 16)).astype(np.float32)
    words = modules.WordEmbeddings(WhitespaceTokenizer(vocabulary), weights.tolist())
    SentenceTransformer(modules=[words, modules.Pooling(16)], device="cpu").save(str(tmp_path / "glove"))
    encoder = load(tmp_path / "glove")
    texts = rows_with_tokens(encoder, samples()[:30])
    reference = SentenceTransformer(str(tmp_path / "glove"), device="cpu").encode(texts)
    assert lowest_cosine(encode(encoder, texts, 60), reference) >= SAME


def test_a_router_gets_the_role(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    def branch(name: str) -> list[Any]:
        network = modules.Transformer(str(models.folder(name)))
        return [network, modules.Pooling(network.get_embedding_dimension())]

    router = modules.Router.for_query_document(branch("m3e-base"), branch("text2vec-base-multilingual"))
    made = SentenceTransformer(modules=[router], device="cpu")
    made.save(str(tmp_path / "router"))
    texts = samples()[:10]
    for role, reference in (("query", made.encode_query(texts)), ("document", made.encode_document(texts))):
        assert lowest_cosine(encode(load(tmp_path / "router", as_=role), texts), reference) >= SAME


# Numbers and devices


def test_half_precision_weights_are_float32_on_a_cpu(tmp_path: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "half"
    made = SentenceTransformer(str(models.folder("LaBSE")), device="cpu").to(torch.bfloat16)
    made.save(str(folder))
    encoder = load(folder)
    reference = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}
    assert lowest_cosine(encode(encoder, samples()[:20]), reference.encode(samples()[:20])) >= SAME


def test_bfloat16_is_close_where_the_cpu_has_it_and_rejected_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch_device.cpu_supports("bf16"):
        encoder = load(models.folder("all-MiniLM-L6-v2-shape"), dtype="bfloat16")
        texts = samples()[:20]
        made = encode(encoder, texts)
        assert 0.99 < lowest_cosine(made, theirs("all-MiniLM-L6-v2-shape", texts)) < 1 - 1e-6
        np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
        exact = encoder.encode_float32(encoder.tokenize(texts), np.arange(3))
        assert lowest_cosine(exact, theirs("all-MiniLM-L6-v2-shape", texts[:3])) >= SAME
    monkeypatch.setattr(torch_device, "cpu_supports", lambda kind: False)
    with pytest.raises(UsageError, match="no bfloat16"):
        torch_device.select_dtype("bfloat16", "cpu")


def layers(encoder: Any) -> set[str]:
    return {type(module).__name__ for module in encoder.model.modules()}


def test_packed_layers_are_used_only_if_they_keep_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    if not linear_prepack.is_prepack_available():
        pytest.skip("this torch has no packed linear layers")
    texts, folder = samples()[:10], models.folder("bge-small-en-v1.5")
    packed = load(folder)
    made = encode(packed, texts)
    assert "PackedLinear" in layers(packed)

    def wrong(model: Any) -> int:
        model[0].model.encoder.layer[0].output.dense.bias.data += 1
        return 1

    monkeypatch.setattr(linear_prepack, "prepack_linear_layers", wrong)
    plain = load(folder)
    np.testing.assert_allclose(encode(plain, texts), made, atol=1e-5)
    assert "PackedLinear" not in layers(plain)


def test_the_error_of_a_missing_device_names_the_available_ones() -> None:
    with pytest.raises(UsageError, match="no device 'cuda:7'") as caught:
        load(models.folder("m3e-base"), device="cuda:7")
    assert "cpu" in caught.value.hint

    assert torch_device.select_device("auto") == torch_device.available_devices()[0]


def test_the_dtype_class_is_known_before_torch_is_imported() -> None:
    assert torch_device.precision_class(job(device="cpu")) == "float32"
    assert torch_device.precision_class(job(device="cuda:0")) == "half"
    assert torch_device.precision_class(job(device="cuda:0", dtype="float32")) == "float32"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_recognised_on_every_device(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(models.folder("m3e-base"))
    tokens = encoder.tokenize(["a"])

    def refuse(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(encoder, "_run_model", refuse)
    encoder._should_prepack = False
    with pytest.raises(DeviceOutOfMemoryError):
        encoder.forward(tokens, np.arange(1))


def test_other_errors_stay_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(models.folder("m3e-base"))
    tokens = encoder.tokenize(["a"])
    encode(encoder, ["a"])
    monkeypatch.setattr(encoder, "model", lambda features: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder.forward(tokens, np.arange(1))


# Loading


def test_loading_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    made = encoders.load_encoder(job(models.folder("text2vec-large-chinese"), device="cpu"), notify=told.append)
    encode(made, samples()[:3])
    assert capfd.readouterr() == ("", "")
    assert told == [f"{models.folder('text2vec-large-chinese')} has no modules.json: mean pooling is used"]


def test_damaged_weights_are_a_model_error(tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(models.folder("m3e-base"), folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(folder)
    assert str(folder) in caught.value.message
    assert "\n" not in caught.value.message


def test_an_unknown_architecture_is_a_model_error(tmp_path: Path) -> None:
    folder = tmp_path / "unknown"
    shutil.copytree(models.folder("m3e-base"), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "hypercube", "architectures": ["Hyper"]}))
    with pytest.raises(ModelError, match="hypercube"):
        load(folder)


@pytest.mark.parametrize("name", sorted(set(models.BUILDERS) - TRUSTED - STATIC - NATIVE))
def test_the_config_read_from_files_is_that_of_the_loaded_model(name: str) -> None:
    folder = models.folder(name)
    made = encoders.resolve_model_config(job(folder), resolve.resolve_model(job(folder)))
    loaded = sentence_transformer(folder)
    assert made.normalize is (type(loaded[-1]).__name__ == "Normalize")
    assert made.pooling == loaded[1].pooling_mode
    assert made.pools_prompt is loaded[1].include_prompt
    if name != "xlm-roberta-raw":
        assert made.max_seq_length == loaded.max_seq_length
    else:
        # 514 positions, of which two hold no token; sentence-transformers itself fails on a row of 513.
        assert (made.max_seq_length, loaded.max_seq_length) == (512, 514)
        with pytest.raises(RuntimeError):
            loaded.encode(["word " * 600])


def test_texts_are_tokenized_while_the_model_runs() -> None:
    encoder = load()
    texts = varied()[:60]
    alone = encode(encoder, texts)
    made: list[Any] = []
    worker = threading.Thread(target=lambda: made.extend(encoder.tokenize(varied()[:400]).lengths))
    worker.start()
    np.testing.assert_allclose(encode(encoder, texts), alone, atol=1e-5)
    worker.join()
    assert len(made) == 400
