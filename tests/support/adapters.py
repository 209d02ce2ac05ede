"""Adapters of small models, written by peft and sentence-transformers."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import models

LAYERS = {"all-MiniLM-L6-v2-shape": ["query", "value"], "Qwen3-Embedding-0.6B": ["q_proj", "v_proj"]}


def adapter_settings(name: str, **settings: Any) -> Any:
    from peft import LoraConfig

    values: Any = {"r": 4, "lora_alpha": 8, "target_modules": LAYERS.get(name, ["query", "value"])}
    return LoraConfig(**(values | settings))


def set_adapter_weights(network: Any) -> None:
    """Set random weights large enough to change every vector clearly."""
    import torch

    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "lora_" in key and "magnitude" not in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def build_adapter_pipeline(folder: Path, name: str, base: Path | str | None = None, **settings: Any) -> None:
    """A sentence-transformers pipeline whose Transformer is an adapter of a model, in the layout of its own `save`."""
    from sentence_transformers import SentenceTransformer

    pipeline: Any = SentenceTransformer(str(base or models.folder(name)), device="cpu", local_files_only=True)
    pipeline[0].model.add_adapter(adapter_settings(name, **settings))
    set_adapter_weights(pipeline)
    pipeline.save(str(folder), create_model_card=False)


def build_raw_adapter(
    folder: Path, name: str, base: Path | None = None, *, tokenizer: bool = False, **settings: Any
) -> None:
    """A folder as peft saves it: the adapter, and perhaps the base model's tokenizer."""
    from peft import get_peft_model
    from transformers import AutoModel

    home = base or models.folder(name)
    with warnings.catch_warnings():
        # peft reads attributes that transformers has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        network = get_peft_model(AutoModel.from_pretrained(home), adapter_settings(name, **settings))
    set_adapter_weights(network)
    network.save_pretrained(str(folder))
    if tokenizer:
        add_tokenizer(folder, home)


def add_tokenizer(folder: Path, base: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder / name)
