"""`embedcli load`: bring a finished output into a database."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from embedcli.cli.console import print_note
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import QuietFlag
from embedcli.cli.tables import TableOption
from embedcli.cli.vector_column import VectorColumnOption
from embedcli.core.counts import format_count


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
    quiet: QuietFlag = False,
) -> None:
    """Load OUTPUT into a database.

    Rows are inserted or replaced by id, and only those that are new or have changed are sent: an interrupted load
    goes on, and a second one has nothing to do. The table records the vector space; rows of another one are refused.

    Exit codes: 0 all rows loaded, 3 some rows were rejected because the database cannot hold them.
    """
    set_environment({})
    from embedcli.core.startup import block_pandas_import

    block_pandas_import()
    from embedcli.databases import connect, parse_target
    from embedcli.databases.loader import LoadOptions, load_output
    from embedcli.outputs.dataset import open_dataset

    address = parse_target(target, table)
    dataset = open_dataset(output, vector_column)
    with LoadProgress(quiet, dataset.rows) as progress, connect(address) as database:
        options = LoadOptions(sync=sync, swap=swap, index=index)
        result = load_output(
            dataset, database, address.table, options, notify=progress.notify, on_progress=progress.show
        )
    if not quiet:
        for line in summarize(result, address):
            print_note(line)
    elif result.exit_code:
        print_note(f"{format_count(result.rejects, 'row was', 'rows were')} rejected")
    raise typer.Exit(result.exit_code)


class LoadProgress:
    """Progress of a load on stderr. Use it as a context manager."""

    def __init__(self, quiet: bool, rows: int) -> None:
        from embedcli.core.progress import ExpectedRows, ProgressCounts
        from embedcli.pipeline.metrics import MetricsCollector
        from embedcli.reporting.progress import ProgressReporter

        self._reporter = ProgressReporter("auto", quiet)
        self._counts, self._metrics = ProgressCounts(), MetricsCollector()
        self._reporter.on_start(ExpectedRows(rows_to_read=rows), self._metrics)
        self.notify: Callable[[str], None] = self._reporter.notify

    def show(self, rows: int) -> None:
        """Show how many rows are done."""
        self._metrics.last_heartbeat = time.monotonic()
        self._counts.rows_read = self._counts.skipped_rows = rows
        self._reporter.on_progress(self._counts)

    def __enter__(self) -> LoadProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self._reporter.stop()


def summarize(result: Any, address: Any) -> list[str]:
    """Return the lines of the summary."""
    facts = [
        ("rows", f"{result.rows:,} in the output, {result.sent:,} sent, {result.unchanged:,} unchanged"),
    ]
    if result.deleted:
        facts.append(("deleted", format_count(result.deleted, "row")))
    if result.rejects:
        detail = format_count(result.rejects, "row")
        if result.reject_summary is not None:
            detail = f"{result.reject_summary.format_reasons()}; all in {result.reject_summary.path}"
        facts.append(("rejects", detail))
    if result.sent:
        facts.append(("speed", f"{result.sent / result.seconds:,.0f} rows/s, {result.seconds:.1f} s in all"))
    if result.index:
        facts.append(("index", result.index))
    facts.append(("table", f"{address.table} in {address}: {format_count(result.table_rows, 'row')}"))
    lines = [f"{name:<8}  {text}" for name, text in facts]
    return [*lines, "all rows loaded" if result.sent or result.deleted else "nothing to do: the table is up to date"]
