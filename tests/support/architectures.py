"""Small random networks of many architectures that transformers knows, to see which of them are embedded correctly.

Each has the real classes of its network, two layers, a tokenizer of the family's kind and the files of a published
model. A model that is not meant for embedding is in the table too: it must be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models

POSITIONS = 128
TEXTS = (
    "a",
    "Two words",
    "The charger gets too hot after ten minutes.",
    "向量表示文本的位置。",
    "ベクトルは文の位置を示す",
    "🙂🚀 👩‍👩‍👧‍👦",
    "naïve café, 1234.5 % of x",
    "Der Vektor sagt, wo ein Text liegt; le vecteur dit où.",
    "Вектор показывает место текста среди других.",
    "one two three four five six seven eight nine ten " * 2,
    "A vector says where a text lies among all others. " * 4,
    "far beyond the limit of the model " * 60,
)


@dataclass(frozen=True)
class Architecture:
    """One row of the table.

    Attributes:
        name: The model type, with what is special about this row behind a comma.
        network: The class of the network in transformers.
        tokenizer: A key of TOKENIZERS.
        pooling: The mode of the Pooling module; None: a raw folder.
        config: Settings besides the common ones.
        common: Whether the common settings are passed under their usual names.
        positions: The setting that holds the number of positions; None: the network has no table of positions.
        extra_positions: Positions that the table has beyond those that a text can use.
        limit: `max_seq_length` of the pipeline; None: not given.
        finish: Changes the folder at the end.
    """

    name: str
    network: str
    tokenizer: str = "bert"
    pooling: str | None = "mean"
    config: dict[str, Any] = field(default_factory=dict)
    common: bool = True
    positions: str | None = "max_position_embeddings"
    extra_positions: int = 0
    limit: int | None = None
    finish: Callable[[Path], None] | None = None


def build(architecture: Architecture, folder: Path) -> None:
    """Write the folder of a model."""
    import torch
    import transformers

    torch.manual_seed(7)
    kind = TOKENIZERS[architecture.tokenizer]
    tokenizer = kind.make() if kind.make else None
    values: dict[str, Any] = dict(models.SIZE) if architecture.common else {}
    if tokenizer is not None:
        values["vocab_size"] = tokenizer.get_vocab_size()
        ids = {"pad_token_id": kind.pad, "bos_token_id": kind.start, "eos_token_id": kind.end}
        values |= {key: tokenizer.token_to_id(token) for key, token in ids.items() if token}
    if architecture.positions:
        values[architecture.positions] = POSITIONS + architecture.extra_positions
    network_class = getattr(transformers, architecture.network)
    network = network_class(network_class.config_class(**(values | architecture.config)))
    config = kind.config | {"model_max_length": POSITIONS}
    if tokenizer is not None:
        models.save(folder, network, tokenizer, config, POSITIONS)
    else:
        models.set_weights(network)
        network.save_pretrained(folder)
        models.write(folder / "tokenizer_config.json", config)
    for name, content in kind.files.items():
        models.write(folder / name, content)
    if architecture.pooling is not None:
        pooling = models.pooling(architecture.pooling)
        models.pipeline(folder, pooling, limit=architecture.limit)
    if architecture.finish is not None:
        architecture.finish(folder)


# Tokenizers


@dataclass(frozen=True)
class TokenizerKind:
    """How to make a tokenizer, its tokenizer_config.json, and its special tokens."""

    make: Callable[[], Any] | None
    config: dict[str, Any]
    pad: str | None = None
    start: str | None = None
    end: str | None = None
    files: dict[str, Any] = field(default_factory=dict)


ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
PROTEIN = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO", ".", "-", "<mask>")


def _roberta() -> Any:
    return models.byte_bpe(ROBERTA_TOKENS, "<s> $A </s>")


def _mpnet() -> Any:
    return models.wordpiece(("<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"), "<s>", "</s>")


def _deberta() -> Any:
    return models.byte_bpe(("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"), "[CLS] $A [SEP]")


def _gpt2() -> Any:
    return models.byte_bpe(("<|endoftext|>",), "$A")


def _llama() -> Any:
    return models.metaspace_bpe(("<unk>", "<s>", "</s>"), "<s> $A")


def _gemma() -> Any:
    return models.metaspace_bpe(("<pad>", "<eos>", "<bos>", "<unk>"), "<bos> $A")


def _qwen() -> Any:
    return models.byte_bpe(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "$A <|endoftext|>")


def _opt() -> Any:
    return models.byte_bpe(ROBERTA_TOKENS, "</s> $A")


def _bloom() -> Any:
    return models.byte_bpe(("<unk>", "<s>", "</s>", "<pad>"), "$A")


def _t5() -> Any:
    return models.unigram(("<pad>", "</s>", "<unk>"), "<unk>", "", "</s>")


def _albert() -> Any:
    return models.unigram(("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"), "<unk>", "[CLS]", "[SEP]")


def _xlnet() -> Any:
    """As in the published tokenizer, the text has token type 0 and the class token 2."""
    from tokenizers.processors import TemplateProcessing

    special = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")
    tokenizer = models.unigram(special, "<unk>", "", "<sep>")
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<sep>", "<cls>")]
    tokenizer.post_processor = TemplateProcessing(single="$A:0 <sep>:0 <cls>:2", special_tokens=ids)
    return tokenizer


def _fast(pad: str, unk: str | None = None, **more: Any) -> dict[str, Any]:
    tokens = {"pad_token": pad} | ({"unk_token": unk} if unk else {})
    return {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, **more}


def _named(kind: str, start: str, end: str, pad: str = "<pad>", unk: str = "<unk>", mask: str = "<mask>") -> Any:
    names = {"bos_token": start, "cls_token": start, "eos_token": end, "sep_token": end}
    return {"tokenizer_class": kind, **names, "pad_token": pad, "unk_token": unk, "mask_token": mask}


ROBERTA = _named("RobertaTokenizer", "<s>", "</s>")
BARE_BERT = models.BERT | {"tokenizer_class": "PreTrainedTokenizerFast"}
TYPELESS: Any = {"model_input_names": ["input_ids", "attention_mask"]}
TOKENIZERS = {
    "bert": TokenizerKind(models.bert_tokenizer, models.BERT, "[PAD]"),
    "bert without types": TokenizerKind(models.bert_tokenizer, BARE_BERT | TYPELESS, "[PAD]"),
    "roberta": TokenizerKind(_roberta, ROBERTA, "<pad>", "<s>", "</s>"),
    "mpnet": TokenizerKind(_mpnet, _named("MPNetTokenizer", "<s>", "</s>", unk="[UNK]"), "<pad>", "<s>", "</s>"),
    "xlmr": TokenizerKind(models.xlmr_tokenizer, models.XLMR, "<pad>", "<s>", "</s>"),
    "deberta": TokenizerKind(
        _deberta, _named("DebertaTokenizer", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"), "[PAD]"
    ),
    "gpt2": TokenizerKind(
        _gpt2,
        _fast("<|endoftext|>") | {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"},
        "<|endoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
    ),
    "gpt2 left": TokenizerKind(
        _gpt2,
        _fast("<|endoftext|>", padding_side="left") | {"tokenizer_class": "GPT2Tokenizer"},
        "<|endoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
    ),
    "llama": TokenizerKind(_llama, _fast("</s>", "<unk>", **TYPELESS), "</s>", "<s>", "</s>"),
    "gemma": TokenizerKind(_gemma, _fast("<pad>", "<unk>", **TYPELESS), "<pad>", "<bos>", "<eos>"),
    "qwen": TokenizerKind(
        _qwen, _fast("<|endoftext|>", padding_side="left", **TYPELESS), "<|endoftext|>", None, "<|endoftext|>"
    ),
    "opt": TokenizerKind(_opt, _fast("<pad>", **TYPELESS), "<pad>", "</s>", "</s>"),
    "bloom": TokenizerKind(_bloom, _fast("<pad>", padding_side="left", **TYPELESS), "<pad>", "<s>", "</s>"),
    "t5": TokenizerKind(_t5, _fast("<pad>", "<unk>", eos_token="</s>", **TYPELESS), "<pad>", None, "</s>"),
    "albert": TokenizerKind(
        _albert, _named("AlbertTokenizer", "[CLS]", "[SEP]", mask="[MASK]"), "<pad>", "[CLS]", "[SEP]"
    ),
    "xlnet": TokenizerKind(
        _xlnet,
        _named("XLNetTokenizer", "<s>", "</s>") | {"cls_token": "<cls>", "sep_token": "<sep>", "padding_side": "left"},
        "<pad>",
        "<s>",
        "</s>",
    ),
    "canine": TokenizerKind(None, {"tokenizer_class": "CanineTokenizer"}),
    "esm": TokenizerKind(
        None,
        {"tokenizer_class": "EsmTokenizer", "pad_token": "<pad>", "cls_token": "<cls>", "unk_token": "<unk>"},
        files={"vocab.txt": "\n".join(PROTEIN)},
    ),
}


# Networks


def _colbert(folder: Path) -> None:
    models.write(folder / "artifact.metadata", {"dim": 16, "query_maxlen": 32, "doc_maxlen": 180})


GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
ONE = {"type_vocab_size": 1}
LEGACY_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "pad_index": 1, "bos_index": 0, "eos_index": 2}
SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
A = Architecture
ENCODERS = (
    A("albert", "AlbertModel", "albert", config={"embedding_size": 16}),
    A("bert", "BertModel"),
    A("big_bird, full attention", "BigBirdModel", config={"attention_type": "original_full"}),
    A("big_bird, sparse attention", "BigBirdModel", config={"block_size": 8, "num_random_blocks": 1}),
    A("bros", "BrosModel"),
    A("camembert", "CamembertModel", "xlmr", config=ONE, extra_positions=2),
    A("canine", "CanineModel", "canine", config={"num_hash_buckets": 512, "downsampling_rate": 4}),
    A("convbert", "ConvBertModel", config={"embedding_size": 32, "head_ratio": 2}),
    A("data2vec-text", "Data2VecTextModel", "roberta", config=ONE, extra_positions=2),
    A("deberta", "DebertaModel", "deberta", "cls", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    A(
        "deberta-v2",
        "DebertaV2Model",
        "deberta",
        "cls",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32, "type_vocab_size": 0},
    ),
    A(
        "distilbert",
        "DistilBertModel",
        "bert",
        config={"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        common=False,
    ),
    A("electra", "ElectraModel", config={"embedding_size": 16}),
    A("ernie", "ErnieModel", config={"use_task_id": True, "task_type_vocab_size": 3}),
    A("esm", "EsmModel", "esm", config={"vocab_size": len(PROTEIN), "pad_token_id": 1, "mask_token_id": 32}),
    A("eurobert", "EuroBertModel", "llama", config={"num_key_value_heads": 2}),
    A("flaubert", "FlaubertModel", "xlmr", config=XLM, common=False),
    A("fnet", "FNetModel", "albert"),
    A(
        "funnel",
        "FunnelModel",
        "bert",
        "cls",
        {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1], "num_decoder_layers": 1},
        common=False,
        positions=None,
    ),
    A("gte", "GteModel", "bert", "cls"),
    A("ibert", "IBertModel", "roberta", config=ONE, extra_positions=2),
    A("jina_embeddings_v3", "JinaEmbeddingsV3Model", "xlmr", config={**ONE, "lora_adaptations": None}),
    A("layoutlm", "LayoutLMModel"),
    A("longformer", "LongformerModel", "roberta", config={**ONE, "attention_window": [16, 16]}, extra_positions=2),
    A("luke", "LukeModel", "roberta", config={**ONE, "entity_vocab_size": 10}, extra_positions=2),
    A("markuplm", "MarkupLMModel", "roberta", extra_positions=2),
    A("megatron-bert", "MegatronBertModel"),
    A(
        "mobilebert",
        "MobileBertModel",
        config={
            "embedding_size": 16,
            "intra_bottleneck_size": 16,
            "true_hidden_size": 16,
            "num_feedforward_networks": 2,
        },
    ),
    A(
        "modernbert",
        "ModernBertModel",
        "bert without types",
        config={"local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3},
    ),
    A("mpnet", "MPNetModel", "mpnet", extra_positions=2),
    A("mra", "MraModel", "roberta", config=ONE, extra_positions=2),
    A("nomic_bert", "NomicBertModel"),
    A("nystromformer", "NystromformerModel", "albert", config={"num_landmarks": 8, "segment_means_seq_len": 8}),
    A("rembert", "RemBertModel", "albert", config={"input_embedding_size": 16, "output_embedding_size": 16}),
    A("roberta", "RobertaModel", "roberta", config=ONE, extra_positions=2),
    A("roberta-prelayernorm", "RobertaPreLayerNormModel", "roberta", config=ONE, extra_positions=2),
    A("roc_bert", "RoCBertModel", "bert without types", config={"enable_pronunciation": False, "enable_shape": False}),
    A("roformer", "RoFormerModel", config={"embedding_size": 32}),
    A("splinter", "SplinterModel"),
    A("squeezebert", "SqueezeBertModel", config={"embedding_size": 32}),
    A("xlm", "XLMModel", "xlmr", config=XLM, common=False),
    A("xlm-roberta", "XLMRobertaModel", "xlmr", config=ONE, extra_positions=2),
    A("xlm-roberta-xl", "XLMRobertaXLModel", "xlmr", config=ONE, extra_positions=2),
    A("xlnet", "XLNetModel", "xlnet", config={"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}, positions=None),
    A(
        "xmod",
        "XmodModel",
        "xlmr",
        config={**ONE, "languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
        extra_positions=2,
    ),
    A("yoso", "YosoModel", "albert", extra_positions=2),
    A(
        "reformer",
        "ReformerModel",
        "bert without types",
        config={
            "attn_layers": ["local", "local"],
            "axial_pos_shape": [8, 16],
            "axial_pos_embds_dim": [16, 16],
            "hidden_size": 32,
            "feed_forward_size": 64,
            "num_attention_heads": 4,
            "attention_head_size": 8,
            "local_attn_chunk_length": 16,
            "is_decoder": False,
        },
        common=False,
    ),
)
CAUSAL = (
    A("biogpt", "BioGptModel", "roberta", "lasttoken"),
    A("bloom", "BloomModel", "bloom", "lasttoken", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, False, None),
    A("codegen", "CodeGenModel", "gpt2", "mean", {**LEGACY_GPT, "rotary_dim": 8}, False, "n_positions"),
    A("falcon", "FalconModel", "llama", "lasttoken", {"new_decoder_architecture": False}),
    A("gemma", "GemmaModel", "gemma", config=GROUPED),
    A("gemma2", "Gemma2Model", "gemma", config={**GROUPED, "sliding_window": 16}),
    A("gemma3_text", "Gemma3TextModel", "gemma", config={**GROUPED, "sliding_window": 16}),
    A("gpt2", "GPT2Model", "gpt2", "mean", LEGACY_GPT, False, "n_positions"),
    A("gpt2, padded on the left", "GPT2Model", "gpt2 left", "lasttoken", LEGACY_GPT, False, "n_positions"),
    A(
        "gpt_neo",
        "GPTNeoModel",
        "gpt2",
        "mean",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        False,
    ),
    A("gpt_neox", "GPTNeoXModel", "gpt2", "lasttoken"),
    A("gptj", "GPTJModel", "gpt2", "mean", {**LEGACY_GPT, "rotary_dim": 8}, False, "n_positions"),
    A("llama", "LlamaModel", "llama", "lasttoken", {"num_key_value_heads": 2}),
    A("mamba", "MambaModel", "gpt2", "lasttoken", {"hidden_size": 32, "num_hidden_layers": 2}, False, None),
    A("mistral", "MistralModel", "llama", "lasttoken", {"num_key_value_heads": 2, "sliding_window": 16}),
    A("modernbert-decoder", "ModernBertDecoderModel", "bert without types", "lasttoken", {"local_attention": 16}),
    A("olmo", "OlmoModel", "gpt2", "lasttoken"),
    A("opt", "OPTModel", "opt", "mean", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    A("phi3", "Phi3Model", "llama", "lasttoken", {"num_key_value_heads": 2}),
    A("qwen2", "Qwen2Model", "qwen", "lasttoken", {"num_key_value_heads": 2}),
    A("qwen3", "Qwen3Model", "qwen", "lasttoken", GROUPED),
    A("rwkv", "RwkvModel", "gpt2", "mean", {"hidden_size": 32, "num_hidden_layers": 2}, False, None),
    A(
        "xglm",
        "XGLMModel",
        "xlmr",
        "mean",
        {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
        False,
    ),
)
TEXT_TO_TEXT = (
    A("bart", "BartModel", "roberta", None, SEQ2SEQ, False),
    A("m2m_100", "M2M100Model", "xlmr", None, SEQ2SEQ, False),
    A("mt5, encoder", "MT5EncoderModel", "t5", "mean", {**T5, "feed_forward_proj": "gated-gelu"}, False, None),
    A("t5, encoder", "T5EncoderModel", "t5", "mean", T5, False, None),
    A("umt5, encoder", "UMT5EncoderModel", "t5", "mean", {**T5, "feed_forward_proj": "gated-gelu"}, False, None),
)
OTHERS = (
    A("bert, ColBERT", "BertModel", pooling=None, finish=_colbert),
    A("bert, reranker", "BertForSequenceClassification", pooling=None, config={"num_labels": 1}),
    A("bert, raw folder", "BertModel", pooling=None),
    A("gpt2, raw folder", "GPT2Model", "gpt2", None, LEGACY_GPT, False, "n_positions"),
    A("xlm-roberta, raw folder", "XLMRobertaModel", "xlmr", None, ONE, extra_positions=2),
)
ARCHITECTURES = {one.name: one for one in (*ENCODERS, *CAUSAL, *TEXT_TO_TEXT, *OTHERS)}
