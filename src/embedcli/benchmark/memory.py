"""Whether memory depends on the number of rows: the same job with few and with many, on an encoder made for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embedcli import __version__
from embedcli.benchmark import machine
from embedcli.benchmark.contenders import Lap, Ours, sure
from embedcli.benchmark.lineup import Notify
from embedcli.benchmark.results import rounded
from embedcli.benchmark.static_models import word_model

COUNTS = (10_000, 1_000_000)
ALLOWED_MB = 150.0
WORDS = 5_000
DIMENSIONS = 64
WORDS_PER_ROW = 8


def measure(notify: Notify, counts: tuple[int, ...] = COUNTS) -> dict[str, Any]:
    """Peak memory of one process for each number of rows, and its growth from the first to the last, in MB."""
    where = machine.describe()
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        folder = Path(name)
        words = [f"word{i}" for i in range(WORDS)]
        own = Ours("embedcli", ("--model", str(word_model(folder / "model", words, DIMENSIONS))))
        runs = []
        for count in counts:
            rows = folder / "rows.jsonl"
            write(rows, words, count)
            runs.append(figures(count, sure(own, rows, folder)))
            notify(f"{count:,} rows: {runs[-1]['peak_memory_mb']:,.0f} MB")
    return {
        "embedcli": __version__,
        "machine": where,
        "runs": runs,
        "growth_mb": rounded(runs[-1]["peak_memory_mb"] - runs[0]["peak_memory_mb"]),
        "allowed_mb": ALLOWED_MB,
    }


def figures(count: int, lap: Lap) -> dict[str, Any]:
    speed = {"rows_per_second": count / lap.seconds, "process_seconds": lap.seconds}
    made: dict[str, Any] = rounded({"peak_memory_mb": lap.peak_mb} | speed)
    return {"rows": count} | made


def write(path: Path, words: list[str], count: int) -> None:
    """`count` rows of random words, no two alike."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(f'{{"id": {i}, "text": "row{i} {text}"}}\n' for i, text in enumerate(texts(words, count)))


def texts(words: list[str], count: int, block: int = 10_000) -> Iterator[str]:
    """Texts of random words, the same on every call."""
    random = np.random.default_rng(0)
    for at in range(0, count, block):
        for chosen in random.integers(0, len(words), (min(block, count - at), WORDS_PER_ROW)).tolist():
            yield " ".join([words[i] for i in chosen])
