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

from embedcli.cli.config_file import OptionSources, collect_given_options, describe_config_options
from embedcli.cli.entrypoint import InterruptedBySignal, describe_error, handle_errors, report_error, set_environment
from embedcli.cli.options import (
    ALL_FLAGS,
    PriceOption,
    ProgressOption,
    QuietFlag,
    ReportOption,
    VerboseFlag,
    with_job_options,
)
from embedcli.core.errors import UsageError
from embedcli.core.job import Job


@handle_errors
@with_job_options(ALL_FLAGS)
def encode(
    ctx: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(metavar="INPUT... OUTPUT", help="Files, globs, folders or -; last, the output.")
    ],
    report: ReportOption = None,
    progress: ProgressOption = "auto",
    price: PriceOption = None,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
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
    code = run_job_with_reporting(job, report, progress, quiet, price, settings=collect_given_options(ctx))
    raise typer.Exit(code)


def run_job_with_reporting(
    job: Job,
    report_path: str | None,
    progress: Any,
    quiet: bool,
    price: float | None = None,
    load: Any = None,
    settings: OptionSources | None = None,
) -> int:
    """Run a job with progress, summary and report; the exit code. The report is written after failures too."""
    from embedcli import runners
    from embedcli.pipeline.control import RunControl
    from embedcli.pipeline.metrics import MetricsCollector
    from embedcli.reporting import run_report
    from embedcli.reporting.progress import ProgressReporter

    watch = ProgressReporter(progress, quiet)
    meter, control = MetricsCollector(), RunControl(job.limit, job.max_seconds)
    made = run_report.RunReport(
        replace(job),
        1,
        "",
        0.0,
        f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        meter,
        notes=watch.notes,
        price_per_mtok=price,
        option_sources=settings or {},
    )
    for line in describe_config_options(settings or {}):
        watch.notify(line)
    begun = time.perf_counter()
    try:
        with stop_on_signals(control):
            made.result = runners.execute_job(job, watch, control, meter, load)
        made.exit_code, made.reason = made.result.exit_code, made.result.reason
    except BaseException as error:  # noqa: BLE001  the report tells of every failure
        watch.stop()
        made.reason, made.hint, made.exit_code = describe_error(error)
        report_error(error)
    finally:
        watch.stop()
        made.seconds = time.perf_counter() - begun
    if made.result is not None:
        for line in made.format_summary():
            watch.notify(line)
        watch.notify(made.reason)
    if report_path is not None:
        run_report.write_report(report_path, made.as_json())
    return made.exit_code


@contextmanager
def stop_on_signals(control: Any) -> Iterator[None]:
    """SIGINT and SIGTERM stop after the batch in hand; a second one, or one before any row, leaves at once."""

    def handle(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if control.stop_event.is_set() or not control.has_started:
            raise InterruptedBySignal(name)
        control.stop(name)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
