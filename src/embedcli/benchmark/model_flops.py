"""How much a transformer computes for each token, read from its files without loading it."""

from __future__ import annotations

import math
from pathlib import Path

from embedcli.benchmark.statistics import TransformerShape
from embedcli.core.errors import ModelError
from embedcli.models.files import read_json
from embedcli.models.weights import read_header

# Parts of the names of tensors that a forward pass only looks up or does not use.
NOT_MULTIPLIED = ("embeddings", "embed_tokens", "wte", "wpe", "pooler", "lm_head", "cls")
LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer")
WIDTH_KEYS = ("hidden_size", "dim", "n_embd")


def read_transformer_shape(folder: Path) -> TransformerShape | None:
    """Read the size of the transformer in a folder; None without safetensors or with an unusual config."""
    try:
        config = read_json(folder / "config.json")
        tensors = {
            name: entry for file in sorted(folder.glob("*.safetensors")) for name, entry in read_header(file).items()
        }
    except ModelError:
        return None
    text_config = config.get("text_config") or config
    layers = next((int(text_config[key]) for key in LAYER_KEYS if key in text_config), None)
    hidden = next((int(text_config[key]) for key in WIDTH_KEYS if key in text_config), None)
    if not tensors or layers is None or hidden is None:
        return None
    parameters = sum(count_elements(entry) for name, entry in tensors.items() if is_multiplied(name))
    return TransformerShape(parameters, layers, hidden)


def is_multiplied(name: str) -> bool:
    """Whether each token is multiplied by the tensor of this name."""
    return not set(name.split(".")) & set(NOT_MULTIPLIED)


def count_elements(entry: dict[str, list[int]]) -> int:
    return math.prod(int(length) for length in entry["shape"])
