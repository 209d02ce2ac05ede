"""How fast embedcli is with each token budget, on the user's rows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from embedcli import __version__
from embedcli.benchmark.compare import BenchRequest
from embedcli.benchmark.contenders import EmbedcliRun, Timing, run_embedcli
from embedcli.benchmark.dataset import write_dataset
from embedcli.benchmark.lineup import Notify
from embedcli.benchmark.machine import describe_machine
from embedcli.benchmark.results import round_floats
from embedcli.benchmark.statistics import median_or_nan

BATCH_TOKENS = (512, 1024, 2048, 4096, 8192, 16384)


def measure_batch_tokens(request: BenchRequest, notify: Notify) -> dict[str, Any]:
    """Run embedcli with every token budget once per round, in turn.

    Args:
        request: What to measure.
        notify: Receives one line of progress at a time.

    Returns:
        Medians over the rounds, as `--json` writes them.

    Raises:
        ModelError: A run failed.
    """
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        folder = Path(name)
        dataset = write_dataset(request.job, request.rows, folder)
        notify(f"{len(dataset.texts):,} rows; a ten-row run first, to fill the caches")
        default = run_embedcli(EmbedcliRun("embedcli", request.arguments), dataset.first_rows, folder)
        timings: dict[int, list[Timing]] = {budget: [] for budget in BATCH_TOKENS}
        for number in range(request.rounds):
            for budget in BATCH_TOKENS:
                contender = EmbedcliRun("embedcli", (*request.arguments, "--batch-tokens", str(budget)))
                timing = run_embedcli(contender, dataset.all_rows, folder)
                timings[budget].append(timing)
                notify(f"round {number + 1} of {request.rounds}: {budget:,} tokens, {timing.encode_seconds:.1f} s")
    space = default.report["space"]
    rows = len(dataset.texts)
    return {
        "embedcli": __version__,
        "machine": machine,
        "model": ", ".join(str(space[key]) for key in ("model", "engine", "dtype") if space.get(key)),
        "rows": rows,
        "rounds": request.rounds,
        "default": default.report["batch_tokens"],
        "budgets": [round_floats(summarize_budget(budget, each, rows)) for budget, each in timings.items()],
    }


def summarize_budget(budget: int, timings: list[Timing], rows: int) -> dict[str, Any]:
    encode_seconds = median_or_nan([timing.encode_seconds for timing in timings])
    report = timings[0].report
    return {
        "batch_tokens": budget,
        "rows_per_second": rows / encode_seconds,
        "tokens_per_second": report["counters"]["fed_tokens"] / encode_seconds,
        "padding_share": report["padding_share"],
        "encode_seconds": encode_seconds,
        "peak_memory_mb": median_or_nan([timing.peak_mb for timing in timings]),
    }
