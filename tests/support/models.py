"""Small random models with the configuration, layout, tokenizer kind and file names of the real ones.

`folder(name)` builds a model once per machine, in a cache keyed by this file, the sample text and the versions of the
libraries that write it. The weights are large enough that different texts have clearly different vectors, so that
a wrong pooling, prompt or truncation shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "sample_data" / "texts.jsonl"
BUILDERS: dict[str, Callable[[Path], None]] = {}
SIZE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VOCABULARY = 900

Builder = Callable[[Path], None]


def folder(name: str) -> Path:
    """The folder of a model, built on first use. Its last component is `name`."""
    home = cache()
    target = home / name
    if not target.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=home, prefix=".building-"))
        BUILDERS[name](work / name)
        try:
            os.replace(work / name, target)
        except OSError:
            assert target.is_dir(), "another run may have been first"
        shutil.rmtree(work)
    return target


def cache() -> Path:
    versions = [version(name) for name in ("torch", "transformers", "tokenizers", "sentence-transformers")]
    sources = Path(__file__).read_bytes() + (Path(__file__).parent / "own_code.py").read_bytes()
    digest = hashlib.sha256(sources + SAMPLE.read_bytes() + " ".join(versions).encode())
    base = ROOT / ".pytest_cache" / "embedcli-models"
    home = base / digest.hexdigest()[:16]
    if not home.is_dir():
        shutil.rmtree(base, ignore_errors=True)
    return home


def model(name: str) -> Callable[[Builder], Builder]:
    """Register a builder under the name of the model it imitates."""

    def register(build: Builder) -> Builder:
        BUILDERS[name] = build
        return build

    return register


# Texts and tokenizers


def texts() -> list[str]:
    return [json.loads(line)["text"] for line in SAMPLE.read_text("utf-8").splitlines()]


def wordpiece(special: tuple[str, ...], start: str, end: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    # The trainer finds the same tokens on every run, and numbers them differently.
    tokens = [*special, *sorted(tokenizer.get_vocab().keys() - set(special))]
    tokenizer.model = models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]")
    return with_template(tokenizer, f"{start} $A {end}".strip(), (start, end))


def unigram(special: tuple[str, ...], unk: str, start: str, end: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=list(special), unk_token=unk, show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return with_template(tokenizer, f"{start} $A {end}".strip(), (start, end))


def byte_bpe(special: tuple[str, ...], template: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return with_template(tokenizer, template, tuple(token for token in special if token in template))


def metaspace_bpe(special: tuple[str, ...], template: str) -> Any:
    """Like Gemma's: spaces become ▁, unknown characters become bytes."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[*special, *alphabet], show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    return with_template(tokenizer, template, tuple(token for token in special if token in template))


def with_template(tokenizer: Any, template: str, special: tuple[str, ...]) -> Any:
    from tokenizers.processors import TemplateProcessing

    ids = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(special) if token]
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def bert_tokenizer() -> Any:
    return wordpiece(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS]", "[SEP]")


def xlmr_tokenizer() -> Any:
    return unigram(("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<unk>", "<s>", "</s>")


BERT = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
XLMR = {
    "tokenizer_class": "XLMRobertaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}


# Files


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2), "utf-8")


def save(folder: Path, network: Any, tokenizer: Any, config: dict[str, Any], limit: int | None) -> None:
    """Write a raw Hugging Face folder: network, tokenizer.json and tokenizer_config.json."""
    set_weights(network)
    network.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", config | ({"model_max_length": limit} if limit else {}))


def set_weights(network: Any) -> None:
    """Set random weights, the same on every run, with which a row's vector depends mostly on its own words.

    Positions, token types and feed-forward layers have small weights, because what they add is the same in every row.
    """
    import torch

    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1:
                common = any(part in name for part in ("position", "token_type", "task_type", "rel_"))
                feed = any(part in name for part in ("output.dense", "down_proj", "Wo", "lin2")) and "att" not in name
                scale = (0.3 if common or feed else 1.5) / parameter.shape[-1] ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def pipeline(folder: Path, *modules: tuple[str, dict[str, Any] | None], limit: int | None = None) -> None:
    """Add the files of sentence-transformers to a raw folder, in the layout of most published models."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for i, (kind, config) in enumerate(modules, start=1):
        path = f"{i}_{kind}"
        listed.append({"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"})
        if config is not None:
            write(folder / path / "config.json", config)
    write(folder / "modules.json", listed)
    write(folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})
    versions = {"sentence_transformers": "2.2.2", "transformers": "4.30.0", "pytorch": "2.0.1"}
    write(folder / "config_sentence_transformers.json", {"__version__": versions})


def prompts(folder: Path, texts: dict[str, str], default: str | None = None) -> None:
    path = folder / "config_sentence_transformers.json"
    config = json.loads(path.read_text("utf-8"))
    write(path, config | {"prompts": texts, "default_prompt_name": default, "similarity_fn_name": "cosine"})


def pooling(mode: str = "mean", **more: Any) -> tuple[str, dict[str, Any]]:
    """A Pooling module, with the keys that published models have."""
    keys = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    wanted = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}[mode]
    chosen = {f"pooling_mode_{key}": key == wanted for key in keys}
    return "Pooling", {"word_embedding_dimension": SIZE["hidden_size"], **chosen, **more}


NORMALIZE: tuple[str, None] = ("Normalize", None)


def dense(folder: Path, path: str, inside: int, outside: int, activation: str) -> tuple[str, dict[str, Any]]:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(outside)
    (folder / path).mkdir(parents=True)
    weights = {
        "linear.weight": torch.randn((outside, inside), generator=generator) / inside**0.5,
        "linear.bias": torch.randn(outside, generator=generator) * 0.1,
    }
    save_file(weights, folder / path / "model.safetensors")
    config = {"in_features": inside, "out_features": outside, "bias": True, "activation_function": activation}
    return "Dense", config


def bert(folder: Path, tokenizer: Any, config: dict[str, Any], **more: Any) -> None:
    from transformers import BertConfig, BertModel

    network_config = BertConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=512, **SIZE, **more)
    save(folder, BertModel(network_config), tokenizer, config, 512)


def xlm_roberta(folder: Path, limit: int | None = 512) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    tokenizer = xlmr_tokenizer()
    network_config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        **SIZE,
    )
    save(folder, XLMRobertaModel(network_config), tokenizer, XLMR, limit)


# Models


@model("all-MiniLM-L6-v2-shape")
def _minilm(folder: Path) -> None:
    bert(folder, bert_tokenizer(), BERT)
    pipeline(folder, pooling(), NORMALIZE, limit=256)


@model("text2vec-base-multilingual")
def _text2vec_multilingual(folder: Path) -> None:
    """A BERT network with the vocabulary of XLM-R, 256 tokens."""
    bert(folder, xlmr_tokenizer(), XLMR, pad_token_id=0)
    pipeline(folder, pooling(), limit=256)


@model("text2vec-base-multilingual-raw")
def _text2vec_multilingual_raw(target: Path) -> None:
    """The same network and tokenizer without the files of sentence-transformers."""
    ignore = shutil.ignore_patterns("modules.json", "*_Pooling", "sentence_bert_config.json", "config_sentence*")
    shutil.copytree(folder("text2vec-base-multilingual"), target, ignore=ignore)


@model("text2vec-base-chinese")
def _text2vec_chinese(folder: Path) -> None:
    bert(folder, bert_tokenizer(), BERT)
    pipeline(folder, pooling(), limit=128)


@model("text2vec-base-chinese-paraphrase")
def _text2vec_paraphrase(folder: Path) -> None:
    """An ERNIE network, with task embeddings beside the token types."""
    from transformers import ErnieConfig, ErnieModel

    tokenizer = bert_tokenizer()
    network_config = ErnieConfig(
        vocab_size=tokenizer.get_vocab_size(), use_task_id=True, task_type_vocab_size=3, **SIZE
    )
    save(folder, ErnieModel(network_config), tokenizer, BERT, 512)
    pipeline(folder, pooling(), limit=256)


@model("text2vec-base-chinese-sentence")
def _text2vec_sentence(folder: Path) -> None:
    """An ERNIE network without task embeddings."""
    from transformers import ErnieConfig, ErnieModel

    tokenizer = bert_tokenizer()
    save(folder, ErnieModel(ErnieConfig(vocab_size=tokenizer.get_vocab_size(), **SIZE)), tokenizer, BERT, 512)
    pipeline(folder, pooling(), limit=256)


@model("text2vec-large-chinese")
def _text2vec_large(folder: Path) -> None:
    """A raw folder; LERT has the architecture of BERT."""
    bert(folder, bert_tokenizer(), BERT)


@model("paraphrase-multilingual-MiniLM-L12-v2")
def _paraphrase(folder: Path) -> None:
    bert(folder, xlmr_tokenizer(), XLMR | {"tokenizer_class": "PreTrainedTokenizerFast"}, pad_token_id=0)
    pipeline(folder, pooling(), limit=128)


@model("multilingual-e5-base")
def _e5(folder: Path) -> None:
    """As published: the prompts are documented, but not in the files."""
    xlm_roberta(folder)
    pipeline(folder, pooling(), NORMALIZE, limit=512)


@model("e5-with-prompts")
def _e5_prompts(folder: Path) -> None:
    xlm_roberta(folder)
    pipeline(folder, pooling(), NORMALIZE, limit=512)
    prompts(folder, {"query": "query: ", "passage": "passage: "})


@model("xlm-roberta-raw")
def _xlmr_raw(folder: Path) -> None:
    """Without a saved limit: the network's positions are the limit."""
    xlm_roberta(folder, limit=None)


@model("all-mpnet-base-v2")
def _mpnet(folder: Path) -> None:
    from transformers import MPNetConfig, MPNetModel

    tokenizer = wordpiece(("<s>", "<pad>", "</s>", "[UNK]", "<mask>"), "<s>", "</s>")
    network_config = MPNetConfig(vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=514, **SIZE)
    config = XLMR | {"tokenizer_class": "MPNetTokenizer", "unk_token": "[UNK]", "do_lower_case": True}
    save(folder, MPNetModel(network_config), tokenizer, config, 512)
    pipeline(folder, pooling(), NORMALIZE, limit=384)


@model("all-distilroberta-v1")
def _distilroberta(folder: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    tokenizer = byte_bpe(("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "<s> $A </s>")
    network_config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=514, type_vocab_size=1, **SIZE
    )
    save(folder, RobertaModel(network_config), tokenizer, XLMR | {"tokenizer_class": "RobertaTokenizer"}, 512)
    pipeline(folder, pooling(), NORMALIZE, limit=512)


@model("nomic-embed-text-v1.5")
def _nomic(folder: Path) -> None:
    """Rotary positions; saved under the tensor names of the model's own code."""
    from transformers import NomicBertConfig, NomicBertModel

    tokenizer = bert_tokenizer()
    network_config = NomicBertConfig(vocab_size=tokenizer.get_vocab_size(), **SIZE)
    save(folder, NomicBertModel(network_config), tokenizer, BERT, 512)
    pipeline(folder, pooling(), limit=512)


@model("distiluse-base-multilingual-cased-v2")
def _distiluse(folder: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    tokenizer = bert_tokenizer()
    network_config = DistilBertConfig(
        vocab_size=tokenizer.get_vocab_size(), dim=32, n_layers=2, n_heads=4, hidden_dim=64
    )
    save(folder, DistilBertModel(network_config), tokenizer, BERT | {"tokenizer_class": "DistilBertTokenizer"}, 512)
    dense_module = dense(folder, "2_Dense", 32, 24, "torch.nn.modules.activation.Tanh")
    pipeline(folder, pooling(), dense_module, limit=128)


@model("LaBSE")
def _labse(folder: Path) -> None:
    bert(folder, bert_tokenizer(), BERT)
    dense_module = dense(folder, "2_Dense", 32, 32, "torch.nn.modules.activation.Tanh")
    pipeline(folder, pooling("cls"), dense_module, NORMALIZE, limit=256)


@model("bge-small-en-v1.5")
def _bge(folder: Path) -> None:
    bert(folder, bert_tokenizer(), BERT)
    pipeline(folder, pooling("cls"), NORMALIZE, limit=512)


@model("gte-small")
def _gte(folder: Path) -> None:
    bert(folder, bert_tokenizer(), BERT)
    pipeline(folder, pooling(), NORMALIZE, limit=512)


@model("m3e-base")
def _m3e(folder: Path) -> None:
    bert(folder, bert_tokenizer(), BERT)
    pipeline(folder, pooling(), limit=512)


@model("instruct-model")
def _instruct(folder: Path) -> None:
    """Instructions are read, but excluded from pooling."""
    bert(folder, bert_tokenizer(), BERT)
    pipeline(folder, pooling(include_prompt=False), NORMALIZE, limit=128)
    instructions = {
        "query": "Represent the question for retrieving documents: ",
        "document": "Represent the text: ",
        "clustering": "Sort by topic: ",
    }
    prompts(folder, instructions, default="document")


@model("modernbert-embed-base")
def _modernbert(folder: Path) -> None:
    modernbert(folder)
    pipeline(folder, pooling(), NORMALIZE, limit=1024)
    prompts(folder, {"query": "search_query: ", "document": "search_document: "})


@model("gte-modernbert-base")
def _gte_modernbert(folder: Path) -> None:
    modernbert(folder)
    pipeline(folder, pooling("cls"), limit=1024)


def modernbert(folder: Path) -> None:
    """A network with full and sliding attention."""
    from transformers import ModernBertConfig, ModernBertModel

    tokenizer = byte_bpe(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS] $A [SEP]")
    network_config = ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=1024,
        layer_types=["full_attention", "sliding_attention"],
        local_attention=16,
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
        **SIZE,
    )
    config = BERT | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
    }
    save(folder, ModernBertModel(network_config), tokenizer, config, 1024)


@model("deberta-v2-base")
def _deberta(folder: Path) -> None:
    from transformers import DebertaV2Config, DebertaV2Model

    tokenizer = unigram(("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"), "[UNK]", "[CLS]", "[SEP]")
    shape = SIZE | {
        "vocab_size": tokenizer.get_vocab_size(),
        "relative_attention": True,
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
    }
    network_config = DebertaV2Config(**shape)
    config = BERT | {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False}
    save(folder, DebertaV2Model(network_config), tokenizer, config, 256)
    pipeline(folder, pooling(), limit=256)


@model("Qwen3-Embedding-0.6B")
def _qwen3(folder: Path) -> None:
    """Last-token pooling on left-padded rows, whose last token marks the end of the text."""
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = byte_bpe(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "$A <|endoftext|>")
    network_config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=512, num_key_value_heads=2, head_dim=8, **SIZE
    )
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
    }
    save(folder, Qwen3Model(network_config), tokenizer, config, 512)
    pipeline(folder, pooling("lasttoken", include_prompt=True), NORMALIZE)
    instruct = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
    prompts(folder, {"query": instruct, "document": ""})


@model("embeddinggemma-300m")
def _gemma(folder: Path) -> None:
    """Gemma 3 text with two Dense modules, in the layout sentence-transformers 6 writes."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    tokenizer = metaspace_bpe(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"), "<bos> $A <eos>")
    network_config = Gemma3TextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=512,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        use_bidirectional_attention=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        **SIZE,
    )
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "add_bos_token": True,
        "add_eos_token": True,
    }
    save(folder, Gemma3TextModel(network_config), tokenizer, config, 512)
    identity = "torch.nn.modules.linear.Identity"
    denses = [dense(folder, "2_Dense", 32, 64, identity), dense(folder, "3_Dense", 64, 32, identity)]
    pipeline(folder, pooling(), *denses, NORMALIZE, limit=512)
    rewrite(folder)
    documented = {"query": "task: search result | query: ", "document": "title: none | text: "}
    prompts(folder, documented | {"Clustering": "task: clustering | query: "})


def rewrite(folder: Path) -> None:
    """Load and save the model, so that every file is in the newest layout."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    rewritten = folder.with_name("rewritten")
    model.save_pretrained(str(rewritten), create_model_card=False)
    shutil.rmtree(folder)
    os.replace(rewritten, folder)


@model("potion-base-8M")
def _potion(target: Path) -> None:
    """A static model in the format of model2vec: a table with a row per token."""
    import torch
    from safetensors.torch import save_file

    tokenizer = wordpiece(("[PAD]", "[UNK]"), "", "")
    generator = torch.Generator().manual_seed(8)
    target.mkdir(parents=True)
    tokenizer.save(str(target / "tokenizer.json"))
    save_file(
        {"embeddings": torch.randn((tokenizer.get_vocab_size(), 16), generator=generator)}, target / "model.safetensors"
    )
    write(target / "config.json", {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True})


@model("w2v-light-tencent-chinese")
def _word2vec(target: Path) -> None:
    """A binary word2vec file with the published name, of words and single characters."""
    import numpy as np

    words = sorted(
        {word for text in texts() for word in text.split()} | {character for text in texts() for character in text}
    )
    words = [word for word in words if word.strip()]
    table = np.random.default_rng(9).standard_normal((len(words), 20)).astype("<f4")
    target.mkdir(parents=True)
    lines = [word.encode() + b" " + row.tobytes() + b"\n" for word, row in zip(words, table, strict=True)]
    head = f"{len(words)} 20\n".encode()
    (target / "light_Tencent_AILab_ChineseEmbedding.bin").write_bytes(head + b"".join(lines))


CONFIGURATION = """
from transformers import XLMRobertaConfig


class RolledConfig(XLMRobertaConfig):
    model_type = "rolled"
"""
MODELING = """
import torch
from transformers import XLMRobertaModel

from .config import RolledConfig


class RolledModel(XLMRobertaModel):
    config_class = RolledConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.roll(1, dims=-1)
        return output
"""


@model("own-code-model")
def _own_code(folder: Path) -> None:
    """A network of a type that no library knows, with its code in the folder."""
    xlm_roberta(folder)
    write(folder / "config.py", CONFIGURATION)
    write(folder / "modeling.py", MODELING)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    custom = {
        "architectures": ["RolledModel"],
        "auto_map": {"AutoConfig": "config.RolledConfig", "AutoModel": "modeling.RolledModel"},
        "model_type": "rolled",
    }
    write(folder / "config.json", config | custom)
    pipeline(folder, pooling(), NORMALIZE, limit=512)


TOKENIZATION = """
from transformers import PreTrainedTokenizer


class CharacterTokenizer(PreTrainedTokenizer):
    \"\"\"One token per character, in Python.\"\"\"

    model_input_names = ["input_ids", "attention_mask"]

    @property
    def vocab_size(self):
        return 300

    def get_vocab(self):
        return {self._convert_id_to_token(i): i for i in range(300)} | self.added_tokens_encoder

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return 4 + ord(token) % 296

    def _convert_id_to_token(self, index):
        return chr(index)

    def build_inputs_with_special_tokens(self, one, two=None):
        return [self.cls_token_id, *one, self.sep_token_id]

    def save_vocabulary(self, folder, filename_prefix=None):
        return ()
"""


@model("slow-tokenizer")
def _slow(folder: Path) -> None:
    """A tokenizer written in Python, as for some languages."""
    bert(folder, bert_tokenizer(), BERT)
    (folder / "tokenizer.json").unlink()
    write(folder / "tokenization_characters.py", TOKENIZATION)
    custom = {
        "tokenizer_class": "CharacterTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_characters.CharacterTokenizer", None]},
    }
    write(folder / "tokenizer_config.json", BERT | custom | {"model_max_length": 512})
    pipeline(folder, pooling(), limit=64)


import own_code  # noqa: E402, F401 - registers its models
