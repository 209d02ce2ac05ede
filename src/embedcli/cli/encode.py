"""`embedcli encode`: run a job with progress, summary and report."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcli.cli.config_file import OptionSources, collect_given_options, describe_config_options
from embedcli.cli.entrypoint import (
    EXIT_REJECTS,
    describe_error,
    handle_errors,
    limit_blas_threads,
    report_error,
    set_environment,
)
from embedcli.cli.options import (
    ALL_FLAGS,
    PriceOption,
    ProgressOption,
    QuietFlag,
    ReportOption,
    VerboseFlag,
    with_job_options,
)
from embedcli.core.errors import TooManyRejectsError, UsageError
from embedcli.core.job import Job
from embedcli.core.signals import (
    INTERRUPTED_OVERWRITE_HINT,
    ignore,
    replace_interruption_hint,
    set_stop_handler,
    stop_at_once,
)

if TYPE_CHECKING:
    from embedcli.reporting.progress import ProgressReporter
    from embedcli.reporting.run_report import RunReport


@handle_errors
@with_job_options(ALL_FLAGS)
def encode(
    ctx: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT... OUTPUT", help="Input files, globs, folders or - for stdin; the output comes last."
        ),
    ],
    report: ReportOption = None,
    progress: ProgressOption = "auto",
    price: PriceOption = None,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Embed every row of the inputs and write the vectors to OUTPUT.

    The name of OUTPUT sets its format: .parquet, .npy (with .ids.parquet), .jsonl, .arrow, a folder/ of
    Parquet files, or - for stdout. If a run is interrupted, the same command resumes it.

    Exit codes: 0 all rows embedded, 1 failed, 2 usage error or changed job, 3 some rows rejected,
    75 stopped early (run again), 130 Ctrl-C. Every option can also be set as EMBEDCLI_<NAME>.
    """
    set_environment(flags, verbose, uses_arrow=False)
    limit_blas_threads()
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
    """Run a job with progress, summary and, even if the job fails, the report. Return the exit code.

    Args:
        job: The job.
        report_path: Where to write the JSON report, if anywhere.
        progress: Value of --progress.
        quiet: Print errors only.
        price: Price per million tokens.
        load: Loads the encoder in place of the job's model.
        settings: Options that are not at their defaults.
    """
    from embedcli import runners
    from embedcli.core.startup import block_pandas_import
    from embedcli.pipeline.control import RunControl
    from embedcli.reporting.progress import ProgressReporter
    from embedcli.reporting.run_report import check_report_path

    if report_path is not None:
        check_report_path(report_path)
    if progress == "auto" and job.output == "-" and sys.stdout.isatty():
        progress = "plain"  # a bar would be drawn between the rows
    reporter = ProgressReporter(progress, quiet, price_per_mtok=price)
    control = RunControl(job.stop_after, job.max_seconds)
    report = start_report(job, reporter, price, settings or {})
    for line in describe_config_options(settings or {}):
        reporter.notify(line)
    start = time.perf_counter()
    try:
        with stop_on_signals(control, reporter):
            report.result = runners.find_finished_result(job, reporter) if load is None else None
            if report.result is None:
                block_pandas_import()
                report.result = runners.execute_job(job, reporter, control, report.metrics, load)
        report.exit_code, report.reason = report.result.exit_code, report.result.reason
    except BaseException as error:  # noqa: BLE001  the report describes every failure
        reporter.stop()
        record_failure(report, error)
        report_error(error)
    finally:
        reporter.stop()
        report.seconds = time.perf_counter() - start
    show_and_write_report(report, reporter, report_path)
    return report.exit_code


def start_report(job: Job, reporter: ProgressReporter, price: float | None, settings: OptionSources) -> RunReport:
    """The report of a run that begins now, with the exit code of a failure until the run has ended."""
    from embedcli.pipeline.metrics import MetricsCollector
    from embedcli.reporting.run_report import RunReport

    return RunReport(
        job=job,
        exit_code=1,
        reason="",
        seconds=0.0,
        started=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        metrics=MetricsCollector(),
        notes=reporter.notes,
        price_per_mtok=price,
        option_sources=settings,
    )


def record_failure(report: RunReport, error: BaseException) -> None:
    """Describe in the report why the run failed, and in the hint of the error what it has kept."""
    if isinstance(error, TooManyRejectsError):
        report.reject_summary = error.rejects
    if report.job.overwrite and report.metrics.rows:  # the same command would discard what is finished
        replace_interruption_hint(error, INTERRUPTED_OVERWRITE_HINT)
    report.reason, report.hint, report.exit_code = describe_error(error)


def show_and_write_report(report: RunReport, reporter: ProgressReporter, path: str | None) -> None:
    """Print the summary if the run has a result, and write the report if there is a path.

    A quiet run prints one line if the exit code is not 0: why.
    """
    from embedcli.reporting.run_report import write_report
    from embedcli.reporting.summary import format_summary

    if report.result is not None:
        content = report.as_json()
        for line in format_summary(content):
            reporter.notify(line)
        reporter.notify(report.reason)
        if reporter.quiet and report.exit_code:
            from embedcli.reporting.rejects import format_rejects_in_short

            reporter.error(format_rejects_in_short(content) if report.exit_code == EXIT_REJECTS else report.reason)
    if path is not None:
        write_report(path, report.as_json())


@contextmanager
def stop_on_signals(control: Any, reporter: Any) -> Iterator[None]:
    """Stop the run after the current batch on a signal; at once on a second signal or before any row.

    Once the run has ended, signals are ignored: all that is left is to say how, and to write the report.
    """

    def stop(name: str) -> None:
        is_second = control.stop_event.is_set()
        control.stop(name)
        if is_second or not control.has_started:
            stop_at_once(name)
        reporter.request_stop(name)

    set_stop_handler(stop)
    try:
        stop_at_once.raise_if_lost()
        yield
    finally:
        set_stop_handler(ignore)
