"""What do several workers gain? The same files through one process, several processes, and Ray on this machine.

    python benchmarks/workers.py rows.jsonl --workers 2 [-m MODEL] [--rounds 3] [--json FILE]

Every runner runs once a round, in turn. The start is measured with one row in each file; the ratios compare the time
after it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from command_line import JsonPath, Rounds, RowLimit, make_app, publish
from embedcli import __version__
from embedcli.bench import machine
from embedcli.bench.compare import Request
from embedcli.bench.contenders import Failed, Lap, Ours, sure
from embedcli.bench.numbers import middle
from embedcli.bench.outcome import busiest, ratio, rounded
from embedcli.bench.rows import gather, write
from embedcli.bench.tables import disturbed, labelled, missing, on_machine, row, seconds
from embedcli.cli.bench import make_request, say
from embedcli.cli.boundary import set_environment
from embedcli.cli.options import ENCODER_FLAGS, INPUT_FLAGS, takes
from embedcli.contracts import UsageError

# Every file becomes a partition: enough of them for several workers to finish at about the same time.
FILES = 20
ONE_PROCESS = "one process"
# Differences of times below this are noise.
CLOCK_SECONDS = 0.001

# One round of a runner: a run on the first row of every file, and a run on all rows.
TimingPair = tuple[Lap, Lap]


@takes((*ENCODER_FLAGS, *INPUT_FLAGS))
def main(
    paths: Annotated[list[str], typer.Argument(metavar="INPUT", help="Rows to encode.")],
    *,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Number of worker processes.")] = 2,
    rounds: Rounds = 3,
    rows: RowLimit = None,
    json: JsonPath = None,
    flags: dict[str, Any],
) -> None:
    """Measure several workers, and Ray with as many, beside one process."""
    set_environment(flags)
    figures = measure(make_request(paths, flags, rounds=rounds, rows=rows), workers, say)
    publish(figures, format_table(figures), json)


def measure(request: Request, workers: int, notify: Callable[[str], None]) -> dict[str, Any]:
    """Run every runner once a round, in turn.

    Args:
        request: The rows and the encoder.
        workers: The number of worker processes.
        notify: Receives one line of progress at a time.

    Returns:
        Medians over the rounds, as `--json` writes them.

    Raises:
        UsageError: There are fewer than two rows for every file.
        ModelError: The run in one process failed.
    """
    where = machine.describe()
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        folder = Path(name)
        texts = gather(request.job, request.rows, folder).texts
        if len(texts) < 2 * FILES:
            raise UsageError(f"the rows are split into {FILES} files", f"give at least {2 * FILES} rows")
        all_rows, first_rows = write_files(texts, folder / "every"), write_files(texts[:FILES], folder / "first")
        runners, missing_runners = choose_runners(request, workers)
        notify(f"{len(texts):,} rows in {FILES} files; a run on one row of each first, to fill the caches")
        sure(runners[0], first_rows, folder)
        timings: dict[str, list[TimingPair]] = {runner.name: [] for runner in runners}
        for number in range(request.rounds):
            for runner in [runner for runner in runners if runner.name not in missing_runners]:
                run = sure if runner.name == ONE_PROCESS else Ours.lap
                try:
                    timings[runner.name].append((run(runner, first_rows, folder), run(runner, all_rows, folder)))
                except Failed as error:
                    missing_runners[runner.name] = f"it failed: {error}"
                    continue
                last = timings[runner.name][-1][1]
                notify(f"round {number + 1} of {request.rounds}: {runner.name} {last.seconds:.1f} s")
    measured = {name: pairs for name, pairs in timings.items() if name not in missing_runners}
    return {
        "embedcli": __version__,
        "machine": where,
        "rows": len(texts),
        "files": FILES,
        "rounds": request.rounds,
        "runners": {name: summarize_runner(pairs, measured[ONE_PROCESS]) for name, pairs in measured.items()},
        "missing": missing_runners,
    }


def write_files(texts: Sequence[str], folder: Path) -> Path:
    """Write the texts to successive files of about equal size in a new folder."""
    folder.mkdir()
    cuts = [len(texts) * i // FILES for i in range(FILES + 1)]
    for i, (begin, end) in enumerate(pairwise(cuts)):
        write(folder / f"rows-{i:02}.jsonl", texts[begin:end], begin)
    return folder


def choose_runners(request: Request, workers: int) -> tuple[list[Ours], dict[str, str]]:
    """Choose the runners, one process first, and say why any other is missing. Every file becomes a part file."""
    alone = Ours(ONE_PROCESS, (*request.arguments, "--part-size", "1"), output="out/")
    several = (*alone.arguments, "--workers", str(workers))
    runners = [alone, replace(alone, name=f"{workers} processes", arguments=several)]
    ray = replace(alone, name=f"Ray, {workers} workers", arguments=(*several, "--runner", "ray"))
    if all(map(find_spec, ("ray", "pandas"))):
        return [*runners, ray], {}
    return runners, {ray.name: "not installed: pip install 'embedcli[ray]'"}


def summarize_runner(pairs: Sequence[TimingPair], alone: Sequence[TimingPair]) -> dict[str, Any]:
    """Medians of one runner, and its speedup over one process in the same round, starts excluded."""
    # Ray's workers are not children of the measured process: their time would count as that of other programs.
    counted = [whole for _, whole in pairs if whole.report["job"]["runner"] != "ray"]
    figures = {
        "process_seconds": middle([whole.seconds for _, whole in pairs]),
        "start_seconds": middle([start.seconds for start, _ in pairs]),
        "working_seconds": middle(subtract_start(pairs)),
        "others_share": busiest(counted),
        "ratio": ratio(subtract_start(alone), subtract_start(pairs)),
    }
    return {name: rounded(value) for name, value in figures.items()}


def subtract_start(pairs: Sequence[TimingPair]) -> list[float]:
    """Seconds of each round without the median start: single starts vary more than they differ between runners."""
    start = middle([timing.seconds for timing, _ in pairs])
    return [max(whole.seconds - start, CLOCK_SECONDS) for _, whole in pairs]


def format_table(figures: Mapping[str, Any]) -> str:
    """The times of each runner, and its speedup after the start over one process, as a text table."""
    lines = [*on_machine(figures["machine"])]
    lines += labelled("rows", f"{figures['rows']:,} in {figures['files']} files")
    lines += labelled("runs", f"{figures['rounds']} of each, in turn; medians; ratios are of runs of the same round")
    lines += disturbed(figures["runners"].values())
    lines += ["", row("seconds", ("process", "start", "after", "ratio"))]
    for name, runner in figures["runners"].items():
        times = [seconds(runner[key]) for key in ("process_seconds", "start_seconds", "working_seconds")]
        lines.append(row(name, (*times, f"{runner['ratio']['median']:.2f}")))
    return "\n".join([*lines, *(["", *missing(figures)] if figures["missing"] else [])])


app = make_app(main)

if __name__ == "__main__":
    app()
