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
from embedcli.benchmark.compare import BenchRequest
from embedcli.benchmark.contenders import EmbedcliRun, RunFailed, Timing, run_embedcli
from embedcli.benchmark.dataset import write_dataset, write_jsonl
from embedcli.benchmark.machine import describe_machine
from embedcli.benchmark.results import get_highest_others_share, round_floats, summarize_speedups
from embedcli.benchmark.statistics import median_or_nan
from embedcli.benchmark.text_tables import (
    format_busy_warning,
    format_machine,
    format_missing,
    format_row,
    format_seconds,
    with_label,
)
from embedcli.cli.bench import make_request
from embedcli.cli.console import print_note
from embedcli.cli.entrypoint import set_environment
from embedcli.cli.options import ENCODER_FLAGS, INPUT_FLAGS, with_job_options
from embedcli.core.errors import UsageError

# Input files, each a partition: enough for several workers to finish at about the same time.
FILES = 20
ONE_PROCESS = "one process"
# Differences of times below this are noise.
CLOCK_SECONDS = 0.001

# One round of a runner: a run on the first row of every file, and a run on all rows.
TimingPair = tuple[Timing, Timing]


@with_job_options((*ENCODER_FLAGS, *INPUT_FLAGS))
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
    figures = measure(make_request(paths, flags, rounds=rounds, rows=rows), workers, print_note)
    publish(figures, format_table(figures), json)


def measure(request: BenchRequest, workers: int, notify: Callable[[str], None]) -> dict[str, Any]:
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
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="embedcli-bench-") as name:
        folder = Path(name)
        texts = write_dataset(request.job, request.rows, folder).texts
        if len(texts) < 2 * FILES:
            raise UsageError(f"the rows are split into {FILES} files", f"give at least {2 * FILES} rows")
        all_rows, first_rows = write_files(texts, folder / "every"), write_files(texts[:FILES], folder / "first")
        runners, missing_runners = choose_runners(request, workers)
        notify(f"{len(texts):,} rows in {FILES} files; a run on one row of each first, to fill the caches")
        run_embedcli(runners[0], first_rows, folder)
        timings: dict[str, list[TimingPair]] = {runner.name: [] for runner in runners}
        for number in range(request.rounds):
            for runner in [runner for runner in runners if runner.name not in missing_runners]:
                run = run_embedcli if runner.name == ONE_PROCESS else EmbedcliRun.run
                try:
                    timings[runner.name].append((run(runner, first_rows, folder), run(runner, all_rows, folder)))
                except RunFailed as error:
                    missing_runners[runner.name] = f"it failed: {error}"
                    continue
                last = timings[runner.name][-1][1]
                notify(f"round {number + 1} of {request.rounds}: {runner.name} {last.seconds:.1f} s")
    measured = {name: pairs for name, pairs in timings.items() if name not in missing_runners}
    return {
        "embedcli": __version__,
        "machine": machine,
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
        write_jsonl(folder / f"rows-{i:02}.jsonl", texts[begin:end], begin)
    return folder


def choose_runners(request: BenchRequest, workers: int) -> tuple[list[EmbedcliRun], dict[str, str]]:
    """Choose the runners, one process first, and give the reason for each that is missing."""
    # With parts of one byte, every input file becomes a partition.
    alone = EmbedcliRun(ONE_PROCESS, (*request.arguments, "--part-size", "1"), output="out/")
    several = (*alone.arguments, "--workers", str(workers))
    runners = [alone, replace(alone, name=f"{workers} processes", arguments=several)]
    ray = replace(alone, name=f"Ray, {workers} workers", arguments=(*several, "--runner", "ray"))
    if find_spec("ray"):
        return [*runners, ray], {}
    return runners, {ray.name: "not installed: pip install 'embedcli[ray]'"}


def summarize_runner(pairs: Sequence[TimingPair], alone: Sequence[TimingPair]) -> dict[str, Any]:
    """Medians of one runner, and its speedup over one process in the same round, starts excluded."""
    # Ray's workers are not children of the measured process: their time would count as that of other programs.
    counted = [whole for _, whole in pairs if whole.report["job"]["runner"] != "ray"]
    figures = {
        "process_seconds": median_or_nan([whole.seconds for _, whole in pairs]),
        "start_seconds": median_or_nan([start.seconds for start, _ in pairs]),
        "working_seconds": median_or_nan(subtract_start(pairs)),
        "others_share": get_highest_others_share(counted),
        "ratio": summarize_speedups(subtract_start(alone), subtract_start(pairs)),
    }
    return {name: round_floats(value) for name, value in figures.items()}


def subtract_start(pairs: Sequence[TimingPair]) -> list[float]:
    """Seconds of each round without the median start: single starts vary more than they differ between runners."""
    start = median_or_nan([timing.seconds for timing, _ in pairs])
    return [max(whole.seconds - start, CLOCK_SECONDS) for _, whole in pairs]


def format_table(figures: Mapping[str, Any]) -> str:
    """The times of each runner, and its speedup after the start over one process, as a text table."""
    lines = [*format_machine(figures["machine"])]
    lines += with_label("rows", f"{figures['rows']:,} in {figures['files']} files")
    lines += with_label("runs", f"{figures['rounds']} of each, in turn; medians; ratios are of runs of the same round")
    lines += format_busy_warning(figures["runners"].values())
    lines += ["", format_row("seconds", ("process", "start", "after", "ratio"))]
    for name, runner in figures["runners"].items():
        times = [format_seconds(runner[key]) for key in ("process_seconds", "start_seconds", "working_seconds")]
        lines.append(format_row(name, (*times, f"{runner['ratio']['median']:.2f}")))
    return "\n".join([*lines, *(["", *format_missing(figures)] if figures["missing"] else [])])


app = make_app(main)

if __name__ == "__main__":
    app()
