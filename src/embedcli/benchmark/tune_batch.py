"""How fast embedcli is with each token budget, on the user's rows."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from embedcli import __version__
from embedcli.benchmark import machine
from embedcli.benchmark.compare import Request
from embedcli.benchmark.contenders import Lap, Ours, sure
from embedcli.benchmark.dataset import gather
from embedcli.benchmark.lineup import Notify
from embedcli.benchmark.results import rounded
from embedcli.benchmark.statistics import middle

BUDGETS = (512, 1024, 2048, 4096, 8192, 16384)


def tune(request: Request, notify: Notify) -> dict[str, Any]:
    """Every budget once a round, in turn; medians, as `--json` writes them. Raises ModelError if a run fails."""
    where = machine.describe()
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        folder = Path(name)
        rows = gather(request.job, request.rows, folder)
        notify(f"{len(rows.texts):,} rows; a ten-row run first, to fill the caches")
        default = sure(Ours("embedcli", request.arguments), rows.few, folder)
        laps: dict[int, list[Lap]] = {budget: [] for budget in BUDGETS}
        for number in range(request.rounds):
            for budget in BUDGETS:
                own = Ours("embedcli", (*request.arguments, "--batch-tokens", str(budget)))
                laps[budget].append(sure(own, rows.every, folder))
                seconds = laps[budget][-1].encode_seconds
                notify(f"round {number + 1} of {request.rounds}: {budget:,} tokens, {seconds:.1f} s")
    space = default.report["space"]
    return {
        "embedcli": __version__,
        "machine": where,
        "model": ", ".join(str(space[key]) for key in ("model", "engine", "dtype") if space.get(key)),
        "rows": len(rows.texts),
        "rounds": request.rounds,
        "default": default.report["batch_tokens"],
        "budgets": [rounded(budget_figures(budget, its, len(rows.texts))) for budget, its in laps.items()],
    }


def budget_figures(budget: int, laps: list[Lap], rows: int) -> dict[str, Any]:
    encode = middle([lap.encode_seconds for lap in laps])
    return {
        "batch_tokens": budget,
        "rows_per_second": rows / encode,
        "tokens_per_second": laps[0].report["counters"]["fed_tokens"] / encode,
        "padding_share": laps[0].report["padding_share"],
        "encode_seconds": encode,
        "peak_memory_mb": middle([lap.peak_mb for lap in laps]),
    }
