"""Usable positions and dependence on the batch are measured by running the network.

Rows get the vectors that they have alone. The reference is sentence-transformers, one row at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import reference
from embedcli import encoders
from embedcli.core.errors import ModelError, UsageError
from embedcli.encoders import equivalence
from embedcli.encoders.torch import model_probe, pipeline
from embedcli.models import resolve
from embedcli.models.config import read_model_config
from embedcli.models.traits import BUNDLED_TRAITS
from reference import encode, job, load, lowest_cosine, samples

pytestmark = pytest.mark.usefixtures("own_cache")

SAME = 0.999999
# More than the tokenizer of the small models has.
VOCABULARY = 4000
SMALL: Any = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MOBILE: Any = {"true_hidden_size": 32}
NARROW: Any = {**SMALL, "intermediate_size": 64}
TEXTS = [*(text[: 10 + 23 * (i % 9)] for i, text in enumerate(samples()[::9])), "a", "word " * 150]


def save(folder: Path, network: Any, mode: str = "mean", limit: int | None = 256, **tokenizer: Any) -> None:
    models.save(folder, network, models.bert_tokenizer(), models.BERT | tokenizer, limit)
    models.pipeline(folder, models.pooling(mode), limit=limit)


def build(name: str) -> Any:
    import transformers as t

    builders: dict[str, Callable[[], Any]] = {
        "mobilebert": lambda: t.MobileBertModel(
            t.MobileBertConfig(
                **NARROW, **MOBILE, embedding_size=16, intra_bottleneck_size=32, num_feedforward_networks=1
            )
        ),
        "convbert": lambda: t.ConvBertModel(t.ConvBertConfig(**NARROW, embedding_size=32, conv_kernel_size=3)),
        "bigbird": lambda: t.BigBirdModel(
            t.BigBirdConfig(**NARROW, max_position_embeddings=512, block_size=4, num_random_blocks=1)
        ),
        "fnet": lambda: t.FNetModel(t.FNetConfig(**NARROW, max_position_embeddings=512)),
        "gpt2": lambda: t.GPT2Model(
            t.GPT2Config(
                vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=2, eos_token_id=3
            )
        ),
        "bert": lambda: t.BertModel(t.BertConfig(**NARROW, max_position_embeddings=512)),
        "xlnet": lambda: t.XLNetModel(
            t.XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=64)
        ),
    }
    return builders[name]()


# name: network, pooling, padding side
DEPENDENT = {
    "mobilebert": ("mobilebert", "mean", "right"),
    "convbert": ("convbert", "mean", "right"),
    "bigbird": ("bigbird", "mean", "right"),
    "fnet": ("fnet", "mean", "right"),
    "left-padded-gpt2": ("gpt2", "lasttoken", "left"),
    "left-padded-cls": ("bert", "cls", "left"),
}
INDEPENDENT = {
    "bert": ("bert", "mean", "right"),
    "gpt2": ("gpt2", "lasttoken", "right"),
    "xlnet": ("xlnet", "mean", "left"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probed")


def folder(home: Path, name: str) -> Path:
    target = home / name
    if not target.is_dir():
        network, mode, side = (DEPENDENT | INDEPENDENT)[name]
        save(target, build(network), mode, padding_side=side)
    return target


@cache
def vectors_alone(model: Path) -> Any:
    """Each row by a network as it was loaded: BigBird changes with the rows it has seen."""
    from sentence_transformers import SentenceTransformer

    one = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    rows, attention_type = [], pipeline.declared_attention_type(one)
    for text in TEXTS:
        if attention_type:
            pipeline.restore_attention_type(one, attention_type)
        rows.append(one.encode([text], show_progress_bar=False)[0])
    return np.stack(rows)


@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize("name", DEPENDENT)
def test_a_network_that_depends_on_padding_gets_rows_of_equal_length(home: Path, name: str, engine: str) -> None:
    notes: list[str] = []
    model = folder(home, name)
    encoder = encoders.load_encoder(job(model, device="cpu", engine=engine, threads=1), notify=notes.append)
    assert encoder.equal_lengths
    assert any("depend on padding: rows of equal length are encoded together" in note for note in notes)
    assert lowest_cosine(encode(encoder, TEXTS), vectors_alone(model)) >= SAME


@pytest.mark.parametrize("name", INDEPENDENT)
def test_other_networks_are_padded(home: Path, name: str) -> None:
    model = folder(home, name)
    encoder = load(model)
    assert not encoder.equal_lengths
    assert encoder.pad_to_multiple_of == 8
    assert lowest_cosine(encode(encoder, TEXTS), vectors_alone(model)) >= SAME


# Positions


def offset_network(kind: str) -> Any:
    import transformers as t

    if kind == "xmod":
        config = t.XmodConfig(**NARROW, max_position_embeddings=66, pad_token_id=1, languages=["en_XX"])
        config.default_language = "en_XX"
        return t.XmodModel(config)
    if kind == "opt":
        return t.OPTModel(
            t.OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64, pad_token_id=0)
        )
    pad = 7 if kind == "pad-7" else 1
    return t.RobertaModel(t.RobertaConfig(**NARROW, max_position_embeddings=66, pad_token_id=pad))


@pytest.mark.parametrize(("kind", "usable"), [("xmod", 64), ("roberta", 64), ("pad-7", 58), ("opt", 64)])
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_the_limit_is_what_the_network_can_use(tmp_path: Path, kind: str, usable: int, engine: str) -> None:
    if (kind, engine) == ("opt", "openvino"):
        engine = "auto"
    models.save(tmp_path / kind, offset_network(kind), models.bert_tokenizer(), models.BERT, None)
    encoder = load(tmp_path / kind, engine=engine)
    assert encoders.encoder_identity(job(tmp_path / kind, device="cpu"))["max_seq_length"] == usable
    long = "word " * 200
    assert encoder.tokenize([long]).lengths.tolist() == [usable]
    assert np.isfinite(encode(encoder, [long, "short"])).all()
    with pytest.raises(UsageError, match=f"more than the {usable} tokens"):
        load(tmp_path / kind, engine=engine, max_seq_length=usable + 1)
    assert load(tmp_path / kind, engine=engine, max_seq_length=usable).tokenize([long]).lengths.tolist() == [usable]


def test_gpt2_without_a_saved_limit_is_cut_at_its_positions(tmp_path: Path) -> None:
    save(tmp_path / "gpt2", build("gpt2"), "lasttoken", None)
    encoder = load(tmp_path / "gpt2")
    from sentence_transformers import SentenceTransformer

    long = ["word " * 400]
    expected = SentenceTransformer(str(tmp_path / "gpt2"), device="cpu").encode(long, show_progress_bar=False)
    assert encoder.tokenize(long).lengths.tolist() == [256]
    assert lowest_cosine(encode(encoder, long), expected) >= SAME


def test_a_table_shorter_than_the_config_says_is_found_without_its_name(tmp_path: Path) -> None:
    """The fallback: run rows of decreasing length until one works."""
    save(tmp_path / "bert", build("bert"))
    encoder = load(tmp_path / "bert")

    def encode_up_to_100(tokens: Any, rows: Any, multiple: int) -> Any:
        if tokens.lengths[rows].max() > 100:
            raise IndexError("index out of range")
        return encoder.encode_padded(tokens, rows, multiple)

    def run_alone(text: str) -> Any:
        return encoder.encode_padded(encoder.tokenize([text]), np.arange(1), 1)[0]

    probed = model_probe.ProbedModel(
        "model", encoder.model, encoder.tokenize, encode_up_to_100, 256, "float32", True, run_alone
    )
    assert model_probe.measure_traits(probed).max_positions == 100


def test_relative_positions_are_no_table(tmp_path: Path) -> None:
    import transformers as t

    config = t.T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0)
    models.save(tmp_path / "t5", t.T5EncoderModel(config), models.bert_tokenizer(), models.BERT, 200)
    models.pipeline(tmp_path / "t5", models.pooling("mean"), limit=200)
    encoder = load(tmp_path / "t5")
    assert encoder.config.traits.max_positions is None
    assert encoder.config.max_seq_length == 200


def test_the_known_traits_of_the_bundled_model_are_those_measured() -> None:
    bundled = job(device="cpu")
    files = resolve.resolve_model(bundled)
    assert files.origin == "bundled"
    assert model_probe.measure_model_traits(bundled, files, read_model_config(files, bundled)) == BUNDLED_TRAITS


# Bounds and faults


def test_the_probe_row_follows_the_models_limit_and_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert equivalence.longest_probe_row(128, 1000) == 128
    assert equivalence.longest_probe_row(None, 1000, 4) <= equivalence.MAX_PROBE_TOKENS
    monkeypatch.setattr(equivalence, "available_memory", lambda: 1 << 28)
    longest = equivalence.longest_probe_row(None, 1000, 12)
    assert longest**2 * 12 * 4 * equivalence.ATTENTION_COPIES <= 1 << 28


def test_a_small_network_without_positions_gets_no_row_above_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "xlnet", build("xlnet"), limit=128, padding_side="left")
    lengths: list[int] = []
    original = model_probe.measure_traits

    def measure(model: Any) -> Any:
        def encode_and_count(tokens: Any, rows: Any, multiple: int) -> Any:
            lengths.append(int(tokens.lengths[rows].max()))
            return model.encode(tokens, rows, multiple)

        return original(replace(model, encode=encode_and_count))

    monkeypatch.setattr(model_probe, "measure_traits", measure)
    load(tmp_path / "xlnet")
    assert max(lengths) == 128


def test_a_network_with_random_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import BertModel

    save(tmp_path / "bert", build("bert"))
    forward = BertModel.forward

    def with_noise(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        output.last_hidden_state = output.last_hidden_state + torch.rand(())
        return output

    monkeypatch.setattr(BertModel, "forward", with_noise)
    with pytest.raises(ModelError, match="another vector each time"):
        load(tmp_path / "bert")
    assert json.loads((tmp_path / "bert" / "config.json").read_text("utf-8"))["model_type"] == "bert"


def test_rows_are_encoded_one_at_a_time_if_any_neighbour_changes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertModel

    save(tmp_path / "bert", build("bert"))
    expected = encode(load(tmp_path / "bert"), TEXTS)
    monkeypatch.setenv("EMBEDCLI_CACHE", str(tmp_path / "second-cache"))
    forward = BertModel.forward

    def mix_rows(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        states = output.last_hidden_state
        output.last_hidden_state = states + (states.mean(0, keepdim=True) if len(states) > 1 else 0)
        return output

    monkeypatch.setattr(BertModel, "forward", mix_rows)
    encoder = load(tmp_path / "bert")
    assert (encoder.equal_lengths, encoder.batch_tokens) == (True, 1)
    assert lowest_cosine(encode(encoder, TEXTS), expected) >= SAME


# Token types


def types_model(target: Path, kind: str) -> None:
    """A tokenizer that gives its CLS token the type 1, as some BERTs were published; XLNet's gives it 2, at the end."""
    import transformers as t
    from tokenizers.processors import TemplateProcessing

    tokenizer = models.bert_tokenizer()
    special = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    if kind == "xlnet":
        tokenizer.post_processor = TemplateProcessing(single="$A:0 [SEP]:0 [CLS]:2", special_tokens=special)
        network, own = build("xlnet"), {"padding_side": "left", "pad_token_type_id": 3}
    else:
        tokenizer.post_processor = TemplateProcessing(single="[CLS]:1 $A:0 [SEP]:0", special_tokens=special)
        network, own = t.BertModel(t.BertConfig(**NARROW, max_position_embeddings=512)), {}
    settings = models.BERT | own | {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": inputs}
    models.save(target, network, tokenizer, settings, 128)
    if kind == "bert":
        enlarge_token_types(target)
    models.pipeline(target, models.pooling("mean"), limit=128)


def enlarge_token_types(target: Path) -> None:
    """Weights with which the types show."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(target / "model.safetensors")
    weights["embeddings.token_type_embeddings.weight"] *= 20
    save_file(weights, target / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize("kind", ["bert", "xlnet"])
def test_token_types_of_the_tokenizer_reach_the_network(tmp_path: Path, kind: str, engine: str) -> None:
    types_model(tmp_path / kind, kind)
    encoder = load(tmp_path / kind, engine=engine)
    tokens = encoder.tokenize(["a word", "a"])
    expected_types = {"bert": ([1, 0], [0, 0]), "xlnet": ([0, 0], [0, 2])}[kind]
    assert (tokens.token_types[:2].tolist(), tokens.token_types[-2:].tolist()) == expected_types
    assert lowest_cosine(encode(encoder, TEXTS), vectors_alone(tmp_path / kind)) >= SAME


def test_a_network_that_pads_its_rows_itself_keeps_its_own_mask(tmp_path: Path) -> None:
    """Longformer pads rows up to its attention window, and masks that padding."""
    from transformers import LongformerConfig, LongformerModel

    config = LongformerConfig(
        **NARROW, attention_window=[16, 16], max_position_embeddings=260, pad_token_id=0, sep_token_id=3
    )
    save(tmp_path / "model", LongformerModel(config))
    encoder = load(tmp_path / "model")
    theirs = reference.sentence_transformer(tmp_path / "model")
    alone = np.stack([theirs.encode(text, show_progress_bar=False) for text in TEXTS])
    assert lowest_cosine(encode(encoder, TEXTS), alone) >= SAME


def test_a_network_that_needs_another_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_probe, "run_pipeline", lambda *_: np.ones(32, np.float32))
    save(tmp_path / "model", build("bert"))
    with pytest.raises(ModelError, match="other vectors here than from sentence-transformers"):
        load(tmp_path / "model")
