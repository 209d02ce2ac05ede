"""Does memory depend on the number of rows? The same job with few and with many rows, on a static model made for it.

    python benchmarks/memory.py [--json FILE]

Exits with 1 if the peak memory of the larger job exceeds that of the smaller one by more than ALLOWED_MB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from command_line import JsonPath, make_app, publish
from embedcli import __version__
from embedcli.benchmark.contenders import EmbedcliRun, Timing, run_embedcli
from embedcli.benchmark.machine import describe_machine
from embedcli.benchmark.results import round_floats
from embedcli.benchmark.text_tables import format_machine, format_row
from embedcli.cli.console import print_note
from embedcli.core.errors import EmbedcliError
from random_static_models import make_word_model

ROW_COUNTS = (10_000, 1_000_000)
ALLOWED_MB = 150.0
WORDS = 5_000
DIMENSIONS = 64
WORDS_PER_ROW = 8


def main(json: JsonPath = None) -> None:
    """Measure the peak memory of a job with 10,000 and with 1,000,000 rows."""
    figures = measure(print_note)
    publish(figures, format_table(figures), json)
    if figures["growth_mb"] > figures["allowed_mb"]:
        raise EmbedcliError("memory grows with the number of rows", "this is a defect: please report the table")


def measure(notify: Callable[[str], None], row_counts: tuple[int, ...] = ROW_COUNTS) -> dict[str, Any]:
    """Measure the peak memory of one process for each number of rows.

    Args:
        notify: Receives one line of progress at a time.
        row_counts: Numbers of rows, ascending.

    Returns:
        The figures that `--json` writes; `growth_mb` is the growth from the first to the last number of rows.

    Raises:
        ModelError: embedcli failed.
    """
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        folder = Path(name)
        words = [f"word{i}" for i in range(WORDS)]
        contender = EmbedcliRun("embedcli", ("--model", str(make_word_model(folder / "model", words, DIMENSIONS))))
        runs = []
        for count in row_counts:
            rows = folder / "rows.jsonl"
            write_random_rows(rows, words, count)
            runs.append(summarize_run(count, run_embedcli(contender, rows, folder)))
            notify(f"{count:,} rows: {runs[-1]['peak_memory_mb']:,.0f} MB")
    return {
        "embedcli": __version__,
        "machine": machine,
        "runs": runs,
        "growth_mb": round_floats(runs[-1]["peak_memory_mb"] - runs[0]["peak_memory_mb"]),
        "allowed_mb": ALLOWED_MB,
    }


def summarize_run(count: int, timing: Timing) -> dict[str, Any]:
    speed = {"rows_per_second": count / timing.seconds, "process_seconds": timing.seconds}
    figures: dict[str, Any] = round_floats({"peak_memory_mb": timing.peak_mb} | speed)
    return {"rows": count} | figures


def write_random_rows(path: Path, words: list[str], count: int) -> None:
    """Write `count` rows of random words, no two alike."""
    with path.open("w", encoding="ascii") as file:
        texts = generate_texts(words, count)
        file.writelines(f'{{"id": {i}, "text": "row{i} {text}"}}\n' for i, text in enumerate(texts))


def generate_texts(words: list[str], count: int, block: int = 10_000) -> Iterator[str]:
    """Yield texts of random words, the same on every call."""
    random = np.random.default_rng(0)
    for start in range(0, count, block):
        for chosen in random.integers(0, len(words), (min(block, count - start), WORDS_PER_ROW)).tolist():
            yield " ".join([words[i] for i in chosen])


def format_table(figures: Mapping[str, Any]) -> str:
    """Peak memory by number of rows, as a text table."""
    lines = [*format_machine(figures["machine"]), "", format_row("rows", ("memory", "process", "rows/s"))]
    for run in figures["runs"]:
        cells = (
            f"{run['peak_memory_mb']:,.0f} MB",
            f"{run['process_seconds']:.1f} s",
            f"{run['rows_per_second']:,.0f}",
        )
        lines.append(format_row(f"{run['rows']:,}", cells))
    return "\n".join([*lines, f"growth {figures['growth_mb']:,.0f} MB; allowed are {figures['allowed_mb']:,.0f} MB"])


app = make_app(main)

if __name__ == "__main__":
    app()
