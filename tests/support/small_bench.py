"""Inputs of small measurements: a static model, forty rows, and a request to measure them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedcli.benchmark.compare import BenchRequest
from embedcli.benchmark.dataset import write_jsonl
from embedcli.core.job import Job
from random_static_models import write_random_vectors

WORDS = [f"w{i}" for i in range(50)]
# What `describe_machine` returns, in the fields that tables show.
MACHINE: dict[str, Any] = {
    "processor": "p",
    "cores": 1,
    "memory_gb": 1,
    "system": "s",
    "python": "3",
    "versions": {},
    "load_before": 0,
}
TEXTS = [" ".join(WORDS[(i * j) % 50] for j in range(1, 3 + i % 7)) for i in range(40)]


def write_inputs(folder: Path) -> Path:
    """Write `model`, a static model, and `in.jsonl` into the folder."""
    make_word_model(folder / "model", WORDS, 16)
    write_jsonl(folder / "in.jsonl", TEXTS)
    return folder


def make_word_model(folder: Path, words: Sequence[str], dim: int) -> Path:
    """Create a static model whose tokens are `words`, split at white space.

    Args:
        folder: A folder that does not exist yet.
        words: The vocabulary.
        dim: The number of dimensions.

    Returns:
        The folder, in model2vec's format.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_random_vectors(folder, 1 + len(words), dim)
    return folder


def make_job(folder: Path, **changes: Any) -> Job:
    return Job(inputs=(str(folder / "in.jsonl"),), output="", **({"model": str(folder / "model")} | changes))


def make_small_request(folder: Path, **settings: Any) -> BenchRequest:
    return BenchRequest(make_job(folder), ("--model", str(folder / "model")), **settings)
