"""The layout in which each model of the table of known models is published, as small random models.

Sources: (c) read in the model's card, commits or a public copy of its files; (m) known from use, not read again. The
files of text2vec-large-chinese and m3e could not be read: issues of their users show that m3e-base and
text2vec-large-chinese were published without modules.json; copies of m3e-base with one exist, and both are built.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import models

SENTENCE_TRANSFORMERS_FILES = ("modules.json", "*_Pooling", "*_Dense", "*_Normalize", "sentence_bert_config.json")
TANH = "torch.nn.modules.activation.Tanh"
BGE_QUERY = "Represent this sentence for searching relevant passages: "
COMMIT = "4d5c1ab9e0f7382615ab4c09d8e7f6a5b4c3d2e1"


@dataclass(frozen=True)
class Layout:
    """How a model is published.

    Attributes:
        network: The model of `models` whose network and tokenizer have the architecture and tokenizer kind.
        pooling: The pooling mode in 1_Pooling/config.json; None: the folder has no modules.json.
        normalize: Whether modules.json ends with Normalize.
        dense: Whether a Dense module with Tanh follows the pooling.
        limit: max_seq_length in sentence_bert_config.json; None: null.
        dtype: Number format of the weights and `torch_dtype` in config.json.
        weights: "safetensors", "bin" (a pickle only) or "shards" (an index and two safetensors files).
        prompts: In config_sentence_transformers.json.
        auto_map: Own code named in config.json, of an architecture that transformers has as well.
    """

    network: str
    pooling: str | None = "mean"
    normalize: bool = False
    dense: bool = False
    limit: int | None = 512
    dtype: str = "float32"
    weights: str = "safetensors"
    prompts: Mapping[str, str] = field(default_factory=dict)
    auto_map: Mapping[str, str] = field(default_factory=dict)


RAW_BERT = Layout("text2vec-large-chinese", pooling=None)
BERT_MEAN = Layout("text2vec-large-chinese")
BERT_NORMALIZED = replace(BERT_MEAN, normalize=True)
BERT_CLS = replace(BERT_NORMALIZED, pooling="cls")
# A BERT network with the SentencePiece vocabulary of XLM-R.
BERT_XLMR = Layout("text2vec-base-multilingual-raw")
XLMR_NORMALIZED = Layout("xlm-roberta-raw", normalize=True)
MPNET = Layout("all-mpnet-base-v2")
MODERNBERT = Layout("gte-modernbert-base", limit=1024)
QWEN3 = Layout(
    "Qwen3-Embedding-0.6B",
    "lasttoken",
    normalize=True,
    limit=None,
    dtype="bfloat16",
    prompts={
        "query": "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:",
        "document": "",
    },
)

TRANSFORMERS: dict[str, Layout] = {
    "all-MiniLM-L6-v2": replace(BERT_NORMALIZED, limit=256),  # c
    "all-MiniLM-L12-v2": replace(BERT_NORMALIZED, limit=128),  # m
    "all-mpnet-base-v2": replace(MPNET, normalize=True, limit=384),  # m
    "all-distilroberta-v1": Layout("all-distilroberta-v1", normalize=True),  # m
    "multi-qa-MiniLM-L6-cos-v1": BERT_NORMALIZED,  # m
    "multi-qa-mpnet-base-dot-v1": replace(MPNET, pooling="cls"),  # m
    "paraphrase-multilingual-MiniLM-L12-v2": replace(BERT_XLMR, limit=128),  # m
    "paraphrase-multilingual-mpnet-base-v2": Layout("xlm-roberta-raw", limit=128),  # m
    "distiluse-base-multilingual-cased-v2": Layout("distiluse-base-multilingual-cased-v2", dense=True, limit=128),  # m
    "LaBSE": replace(BERT_CLS, dense=True, limit=256),  # m
    "text2vec-base-multilingual": replace(BERT_XLMR, limit=256),  # m
    "text2vec-base-chinese": replace(BERT_MEAN, limit=128),  # c
    "text2vec-base-chinese-sentence": Layout("text2vec-base-chinese-sentence", limit=256),  # c
    "text2vec-base-chinese-paraphrase": Layout("text2vec-base-chinese-paraphrase", limit=256),  # c
    "text2vec-bge-large-chinese": replace(BERT_MEAN, limit=256),  # c: length; m: pooling
    "text2vec-large-chinese": RAW_BERT,  # c: sentence-transformers reports that there is no modules.json
    "m3e-small": RAW_BERT,  # m
    "m3e-base": RAW_BERT,  # c: the same report, for the hub id
    "m3e-large": RAW_BERT,  # m
    "multilingual-e5-small": replace(BERT_XLMR, normalize=True),  # m
    "multilingual-e5-base": XLMR_NORMALIZED,  # m
    "multilingual-e5-large": XLMR_NORMALIZED,  # m
    "multilingual-e5-large-instruct": replace(XLMR_NORMALIZED, dtype="float16"),  # m
    "e5-small-v2": BERT_NORMALIZED,  # m
    "e5-base-v2": BERT_NORMALIZED,  # m
    "e5-large-v2": BERT_NORMALIZED,  # m
    "bge-small-en-v1.5": BERT_CLS,  # m
    "bge-base-en-v1.5": BERT_CLS,  # m
    "bge-large-en-v1.5": BERT_CLS,  # m
    "bge-small-zh-v1.5": BERT_CLS,  # m
    "bge-base-zh-v1.5": BERT_CLS,  # m
    "bge-large-zh-v1.5": BERT_CLS,  # m
    "bge-m3": replace(XLMR_NORMALIZED, pooling="cls", weights="bin"),  # c: pooling; m: the rest
    "modernbert-embed-base": replace(
        MODERNBERT, normalize=True, prompts={"query": "search_query: ", "document": "search_document: "}
    ),  # m
    # c: the sizes in the cards are those of float16 weights.
    "gte-small": replace(BERT_NORMALIZED, dtype="float16"),
    "gte-base": replace(BERT_NORMALIZED, dtype="float16"),
    "gte-large": replace(BERT_NORMALIZED, dtype="float16"),
    "gte-small-zh": replace(BERT_CLS, dtype="float16"),  # c: sizes; m: pooling
    "gte-base-zh": replace(BERT_CLS, dtype="float16"),  # c: sizes; m: pooling
    "gte-large-zh": replace(BERT_CLS, dtype="float16"),  # c: sizes; m: pooling
    "gte-modernbert-base": replace(MODERNBERT, pooling="cls", dtype="float16"),  # m
    "Qwen3-Embedding-0.6B": QWEN3,  # c: pooling; m: the rest
    "Qwen3-Embedding-4B": replace(QWEN3, weights="shards"),  # m
    "mxbai-embed-large-v1": replace(
        BERT_CLS, normalize=False, dtype="float16", prompts={"query": BGE_QUERY, "passage": ""}
    ),  # m
    "snowflake-arctic-embed-m-v1.5": replace(BERT_CLS, prompts={"query": BGE_QUERY}),  # m
    "snowflake-arctic-embed-l-v2.0": replace(XLMR_NORMALIZED, pooling="cls", prompts={"query": "query: "}),  # m
}
# Tensor names and keys of config.json are those of the model's own code.
TRANSFORMERS["nomic-embed-text-v1.5"] = Layout(
    "nomic-embed-text-v1.5",
    auto_map={
        "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
    },
)  # m
# Built whole by `models`: the newest layout of sentence-transformers, with two Dense modules.
WHOLE = {"embeddinggemma-300m": "embeddinggemma-300m"}
# Models that may be published in more than one layout.
VARIANTS: dict[str, Layout] = {
    "m3e-base, with modules.json": BERT_MEAN,
    "text2vec-base-multilingual, without modules.json": replace(BERT_XLMR, pooling=None),
}
MODEL2VEC = ("potion-base-8M", "potion-base-32M", "potion-retrieval-32M", "potion-multilingual-128M")  # m
STATIC_EMBEDDINGS = ("static-retrieval-mrl-en-v1", "static-similarity-mrl-multilingual-v1")  # m
WORD_VECTORS = ("w2v-light-tencent-chinese",)
# Built whole by `own_code`: configuration, tensor names and, for the first, the code itself.
OWN_CODE = (
    "bilingual-embedding-small",
    "bilingual-embedding-base",
    "bilingual-embedding-large",
    "gte-multilingual-base",
)
# The keys that the published configuration of nomic-embed-text has in place of those of transformers.
NOMIC_KEYS = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "intermediate_size": "n_inner", "max_position_embeddings": "n_positions", "layer_norm_eps": "layer_norm_epsilon",
}  # fmt: skip


def snapshot(cache: Path, hub_id: str) -> Path:
    """The empty snapshot folder of a model in a hub cache, which its reference `main` names."""
    repository = cache / ("models--" + hub_id.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def build(name: str, folder: Path) -> None:
    """Write a model in its published layout into an empty folder."""
    if name in OWN_CODE:
        shutil.copytree(models.folder(name), folder, dirs_exist_ok=True)
    elif name in MODEL2VEC:
        _build_model2vec(folder)
    elif name in STATIC_EMBEDDINGS:
        _build_static_embedding(folder)
    elif name in WORD_VECTORS:
        shutil.copytree(models.folder(name), folder, dirs_exist_ok=True)
        models.write(folder / "README.md", "Word vectors.")
    elif name in WHOLE:
        shutil.copytree(models.folder(WHOLE[name]), folder, dirs_exist_ok=True)
    else:
        _build_transformer(folder, (TRANSFORMERS | VARIANTS)[name])


def _build_transformer(folder: Path, layout: Layout) -> None:
    ignore = shutil.ignore_patterns(*SENTENCE_TRANSFORMERS_FILES, "config_sentence_transformers.json")
    shutil.copytree(models.folder(layout.network), folder, dirs_exist_ok=True, ignore=ignore)
    _convert_weights(folder, layout)
    if layout.pooling is None:
        return
    modules: list[Any] = [models.pooling(layout.pooling)]
    if layout.dense:
        modules.append(models.dense(folder, "2_Dense", 32, 24, TANH))
    models.pipeline(folder, *modules, *([models.NORMALIZE] if layout.normalize else []), limit=layout.limit)
    if layout.prompts:
        models.prompts(folder, dict(layout.prompts))


def _convert_weights(folder: Path, layout: Layout) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = {name: tensor.to(getattr(torch, layout.dtype)) for name, tensor in load_file(path).items()}
    path.unlink()
    if layout.weights == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif layout.weights == "shards":
        names = sorted(weights)
        files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        places = {name: files[i % 2] for i, name in enumerate(names)}
        for file in files:
            part = {name: weights[name] for name in names if places[name] == file}
            save_file(part, folder / file, {"format": "pt"})
        models.write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    else:
        save_file(weights, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("dtype", None)
    if layout.auto_map:
        config = {NOMIC_KEYS.get(key, key): value for key, value in config.items()}
        rope = config.pop("rope_parameters", None) or {}
        config |= {"auto_map": dict(layout.auto_map), "rotary_emb_base": rope.get("rope_theta", 1000)}
        config |= {"activation_function": "swiglu", "qkv_proj_bias": False, "rotary_emb_fraction": 1.0}
    models.write(folder / "config.json", config | {"torch_dtype": layout.dtype})


def _build_model2vec(folder: Path) -> None:
    """Tensors of model2vec in the model's own folder, which modules.json calls "."."""
    shutil.copytree(models.folder("potion-base-8M"), folder, dirs_exist_ok=True)
    config = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "tokenizer_name": "baai/bge-base-en-v1.5",
        "apply_pca": 16,
        "apply_zipf": True,
        "hidden_dim": 16,
        "seq_length": 1000000,
        "normalize": True,
    }
    models.write(folder / "config.json", config)
    kinds = [("StaticEmbedding", "."), ("Normalize", "1_Normalize")]
    _write_modules(folder, kinds)


def _build_static_embedding(folder: Path) -> None:
    """A StaticEmbedding in a subfolder, without Normalize and without any config.json."""
    import torch
    from safetensors.torch import save_file

    inside = folder / "0_StaticEmbedding"
    inside.mkdir()
    tokenizer = models.wordpiece(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[CLS]", "[SEP]")
    tokenizer.save(str(inside / "tokenizer.json"))
    generator = torch.Generator().manual_seed(11)
    table = torch.randn((tokenizer.get_vocab_size(), 16), generator=generator)
    save_file({"embedding.weight": table}, inside / "model.safetensors")
    _write_modules(folder, [("StaticEmbedding", "0_StaticEmbedding")])
    models.write(folder / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})


def _write_modules(folder: Path, kinds: list[tuple[str, str]]) -> None:
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    models.write(folder / "modules.json", listed)
