"""What working together costs: the same files through one process, through several, and through Ray on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from embedcli import __version__
from embedcli.benchmark import machine, statistics
from embedcli.benchmark.compare import Request
from embedcli.benchmark.contenders import Failed, Lap, Ours, sure
from embedcli.benchmark.dataset import gather, write
from embedcli.benchmark.lineup import Notify
from embedcli.benchmark.results import busiest, ratio, rounded
from embedcli.benchmark.statistics import middle
from embedcli.core.errors import UsageError

# As many files as a share each: enough for several workers to be done at about the same time.
FILES = 20
ALONE = "one process"


def together(request: Request, workers: int, notify: Notify) -> dict[str, Any]:
    """Every runner once a round, in turn; medians, as `--json` writes them.

    A start is the same command with one row in each file; what is left without it is compared. Raises UsageError for
    fewer rows than that needs, and ModelError if one process alone fails.
    """
    where = machine.describe()
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        folder = Path(name)
        texts = gather(request.job, request.rows, folder).texts
        if len(texts) < 2 * FILES:
            raise UsageError(f"bench --workers cuts the rows into {FILES} files", f"give it {2 * FILES} rows at least")
        every, first = in_files(texts, folder / "every"), in_files(texts[:FILES], folder / "first")
        contenders, missing = runners(request, workers)
        notify(f"{len(texts):,} rows in {FILES} files; one row of each first, to fill the caches")
        sure(contenders[0], first, folder)
        laps: dict[str, list[tuple[Lap, Lap]]] = {runner.name: [] for runner in contenders}
        for number in range(request.rounds):
            for runner in [runner for runner in contenders if runner.name not in missing]:
                run = sure if runner.name == ALONE else Ours.lap
                try:
                    laps[runner.name].append((run(runner, first, folder), run(runner, every, folder)))
                except Failed as error:
                    missing[runner.name] = f"it failed: {error}"
                    continue
                seconds = laps[runner.name][-1][1].seconds
                notify(f"round {number + 1} of {request.rounds}: {runner.name} {seconds:.1f} s")
    measured = {name: pairs for name, pairs in laps.items() if name not in missing}
    return {
        "embedcli": __version__,
        "machine": where,
        "rows": len(texts),
        "files": FILES,
        "rounds": request.rounds,
        "runners": {name: figures(pairs, measured[ALONE]) for name, pairs in measured.items()},
        "missing": missing,
    }


def in_files(texts: Sequence[str], folder: Path) -> Path:
    """A folder with the texts in successive files of about equal size."""
    folder.mkdir()
    cuts = [len(texts) * i // FILES for i in range(FILES + 1)]
    for i, (begin, end) in enumerate(pairwise(cuts)):
        write(folder / f"rows-{i:02}.jsonl", texts[begin:end], begin)
    return folder


def runners(request: Request, workers: int) -> tuple[list[Ours], dict[str, str]]:
    """Who is compared, one process first, and who cannot be, with the reason. Every file becomes a part of its own."""
    alone = Ours(ALONE, (*request.arguments, "--part-size", "1"), output="out/")
    many = ("--workers", str(workers))
    found = [alone, replace(alone, name=f"{workers} processes", arguments=(*alone.arguments, *many))]
    ray = replace(alone, name=f"Ray, {workers} workers", arguments=(*alone.arguments, *many, "--runner", "ray"))
    if find_spec("ray"):
        return [*found, ray], {}
    return found, {ray.name: "not installed: pip install 'embedcli[ray]'"}


def figures(pairs: Sequence[tuple[Lap, Lap]], alone: Sequence[tuple[Lap, Lap]]) -> dict[str, Any]:
    """Medians of one runner, and how fast it is after its start beside one process in the same round."""
    # Ray's workers are no children of the process that was measured: their time would count as other programs'.
    counted = [whole for _, whole in pairs if whole.report["job"]["runner"] != "ray"]
    made = {
        "process_seconds": middle([whole.seconds for _, whole in pairs]),
        "start_seconds": middle([start.seconds for start, _ in pairs]),
        "working_seconds": middle(working(pairs)),
        "others_share": busiest(counted),
        "ratio": ratio(working(alone), working(pairs)),
    }
    return {name: rounded(value) for name, value in made.items()}


def working(pairs: Sequence[tuple[Lap, Lap]]) -> list[float]:
    """Seconds of each round without the start, whose median counts: single starts vary more than they differ."""
    start = middle([lap.seconds for lap, _ in pairs])
    return [max(whole.seconds - start, statistics.CLOCK_SECONDS) for _, whole in pairs]
