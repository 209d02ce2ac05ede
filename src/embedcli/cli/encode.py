"""`embedcli encode`: flags to a Job, one call, the summary."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from embedcli.cli.config_file import Given, announced, given
from embedcli.cli.entrypoint import Interrupted, fail, guarded, set_environment, told
from embedcli.cli.options import EVERY_FLAG, Price, Progress, Quiet, Report, Verbose, takes
from embedcli.core.errors import UsageError
from embedcli.core.job import Job


@guarded
@takes(EVERY_FLAG)
def encode(
    ctx: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(metavar="INPUT... OUTPUT", help="Files, globs, folders or -; last, the output.")
    ],
    report: Report = None,
    progress: Progress = "auto",
    price: Price = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Embed every row of INPUT... and write the vectors beside their ids to OUTPUT.

    The output's format follows its name: .parquet, .npy (+ .ids.parquet), .jsonl, .arrow, a folder/ of
    parts, or - for stdout. The same command again goes on where it stopped.

    Exit codes: 0 all rows embedded, 1 failed, 2 usage or a changed job, 3 some rows rejected,
    75 stopped early (run again), 130 Ctrl-C. Every option also reads EMBEDCLI_<NAME>.
    """
    set_environment(flags, verbose)
    if len(paths) < 2:
        raise UsageError("encode needs an input and an output", "embedcli encode in.jsonl out.parquet")
    job = Job(inputs=tuple(paths[:-1]), output=paths[-1], **flags)
    code = followed(job, report, progress, quiet, price, settings=given(ctx))
    raise typer.Exit(code)


def followed(
    job: Job,
    report_path: str | None,
    progress: Any,
    quiet: bool,
    price: float | None = None,
    load: Any = None,
    settings: Given | None = None,
) -> int:
    """Run a job with progress, summary and report; the exit code. The report is written after failures too."""
    from embedcli import runners
    from embedcli.pipeline.control import Control
    from embedcli.pipeline.metrics import Meter
    from embedcli.reporting import run_report
    from embedcli.reporting.progress import Follower

    watch = Follower(progress, quiet)
    meter, control = Meter(), Control(job.limit, job.max_seconds)
    made = run_report.RunReport(
        replace(job),
        1,
        "",
        0.0,
        f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        meter,
        notes=watch.notes,
        price_per_mtok=price,
        settings=settings or {},
    )
    for line in announced(settings or {}):
        watch.line(line)
    begun = time.perf_counter()
    try:
        with stopped_by_signals(control):
            made.outcome = runners.run(job, watch, control, meter, load)
        made.exit_code, made.reason = made.outcome.exit_code, made.outcome.reason
    except BaseException as error:  # noqa: BLE001  the report tells of every failure
        watch.end()
        made.reason, made.hint, made.exit_code = told(error)
        fail(error)
    finally:
        watch.end()
        made.seconds = time.perf_counter() - begun
    if made.outcome is not None:
        for line in made.summary():
            watch.line(line)
        watch.line(made.reason)
    if report_path is not None:
        run_report.write_json(report_path, made.as_json())
    return made.exit_code


@contextmanager
def stopped_by_signals(control: Any) -> Iterator[None]:
    """SIGINT and SIGTERM stop after the batch in hand; a second one, or one before any row, leaves at once."""

    def handle(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if control.now.is_set() or not control.begun:
            raise Interrupted(name)
        control.stop(name)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
