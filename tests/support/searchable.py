"""A tiny static model in sentence-transformers' layout, with prompts, and outputs that it made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedcli.analysis.text_encoder import TextEncoder
from embedcli.core.job import Job
from sample_outputs import make_output

TOPICS = {
    "animals": "cat dog fox horse mouse",
    "weather": "rain sun wind snow storm",
    "kitchen": "pan spoon kettle stove bread",
}
PROMPTS = {"query": "query: ", "document": "passage: "}
DIM = 24
TEXTS = [
    "cat dog", "rain wind", "pan spoon", "fox horse cat", "snow storm", "kettle stove", "mouse", "sun", "bread pan",
    "dog horse rain", "wind kettle", "storm storm rain",
]  # fmt: skip


def model_folder(path: Path, prompts: Mapping[str, str] | None = None, dim: int = DIM) -> Path:
    """A StaticEmbedding and Normalize: words of one topic lie near each other, prompts far from all."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = [word for topic in TOPICS.values() for word in topic.split()]
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *words, "query", "passage", ":"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()  # drops control characters: such a text has no token
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    random = np.random.default_rng(7)
    centers = random.standard_normal((len(TOPICS), dim)) * 2
    table = random.standard_normal((len(vocabulary), dim)) * 0.7
    for i in range(len(words)):
        table[1 + i] += centers[i // 5]
    path.mkdir(parents=True)
    tokenizer.save(str(path / "tokenizer.json"))
    save_file({"embedding.weight": table.astype(np.float32)}, str(path / "model.safetensors"))
    modules = ["StaticEmbedding", "Normalize"]
    listed = [
        {
            "idx": i,
            "name": str(i),
            "path": "" if not i else f"{i}_{name}",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(modules)
    ]
    (path / "modules.json").write_text(json.dumps(listed), "utf-8")
    settings = {"prompts": dict(prompts or {}), "default_prompt_name": None}
    (path / "config_sentence_transformers.json").write_text(json.dumps(settings), "utf-8")
    return path


def embedded(path: Path, model: Path, texts: Sequence[str] = TEXTS, *, kept: bool = True, **flags: Any) -> Path:
    """`texts` as an output at `path`, as `embedcli encode --model MODEL --keep text` would make it."""
    stored_as = flags.pop("precision", "float32")
    with TextEncoder(Job((), "", model=str(model), **flags)) as encoder:
        vectors, space = encoder.encode(texts), dict(encoder.vector_space)
    ids = [f"t{i}" for i in range(len(texts))]
    return make_output(path, vectors, ids=ids, kept={"text": texts} if kept else None, stored_as=stored_as, space=space)
