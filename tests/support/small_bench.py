"""Inputs of small measurements: a static model, forty rows, and a request to measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedcli.benchmark.compare import BenchRequest
from embedcli.benchmark.dataset import write_jsonl
from embedcli.core.job import Job
from random_static_models import make_word_model

WORDS = [f"w{i}" for i in range(50)]
TEXTS = [" ".join(WORDS[(i * j) % 50] for j in range(1, 3 + i % 7)) for i in range(40)]


def write_inputs(folder: Path) -> Path:
    """Write `model`, a static model, and `in.jsonl` into the folder."""
    make_word_model(folder / "model", WORDS, 16)
    write_jsonl(folder / "in.jsonl", TEXTS)
    return folder


def make_job(folder: Path, **changes: Any) -> Job:
    return Job(inputs=(str(folder / "in.jsonl"),), output="", **({"model": str(folder / "model")} | changes))


def make_small_request(folder: Path, **settings: Any) -> BenchRequest:
    return BenchRequest(make_job(folder), ("--model", str(folder / "model")), **settings)
