"""Static models with random vectors, for measurements where only the amount of work counts: model2vec folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def word_model(folder: Path, words: Sequence[str], dim: int) -> Path:
    """A static model in `folder` (made) whose tokens are `words`, split at white space."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return finished(folder, 1 + len(words), dim)


def borrowed_model(folder: Path, model: Path, dim: int) -> Path:
    """A static model in `folder` (made) with the tokenizer of the transformer in `model`."""
    from tokenizers import Tokenizer

    folder.mkdir(parents=True)
    shutil.copy(model / "tokenizer.json", folder)
    last = max(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab().values())
    return finished(folder, last + 1, dim)


def finished(folder: Path, tokens: int, dim: int) -> Path:
    """Write the configuration and a table of normally distributed vectors, float32 [tokens, dim]."""
    from safetensors.numpy import save_file

    table = np.random.default_rng(0).standard_normal((tokens, dim), np.float32)
    save_file({"embeddings": table}, folder / "model.safetensors")
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": dim, "normalize": True}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder
