"""How much a transformer computes for each token, read from its files alone."""

from __future__ import annotations

import math
from pathlib import Path

from embedcli.benchmark.statistics import Shape
from embedcli.core.errors import ModelError
from embedcli.models.files import read_json
from embedcli.models.weights import header

# Tensors that a forward pass only looks up, or does not touch: nothing is multiplied by them.
UNMULTIPLIED = ("embeddings", "embed_tokens", "wte", "wpe", "pooler", "lm_head", "cls")
LAYERS = ("num_hidden_layers", "n_layers", "n_layer")
WIDTHS = ("hidden_size", "dim", "n_embd")


def shape_of(folder: Path) -> Shape | None:
    """The shape of a transformer folder; None where its files do not tell (no safetensors, an unusual config)."""
    try:
        config = read_json(folder / "config.json")
        names = {name: entry for file in sorted(folder.glob("*.safetensors")) for name, entry in header(file).items()}
    except ModelError:
        return None
    text = config.get("text_config") or config
    layers = next((int(text[key]) for key in LAYERS if key in text), None)
    hidden = next((int(text[key]) for key in WIDTHS if key in text), None)
    if not names or layers is None or hidden is None:
        return None
    return Shape(sum(size(entry) for name, entry in names.items() if multiplied(name)), layers, hidden)


def multiplied(name: str) -> bool:
    """Whether each token is multiplied by this tensor."""
    return not set(name.split(".")) & set(UNMULTIPLIED)


def size(entry: dict[str, list[int]]) -> int:
    return math.prod(int(length) for length in entry["shape"])
