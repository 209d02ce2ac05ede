"""Models with Python code of their own, which needs and does what the published code needs and does.

The bilingual models come with an older copy of transformers' XLM-RoBERTa in which classes are renamed: it imports
functions and calls methods that transformers 5 has removed. The `new` models (GTE) have a network of their own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import models

BILINGUAL_REPOSITORY = "dangvantuan/bilingual_impl"
BILINGUAL_CONFIG = """
from collections import OrderedDict
from typing import Mapping

from transformers.configuration_utils import PretrainedConfig
from transformers.onnx import OnnxConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)


class BilingualConfig(PretrainedConfig):
    model_type = "bilingual"

    def __init__(
        self, vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        hidden_act="gelu", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, max_position_embeddings=512,
        type_vocab_size=2, initializer_range=0.02, layer_norm_eps=1e-12, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        position_embedding_type="absolute", use_cache=True, classifier_dropout=None, **kwargs,
    ):
        super().__init__(pad_token_id=pad_token_id, bos_token_id=bos_token_id, eos_token_id=eos_token_id, **kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.hidden_act = hidden_act
        self.intermediate_size = intermediate_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.position_embedding_type = position_embedding_type
        self.use_cache = use_cache
        self.classifier_dropout = classifier_dropout


class BilingualOnnxConfig(OnnxConfig):
    @property
    def inputs(self) -> Mapping[str, Mapping[int, str]]:
        axes = {0: "batch", 1: "sequence"}
        return OrderedDict([("input_ids", axes), ("attention_mask", axes)])
"""
BILINGUAL_MODELING = """
import math

import torch
from torch import nn
from transformers.activations import ACT2FN, gelu
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import (
    apply_chunking_to_forward,
    find_pruneable_heads_and_indices,
    prune_linear_layer,
)
from transformers.utils import logging

from .config import BilingualConfig

logger = logging.get_logger(__name__)


class BilingualEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, size, padding_idx=config.pad_token_id
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        self.LayerNorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        positions = torch.arange(config.max_position_embeddings).expand((1, -1))
        self.register_buffer("position_ids", positions, persistent=False)
        self.register_buffer("token_type_ids", torch.zeros(positions.size(), dtype=torch.long), persistent=False)
        self.padding_idx = config.pad_token_id

    def forward(self, input_ids, token_type_ids):
        known = input_ids.ne(self.padding_idx).int()
        positions = (torch.cumsum(known, dim=1).type_as(known) * known).long() + self.padding_idx
        summed = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(summed + self.position_embeddings(positions)))


class BilingualSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def split(self, x):
        return x.view(*x.shape[:-1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, hidden, mask, head_mask):
        query, key, value = self.split(self.query(hidden)), self.split(self.key(hidden)), self.split(self.value(hidden))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
        weights = nn.functional.softmax(scores + mask, dim=-1)
        if head_mask is not None:
            weights = weights * head_mask
        mixed = torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous()
        return mixed.view(*hidden.shape)


class BilingualSelfOutput(nn.Module):
    def __init__(self, config, inside):
        super().__init__()
        self.dense = nn.Linear(inside, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden, residual):
        return self.LayerNorm(self.dense(hidden) + residual)


class BilingualAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self = BilingualSelfAttention(config)
        self.output = BilingualSelfOutput(config, config.hidden_size)

    def prune_heads(self, heads):
        heads, index = find_pruneable_heads_and_indices(heads, self.self.heads, 8, set())
        self.self.query = prune_linear_layer(self.self.query, index)

    def forward(self, hidden, mask, head_mask):
        return self.output(self.self(hidden, mask, head_mask), hidden)


class BilingualIntermediate(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden):
        return self.activation(self.dense(hidden))


class BilingualLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention = BilingualAttention(config)
        self.intermediate = BilingualIntermediate(config)
        self.output = BilingualSelfOutput(config, config.intermediate_size)

    def feed_forward(self, hidden):
        return self.output(self.intermediate(hidden), hidden)

    def forward(self, hidden, mask, head_mask):
        return apply_chunking_to_forward(self.feed_forward, 0, 1, self.attention(hidden, mask, head_mask))


class BilingualEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList([BilingualLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, hidden, mask, head_mask):
        for layer, layer_mask in zip(self.layer, head_mask):
            hidden = layer(hidden, mask, layer_mask)
        return hidden


class BilingualPooler(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden):
        return torch.tanh(self.dense(hidden[:, 0]))


class BilingualPreTrainedModel(PreTrainedModel):
    config_class = BilingualConfig
    base_model_prefix = "roberta"

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)


class BilingualModel(BilingualPreTrainedModel):
    def __init__(self, config, add_pooling_layer=True):
        super().__init__(config)
        self.embeddings = BilingualEmbeddings(config)
        self.encoder = BilingualEncoder(config)
        self.pooler = BilingualPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def forward(
        self, input_ids=None, attention_mask=None, token_type_ids=None, head_mask=None, encoder_attention_mask=None,
        return_dict=None, **kwargs,
    ):
        shape = input_ids.size()
        self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        if attention_mask is None:
            attention_mask = torch.ones(shape, device=input_ids.device)
        if token_type_ids is None:
            token_type_ids = self.embeddings.token_type_ids[:, : shape[1]].expand(shape)
        mask = self.get_extended_attention_mask(attention_mask, shape)
        if encoder_attention_mask is not None:
            encoder_attention_mask = self.invert_attention_mask(encoder_attention_mask)
        head_mask = self.get_head_mask(head_mask, self.config.num_hidden_layers)
        hidden = self.encoder(self.embeddings(input_ids, token_type_ids), mask, head_mask)
        pooled = self.pooler(hidden) if self.pooler is not None else None
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)
"""
NEW_CONFIG = """
from transformers.configuration_utils import PretrainedConfig


class NewConfig(PretrainedConfig):
    model_type = "new"

    def __init__(
        self, vocab_size=30528, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        hidden_act="gelu", max_position_embeddings=2048, type_vocab_size=1, layer_norm_type="layer_norm",
        layer_norm_eps=1e-12, position_embedding_type="rope", rope_theta=10000.0, rope_scaling=None, pack_qkv=True,
        unpad_inputs=False, use_memory_efficient_attention=False, logn_attention_scale=False, **kwargs,
    ):
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
"""
NEW_MODELING = """
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from .configuration import NewConfig


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class NewEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.size = config.hidden_size // config.num_attention_heads
        scaling = config.rope_scaling or {}
        self.factor, self.theta = scaling.get("factor"), config.rope_theta

    def frequencies(self, count):
        base = self.theta * (self.factor or 1)
        steps = torch.arange(0, self.size, 2).float() / self.size
        inverse = 1.0 / base**steps
        if self.factor:
            inverse = inverse / self.factor ** (2 / self.size)
        angles = torch.outer(torch.arange(count).float(), inverse)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def forward(self, input_ids):
        summed = self.word_embeddings(input_ids) + self.token_type_embeddings(torch.zeros_like(input_ids))
        return self.LayerNorm(summed), self.frequencies(input_ids.shape[1])


class NewAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden, mask, rope):
        rows, length, width = hidden.shape
        query, key, value = (
            part.view(rows, length, self.heads, self.size).transpose(1, 2)
            for part in self.qkv_proj(hidden).split(width, dim=-1)
        )
        cos, sin = rope
        query, key = query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(rows, length, width))


class NewGatedMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.inside = config.intermediate_size
        self.up_gate_proj = nn.Linear(config.hidden_size, 2 * self.inside, bias=False)
        self.down_proj = nn.Linear(self.inside, config.hidden_size)

    def forward(self, hidden):
        up, gate = self.up_gate_proj(hidden).split(self.inside, dim=-1)
        return self.down_proj(nn.functional.gelu(gate) * up)


class NewLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention, self.mlp = NewAttention(config), NewGatedMLP(config)
        self.attn_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden, mask, rope):
        hidden = self.attn_ln(hidden + self.attention(hidden, mask, rope))
        return self.mlp_ln(hidden + self.mlp(hidden))


class NewEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList([NewLayer(config) for _ in range(config.num_hidden_layers)])


class NewModel(PreTrainedModel):
    config_class = NewConfig
    base_model_prefix = "new"

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = NewEmbeddings(config)
        self.encoder = NewEncoder(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        hidden, rope = self.embeddings(input_ids)
        mask = attention_mask[:, None, None, :].bool()
        for layer in self.encoder.layer:
            hidden = layer(hidden, mask, rope)
        return BaseModelOutputWithPooling(last_hidden_state=hidden)
"""


def edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(content | values), "utf-8")


@models.model("bilingual-embedding-small")
def _bilingual_small(folder: Path) -> None:
    """Code in the folder; positions from 1, two token types, 512 positions."""
    _bilingual(folder, positions=512, pad_id=0, token_types=2)
    _write_code(folder, "")


@models.model("bilingual-embedding-base")
def _bilingual_base(folder: Path) -> None:
    """Code in another repository."""
    _bilingual(folder, positions=514, pad_id=1, token_types=1)
    _write_code(folder, BILINGUAL_REPOSITORY)


@models.model("bilingual-embedding-large")
def _bilingual_large(folder: Path) -> None:
    """Weights in float16 beside a configuration that says float32."""
    from safetensors.torch import load_file, save_file

    _bilingual(folder, positions=514, pad_id=1, token_types=1)
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit(folder / "config.json", torch_dtype="float32", dtype="float32")
    _write_code(folder, BILINGUAL_REPOSITORY)


def _bilingual(folder: Path, *, positions: int, pad_id: int, token_types: int) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>") if pad_id else ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
    tokenizer = models.unigram(special, "<unk>", "<s>", "</s>")
    network_config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=positions, type_vocab_size=token_types,
        pad_token_id=pad_id, bos_token_id=1 - pad_id, eos_token_id=2, layer_norm_eps=1e-5, **models.SIZE,
    )  # fmt: skip
    models.save(folder, XLMRobertaModel(network_config), tokenizer, models.XLMR, 512)
    models.pipeline(folder, models.pooling(), models.NORMALIZE, limit=512)


def _write_code(folder: Path, repository: str) -> None:
    prefix = f"{repository}--" if repository else ""
    if not repository:
        write_bilingual_code(folder)
    edit(
        folder / "config.json",
        architectures=["BilingualModel"],
        auto_map={"AutoConfig": f"{prefix}config.BilingualConfig", "AutoModel": f"{prefix}modeling.BilingualModel"},
        model_type="bilingual",
    )


def write_bilingual_code(folder: Path) -> None:
    """Write the Python files of the bilingual models, as their repository has them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.py").write_text(BILINGUAL_CONFIG, "utf-8")
    (folder / "modeling.py").write_text(BILINGUAL_MODELING, "utf-8")


@models.model("gte-multilingual-base")
def _gte_multilingual(folder: Path) -> None:
    """A `new` model with NTK scaling and the tokenizer of XLM-R; its weights come from its own code."""
    import torch
    from safetensors.torch import save_file

    tokenizer = models.xlmr_tokenizer()
    size, inside = models.SIZE["hidden_size"], models.SIZE["intermediate_size"]
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int, scale: float) -> Any:
        return torch.randn(shape, generator=generator) * scale

    weights = {
        "embeddings.word_embeddings.weight": random(tokenizer.get_vocab_size(), size, scale=1.0),
        "embeddings.token_type_embeddings.weight": random(1, size, scale=0.3),
        "embeddings.LayerNorm.weight": torch.ones(size),
        "embeddings.LayerNorm.bias": torch.zeros(size),
    }
    for layer in range(2):
        shapes = {
            "attention.qkv_proj.weight": (3 * size, size), "attention.qkv_proj.bias": (3 * size,),
            "attention.o_proj.weight": (size, size), "attention.o_proj.bias": (size,),
            "mlp.up_gate_proj.weight": (2 * inside, size), "mlp.down_proj.weight": (size, inside),
            "mlp.down_proj.bias": (size,),
        }  # fmt: skip
        weights |= {f"encoder.layer.{layer}.{name}": random(*shape, scale=0.2) for name, shape in shapes.items()}
        for norm in ("attn_ln", "mlp_ln"):
            weights[f"encoder.layer.{layer}.{norm}.weight"] = torch.ones(size)
            weights[f"encoder.layer.{layer}.{norm}.bias"] = torch.zeros(size)
    folder.mkdir(parents=True)
    save_file(
        {f"new.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    models.write(folder / "tokenizer_config.json", models.XLMR | {"model_max_length": 8192})
    prefix = "Alibaba-NLP/new-impl--"
    config = {
        "architectures": ["NewModel"], "model_type": "new", "vocab_size": tokenizer.get_vocab_size(),
        "auto_map": {"AutoConfig": f"{prefix}configuration.NewConfig", "AutoModel": f"{prefix}modeling.NewModel"},
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "layer_norm_type": "layer_norm", "logn_attention_scale": False,
        "max_position_embeddings": 8192, "pack_qkv": True, "pad_token_id": 1, "position_embedding_type": "rope",
        "rope_scaling": {"factor": 8.0, "type": "ntk"}, "rope_theta": 20000, "type_vocab_size": 1,
        "torch_dtype": "float32", "unpad_inputs": False, "use_memory_efficient_attention": False, **models.SIZE,
    }  # fmt: skip
    models.write(folder / "config.json", config)
    models.pipeline(folder, models.pooling("cls"), models.NORMALIZE, limit=512)


def write_new_code(folder: Path) -> None:
    """Write the Python files of the `new` models, as their repository has them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "configuration.py").write_text(NEW_CONFIG, "utf-8")
    (folder / "modeling.py").write_text(NEW_MODELING, "utf-8")


def with_code_beside(name: str, target: Path) -> Path:
    """A copy of a model with its code in the folder, as the libraries load it without a hub."""
    shutil.copytree(models.folder(name), target)
    auto_map = json.loads((target / "config.json").read_text())["auto_map"]
    edit(target / "config.json", auto_map={key: value.rpartition("--")[2] for key, value in auto_map.items()})
    write_new_code(target) if name.startswith("gte") else write_bilingual_code(target)
    return target
