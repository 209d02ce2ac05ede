"""`embedcli load`: bring a finished output into a database."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from embedcli.cli.console import print_note
from embedcli.cli.entrypoint import describe_error, handle_errors, report_error, set_environment
from embedcli.cli.options import QuietFlag, ReportOption
from embedcli.cli.tables import TableOption
from embedcli.cli.vector_column import VectorColumnOption
from embedcli.core.signals import ignore, replace_interruption_hint, set_stop_handler

if TYPE_CHECKING:
    from embedcli.databases.load_result import LoadResult
    from embedcli.databases.report import LoadReport

INTERRUPTED_LOAD_HINT = "run the same command again; only rows that are missing are sent"


@handle_errors
def load(
    output: Annotated[str, typer.Argument(help="Output of encode.")],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Database, such as sqlite:FILE; see the guide to databases.")
    ],
    *,
    vector_column: VectorColumnOption = None,
    table: TableOption = None,
    sync: Annotated[bool, typer.Option("--sync", help="Delete rows whose ids are no longer in OUTPUT.")] = False,
    swap: Annotated[
        bool, typer.Option("--swap", help="Fill a new table, and replace the old one at once at the end.")
    ] = False,
    index: Annotated[bool, typer.Option("--index", help="Build the usual index for searches.")] = False,
    report: ReportOption = None,
    quiet: QuietFlag = False,
) -> None:
    """Load OUTPUT into a database.

    Rows are inserted or replaced by id, and only those that are new or have changed are sent: an interrupted load
    goes on, and a second one has nothing to do. The table records the vector space; rows of another one are refused.

    Exit codes: 0 all rows loaded, 1 failed, 2 usage error or another vector space, 3 some rows were rejected because
    the database cannot hold them, 75 stopped early (run again), 130 Ctrl-C.
    """
    set_environment({})
    from embedcli.core.startup import block_pandas_import

    block_pandas_import()
    from embedcli.databases import parse_target
    from embedcli.databases.load_result import LoadOptions
    from embedcli.databases.report import LoadReport
    from embedcli.reporting.run_report import check_report_path, write_report

    if report is not None:
        check_report_path(report)
    options = LoadOptions(sync=sync, swap=swap, index=index)
    facts = LoadReport(output, parse_target(target, table), options, vector_column)
    load_with_report(facts, quiet)
    if report is not None:
        write_report(report, facts.as_json())
    raise typer.Exit(facts.exit_code)


def load_with_report(report: LoadReport, quiet: bool) -> None:
    """Load, print how it ended, and enter both into the report."""
    start = time.perf_counter()
    try:
        run_load(report, quiet)
    except BaseException as error:  # noqa: BLE001  the report describes every failure
        set_stop_handler(ignore)
        replace_interruption_hint(error, INTERRUPTED_LOAD_HINT)
        report.reason, report.hint, report.exit_code = describe_error(error)
        report_error(error)
        return
    finally:
        report.seconds = time.perf_counter() - start
    if not quiet:
        from embedcli.databases.report import format_load_summary

        for line in [*format_load_summary(report.as_json()), report.reason]:
            print_note(line)
    elif report.exit_code:
        print_note(report.reason)


def run_load(report: LoadReport, quiet: bool) -> None:
    """Load, and enter the result into the report."""
    from embedcli.databases import connect
    from embedcli.databases.loader import load_output
    from embedcli.outputs.dataset import open_dataset

    address = report.address
    dataset = open_dataset(report.output, report.vector_column)
    report.space = dataset.vector_space
    with LoadProgress(report, quiet, dataset.rows) as progress, connect(address) as database:
        result = load_output(
            dataset,
            database,
            address.table,
            report.options,
            notify=progress.notify,
            on_progress=progress.show,
            on_phase=progress.show_phase,
        )
    report.result, report.reason, report.exit_code = result, result.reason, result.exit_code


class LoadProgress:
    """Progress of a load on stderr and in its report. Use it as a context manager."""

    def __init__(self, report: LoadReport, quiet: bool, rows: int) -> None:
        from embedcli.core.progress import ExpectedRows, ProgressCounts
        from embedcli.pipeline.metrics import MetricsCollector
        from embedcli.reporting.progress import ProgressReporter

        self._report = report
        self._reporter = ProgressReporter("auto", quiet)
        report.notes = self._reporter.notes
        self._counts, self._metrics = ProgressCounts(), MetricsCollector()
        self._expected = ExpectedRows(rows_to_read=rows, activity="loading")
        self._is_phase = True
        self.notify: Callable[[str], None] = self._reporter.notify

    def show(self, counts: LoadResult) -> None:
        """Show how many rows are done."""
        self._report.result = counts
        if self._is_phase:
            self._reporter.on_start(self._expected, self._metrics)
            self._is_phase = False
        self._metrics.last_heartbeat = time.monotonic()
        self._counts.rows_read = counts.done
        self._counts.skipped_rows, self._counts.embedded_rows = counts.done - counts.sent, counts.sent
        self._reporter.on_progress(self._counts)

    def show_phase(self, text: str) -> None:
        """Show what happens while no rows are sent."""
        self._is_phase = True
        self._reporter.on_phase(text)

    def __enter__(self) -> LoadProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._reporter.stop()
