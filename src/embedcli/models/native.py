"""Published models with code of their own that are a renamed architecture of transformers.

They are loaded as that architecture: nothing of their code is imported, needed or fetched. The configuration is
translated; transformers itself renames the tensors, and whoever loads the model checks that every tensor fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedcli.models.files import read_json_object, walk_modules

Config = dict[str, Any]
# What every configuration of transformers may have, whatever the architecture.
COMMON_KEYS = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
    "initializer_range", "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id", "torch_dtype", "dtype",
    "id2label", "label2id",
}  # fmt: skip
# The GPT-2 style names of nomic_bert's own configuration.
NOMIC_NAMES = {
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_inner": "intermediate_size", "n_positions": "max_position_embeddings", "layer_norm_epsilon": "layer_norm_eps",
}  # fmt: skip
# The variants of nomic_bert's own code that the network of transformers computes.
NOMIC_VARIANT = {
    "activation_function": "swiglu", "prenorm": False, "parallel_block": False, "qkv_proj_bias": False,
    "mlp_fc1_bias": False, "mlp_fc2_bias": False, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None, "use_rms_norm": False, "causal": False,
}  # fmt: skip
NEW_VARIANT = {
    "position_embedding_type": "rope", "layer_norm_type": "layer_norm", "logn_attention_scale": False, "pack_qkv": True,
}  # fmt: skip


@dataclass(frozen=True)
class NativeEquivalent:
    """An architecture of transformers that computes what a model's own code computes.

    Attributes:
        own_type: The model type in the published configuration.
        native_type: The model type of the architecture in transformers.
        config: The configuration for that architecture.
    """

    own_type: str
    native_type: str
    config: Mapping[str, Any]


def find_native_equivalent(config: Mapping[str, Any]) -> NativeEquivalent | None:
    """The equivalent of a model with own code in transformers, by its config.json; None if there is none."""
    own_type = str(config.get("model_type", ""))
    if own_type not in NATIVE_TYPES or not config.get("auto_map"):
        return None
    native_type, translate = NATIVE_TYPES[own_type]
    translated = translate(dict(config))
    if translated is None:
        return None
    return NativeEquivalent(own_type, native_type, translated | {"model_type": native_type})


def find_native_modules(folder: Path, *, trusts_code: bool) -> dict[Path, NativeEquivalent]:
    """Find the modules of a pipeline that are loaded as an architecture of transformers.

    Args:
        folder: The model's folder.
        trusts_code: Whether the model's own code may run: it is then preferred, except where transformers knows the
            model type, and so ignores the code.

    Returns:
        The equivalents by the path of the module's config.json, relative to `folder`.
    """
    found = {}
    for kind, path in walk_modules(folder):
        equivalent = find_native_equivalent(read_json_object(folder / path / "config.json"))
        if equivalent is None or (trusts_code and equivalent.own_type != equivalent.native_type):
            continue
        if kind == "Transformer":
            found[Path(path) / "config.json"] = equivalent
    return found


def _translate_bilingual(config: Config) -> Config | None:
    """bilingual-embedding-*: XLM-RoBERTa with renamed classes (the code is a copy of that of transformers 4)."""
    return {key: value for key, value in config.items() if key != "auto_map"} | {"architectures": ["XLMRobertaModel"]}


def _translate_new(config: Config) -> Config | None:
    """Alibaba-NLP's `new`: GTE. With factor s its NTK scaling multiplies theta by s and divides all frequencies.

    The divisor is s ** (2 / d) for heads of d numbers, as in the published code: linear scaling by that factor.
    """
    if any(config.get(key, value) != value for key, value in NEW_VARIANT.items()):
        return None
    theta, scaling = float(config.get("rope_theta", 10000.0)), config.get("rope_scaling") or {}
    rope: Config = {"rope_type": "default", "rope_theta": theta}
    if scaling:
        if scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
            return None
        factor, head_size = float(scaling["factor"]), config["hidden_size"] // config["num_attention_heads"]
        rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head_size)}
    kept = {key: value for key, value in config.items() if key in COMMON_KEYS}
    return kept | {"architectures": ["GteModel"], "rope_parameters": rope}


def _translate_nomic(config: Config) -> Config | None:
    """nomic-embed-text-v1 and v1.5: the network of transformers has the same name and other configuration keys."""
    if "n_embd" not in config or any(config.get(key, value) != value for key, value in NOMIC_VARIANT.items()):
        return None
    kept = {key: value for key, value in config.items() if key in COMMON_KEYS}
    kept |= {new: _as_integer(config[old]) for old, new in NOMIC_NAMES.items() if config.get(old) is not None}
    rope = {"rope_type": "default", "rope_theta": float(config.get("rotary_emb_base") or 10000.0)}
    return kept | {"architectures": ["NomicBertModel"], "hidden_act": "silu", "rope_parameters": rope}


def _as_integer(value: Any) -> Any:
    """2048.0 as 2048, which strict configurations ask for."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# By the published model type: the model type in transformers and the translation of the configuration, which returns
# None for a variant that the network of transformers does not compute.
NATIVE_TYPES: dict[str, tuple[str, Callable[[Config], Config | None]]] = {
    "bilingual": ("xlm-roberta", _translate_bilingual),
    "new": ("gte", _translate_new),
    "nomic_bert": ("nomic_bert", _translate_nomic),
}
