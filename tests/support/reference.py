"""Reference vectors from sentence-transformers, and a plain loop instead of the engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from embedcli import encoders
from embedcli.core import batching
from embedcli.core.encoder import BaseEncoder
from embedcli.core.job import Job
from embedcli.models import resolve

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("torch", "transformers", "tokenizers", "sentence-transformers")


def job(model: str | Path = "all-MiniLM-L6-v2", **values: Any) -> Job:
    return Job(inputs=("in.jsonl",), output="out.parquet", model=str(model), **({"engine": "torch"} | values))


def load(model: str | Path = "all-MiniLM-L6-v2", **values: Any) -> Any:
    """An encoder on the CPU, with one thread: these matrices are small, and other tests want the other cores."""
    return encoders.load_encoder(job(model, **({"device": "cpu", "threads": 1} | values)))


def encode(encoder: BaseEncoder, texts: Sequence[str], budget: int | None = None) -> Any:
    """float32 [len(texts), dim]: every text through the encoder in packed batches; rows without a token stay zero."""
    tokens = encoder.tokenize(texts)
    known = np.flatnonzero(tokens.lengths)
    made = np.zeros((len(texts), encoder.dim), np.float32)
    for order in batching.pack_batches(
        tokens.lengths[known], lambda: budget or encoder.batch_tokens, encoder.pad_to_multiple_of, encoder.equal_lengths
    ):
        rows = known[order]
        vectors: Any = encoder.collect(encoder.forward(tokens, rows))
        made[rows] = vectors
    return made


@cache
def sentence_transformer(model: str | Path = "all-MiniLM-L6-v2", trust: bool = False) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    folder = resolve.resolve_model(job(model)).path
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=trust)


def lowest_cosine(ours: Any, theirs: Any) -> float:
    """Of all rows, the lowest cosine between two arrays [n, dim]."""
    assert ours.shape == theirs.shape
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert (norms > 0).all()
    return float(((ours * theirs).sum(axis=1) / norms).min())


def row_by_row_attention(q: Any, k: Any, v: Any, bounds: Any, scale: float | None, window: tuple[int, int]) -> Any:
    """An attention kernel for batches without padding in plain torch, one row at a time, on any device."""
    import torch

    attended = []
    for start, stop in pairwise(bounds.offsets.tolist()):
        row: Any = [tensor[start:stop].transpose(0, 1).unsqueeze(0) for tensor in (q, k, v)]
        positions = torch.arange(stop - start, device=q.device)
        distance = positions[None, :] - positions[:, None]
        before, after = (len(positions) if side < 0 else side for side in window)
        mask = (distance >= -before) & (distance <= after)
        one = torch.nn.functional.scaled_dot_product_attention(
            row[0], row[1], row[2], attn_mask=mask, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
        )
        attended.append(one[0].transpose(0, 1))
    return torch.cat(attended)


def samples() -> list[str]:
    """The texts of sample_data, in many languages."""
    lines = (ROOT / "sample_data" / "texts.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def varied(count: int = 1040) -> list[str]:
    """Rows of every kind, most of them short: languages, single characters, emoji, control signs, far too long."""
    whole = samples()
    base = [*whole[::12], *(text[: 20 + 9 * (i % 12)] for i, text in enumerate(whole))]
    words = sorted({word for text in whole for word in text.split()})
    odd = [
        " ",
        "\t\n",
        "a",
        "。",
        "🙂",
        "👩‍👩‍👧‍👦",
        "\u200b",
        "e\u0301",
        "É",
        "ﬁ",
        "[SEP]",
        "[CLS] [MASK]",
        "</s>",
        "##ing",
        "0",
        "﷽",
    ]
    long = ["word " * 700, "長" * 900, "🙂" * 400, " ".join(whole)[:6000], "x" * 3000]
    rows = [*base, *odd, *long]
    at = 0
    while len(rows) < count:
        rows.append(" ".join(words[(at * 7 + step * 13) % len(words)] for step in range(1 + at % 5)))
        at += 1
    order = sorted(range(len(rows)), key=lambda i: hashlib.sha256(str(i).encode()).digest())
    return [rows[i] for i in order]


def encoded(texts: Sequence[str]) -> Any:
    """float32 [len(texts), 384]: what `SentenceTransformer.encode` gives for all-MiniLM-L6-v2; kept between runs."""
    key = " ".join(map(version, LIBRARIES)) + "\0".join(texts)
    place = ROOT / ".pytest_cache" / "embedcli-reference" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, sentence_transformer().encode(list(texts), show_progress_bar=False))
    return np.load(place)
