"""Do memory and the cost of a row depend on the number of rows? The same job with few and with many short rows.

    python benchmarks/many_rows.py [--rows 100000,1000000] [--json FILE]

The rows are random words, the model is a file of word vectors, and the output is a folder. The time that a job of one
row takes is not counted as cost of the rows. Exits with 1 if the peak memory of the largest job exceeds that of the
smallest one by more than ALLOWED_MB.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from command_line import JsonPath, make_app, publish
from embedcli import __version__
from embedcli.benchmark.contenders import EmbedcliRun, Timing, run_embedcli
from embedcli.benchmark.machine import describe_machine
from embedcli.benchmark.results import round_floats
from embedcli.benchmark.text_tables import format_machine, format_percent, format_row
from embedcli.cli.console import print_note
from embedcli.core.errors import EmbedcliError, UsageError

ROW_COUNTS = "100000,1000000"
ALLOWED_MB = 150.0
WORDS = 20_000
DIMENSIONS = 50
WORDS_PER_ROW = 8
OUTPUT = "vectors/"
START_RUNS = 3
TIMED_SYNC = Path(__file__).parent / "programs" / "timed_sync.py"
COLUMNS = ("memory", "rows/s", "cost", "write", "sync", "publish")


def main(
    rows: Annotated[
        str, typer.Option("--rows", metavar="COUNTS", help="Numbers of rows, separated by commas.")
    ] = ROW_COUNTS,
    json: JsonPath = None,
) -> None:
    """Measure the memory, and the processor time per row, of jobs with few and with many rows."""
    figures = measure(parse_counts(rows), print_note)
    publish(figures, format_table(figures), json)
    if figures["growth_mb"] > figures["allowed_mb"]:
        raise EmbedcliError("memory grows with the number of rows", "this is a defect: please report the table")


def parse_counts(text: str) -> list[int]:
    """The numbers of rows in ascending order. Raises UsageError unless they are numbers above 0."""
    counts = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(counts) < 1:
        raise UsageError(f"--rows {text}: these are not numbers of rows", "write numbers such as 100000,1000000")
    return sorted(counts)


def measure(row_counts: Sequence[int], notify: Callable[[str], None]) -> dict[str, Any]:
    """Measure one process for each number of rows, after some of a single row.

    Args:
        row_counts: Numbers of rows, ascending.
        notify: Receives one line of progress at a time.

    Returns:
        The figures that `--json` writes; `growth_mb` is the growth from the first to the last number of rows.

    Raises:
        ModelError: embedcli failed.
    """
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        folder = Path(name)
        words = [f"word{i}" for i in range(WORDS)]
        write_word_vectors(folder / "words.txt", words)
        sync = folder / "sync.txt"
        model, program = ("--model", str(folder / "words.txt")), (str(TIMED_SYNC), str(sync))
        contender = EmbedcliRun("embedcli", model, OUTPUT, program)
        rows = folder / "rows.jsonl"

        def run(count: int) -> Timing:
            write_random_rows(rows, words, count)
            timing = run_embedcli(contender, rows, folder)
            shutil.rmtree(folder / OUTPUT)
            return timing

        # The first run is slower, because nothing of embedcli is in the page cache yet.
        start = min((run(1) for _ in range(START_RUNS)), key=lambda timing: timing.seconds)
        runs = []
        for count in row_counts:
            runs.append(summarize_run(count, run(count), start, float(sync.read_text("ascii"))))
            notify(f"{count:,} rows: {runs[-1]['peak_memory_mb']:,.0f} MB")
    return {
        "embedcli": __version__,
        "machine": machine,
        "runs": runs,
        "growth_mb": round_floats(runs[-1]["peak_memory_mb"] - runs[0]["peak_memory_mb"]),
        "allowed_mb": ALLOWED_MB,
    }


def summarize_run(count: int, timing: Timing, start: Timing, sync_seconds: float) -> dict[str, Any]:
    """The figures of a run, without what the run `start` of one row took.

    `write_share` is the share of the process's time that its writing thread spent on hashing, writing and syncing
    files; the other threads work meanwhile. `sync_share` is the part of it in which the thread waited for the disk
    (fsync). `publish_share` is the time after the last row.
    """
    report = timing.report
    embedding_seconds = report["embedding_speed"]["seconds"]
    publish_seconds = report["seconds"] - report["startup_seconds"] - embedding_seconds
    figures: dict[str, Any] = round_floats(
        {
            "peak_memory_mb": timing.peak_mb,
            "process_seconds": timing.seconds,
            "rows_per_second": count / max(timing.seconds - start.seconds, 1e-3),
            "cpu_microseconds_per_row": 1e6 * (timing.cpu_seconds - start.cpu_seconds) / count,
            "write_share": report["stage_seconds"]["write"] / timing.seconds,
            "sync_share": sync_seconds / timing.seconds,
            "publish_share": publish_seconds / timing.seconds,
        }
    )
    return {"rows": count} | figures


def write_word_vectors(path: Path, words: Sequence[str]) -> None:
    """Write a file of random word vectors, in word2vec's text format."""
    vectors = np.random.default_rng(0).standard_normal((len(words), DIMENSIONS))
    with path.open("w", encoding="ascii") as file:
        file.write(f"{len(words)} {DIMENSIONS}\n")
        for word, vector in zip(words, vectors, strict=True):
            file.write(f"{word} {' '.join(f'{number:.4f}' for number in vector)}\n")


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
    """The figures of each number of rows, as a text table."""
    lines = [*format_machine(figures["machine"]), "", format_row("rows", COLUMNS)]
    for run in figures["runs"]:
        cells = (
            f"{run['peak_memory_mb']:,.0f} MB",
            f"{run['rows_per_second']:,.0f}",
            f"{run['cpu_microseconds_per_row']:.1f} µs",
            format_percent(run["write_share"]),
            format_percent(run["sync_share"]),
            format_percent(run["publish_share"]),
        )
        lines.append(format_row(f"{run['rows']:,}", cells))
    lines.append(f"memory grows by {figures['growth_mb']:,.0f} MB; allowed are {figures['allowed_mb']:,.0f} MB")
    return "\n".join([*lines, "cost: processor time per row; write, sync, publish: shares of the process's time"])


app = make_app(main)

if __name__ == "__main__":
    app()
