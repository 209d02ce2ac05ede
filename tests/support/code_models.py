"""A model whose Python code is in another repository of the hub, as some publish it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models

CODE = "ann/network-code"
MODEL = "ann/embedding"
CONFIGURATION = """
from transformers import PretrainedConfig


class RolledConfig(PretrainedConfig):
    model_type = "rolled"

    def __init__(self, vocab_size=900, hidden_size=32, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        super().__init__(**kwargs)
"""
MODELING = """
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .config import RolledConfig
from .rolling import roll


class RolledModel(PreTrainedModel):
    config_class = RolledConfig

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return BaseModelOutput(last_hidden_state=roll(self.embeddings(input_ids)))
"""
ROLLING = """
def roll(states):
    return states.roll({steps}, dims=-1)
"""


def code_files(steps: int) -> dict[str, bytes]:
    """The code repository: a configuration, a network, and a file that only the network imports."""
    return {
        "config.py": CONFIGURATION.encode(),
        "modeling.py": MODELING.encode(),
        "rolling.py": ROLLING.format(steps=steps).encode(),
        "README.md": b"# Code",
        "picture.bin": b"not for pulling",
    }


def write_model(folder: Path, code: str = CODE) -> Path:
    """Write a model of one embedding table, whose configuration names `code`."""
    import torch
    from safetensors.torch import save_file

    tokenizer = models.bert_tokenizer()
    size = {"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 32}
    table = torch.randn(size["vocab_size"], size["hidden_size"], generator=torch.Generator().manual_seed(5))
    folder.mkdir(parents=True)
    save_file({"embeddings.weight": table}, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    models.write(folder / "tokenizer_config.json", models.BERT | {"model_max_length": 128})
    classes = {"AutoConfig": f"{code}--config.RolledConfig", "AutoModel": f"{code}--modeling.RolledModel"}
    models.write(
        folder / "config.json", {"model_type": "rolled", "architectures": ["RolledModel"], "auto_map": classes, **size}
    )
    models.pipeline(folder, models.pooling(), limit=64)
    return folder


def change_json(file: Path, **values: Any) -> None:
    """Set keys of a JSON object in a file."""
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


def read_files(folder: Path) -> dict[str, bytes]:
    """The contents of all files of a folder by their paths in it."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
