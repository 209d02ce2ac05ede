"""A small random BGE-M3 in its published layout, and its heads computed anew from the published formulas."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models

LIMIT = 512
HEAD_FILES = ("sparse_linear.pt", "colbert_linear.pt")
DIM = models.SIZE["hidden_size"]


def build_bge_m3(folder: Path, *, token_dim: int = DIM) -> Path:
    """XLM-R with CLS pooling and Normalize, its weights as a pickle, and the two files of its heads."""
    import torch
    from transformers import XLMRobertaModel

    models.xlm_roberta(folder)
    models.pipeline(folder, models.pooling("cls"), models.NORMALIZE, limit=LIMIT)
    torch.save(XLMRobertaModel.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    generator = torch.Generator().manual_seed(33)
    for name, outputs in zip(HEAD_FILES, (1, token_dim), strict=True):
        layer = torch.nn.Linear(DIM, outputs)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / DIM**0.5)
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.2 + 0.3)
        torch.save(layer.state_dict(), folder / name)
    return folder


def put_in_hub_cache(folder: Path, cache: Path, leave_out: Sequence[str] = ()) -> Path:
    """Put a model into a hub cache as BAAI/bge-m3. Returns its snapshot folder."""
    repo = cache / "models--BAAI--bge-m3"
    snapshot = repo / "snapshots" / ("5" * 40)
    shutil.copytree(folder, snapshot, ignore=shutil.ignore_patterns(*leave_out))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("5" * 40)
    return snapshot


def compute_heads(folder: Path, texts: Sequence[str], *, limit: int = LIMIT) -> list[dict[str, Any]]:
    """The vectors of each text by transformers alone, one text at a time.

    The formulas are those of the paper (BGE M3-Embedding, section 3.2) and of M3Embedder in FlagEmbedding: dense is the
    normalized state of the first token; sparse is for each token of the vocabulary the largest relu(w h + b) of its
    occurrences, without <s>, </s>, <pad> and <unk>; a vector for each other token is the normalized W h + b.

    Returns:
        For each text: `dense` float32 [dim], `sparse` {token: weight}, `multi_vector` float32 [tokens - 1, dim].
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModel.from_pretrained(folder, weights_only=True).eval()
    sparse, tokens = (torch.load(folder / name, weights_only=True) for name in HEAD_FILES)
    ignored = {0, 1, 2, 3}
    assert [tokenizer.convert_ids_to_tokens(number) for number in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    found: list[dict[str, Any]] = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        with torch.no_grad():
            states = network(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long())[0][0]
            weights = (states @ sparse["weight"][0] + sparse["bias"][0]).clamp(min=0).tolist()
            vectors = states[1:] @ tokens["weight"].T + tokens["bias"]
        terms: dict[int, float] = {}
        for token, weight in zip(ids, weights, strict=True):
            if token not in ignored and weight > 0:
                terms[token] = max(weight, terms.get(token, 0.0))
        found.append(
            {
                "dense": (states[0] / states[0].norm()).numpy(),
                "sparse": terms,
                "multi_vector": (vectors / vectors.norm(dim=1, keepdim=True)).numpy(),
            }
        )
    return found


def write_dangerous_pickle(path: Path, touched: Path) -> None:
    """Replace a file by a pickle that makes a folder when it is loaded without care."""
    import torch

    class Dangerous:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(touched),)

    torch.save({"weight": Dangerous()}, path)
