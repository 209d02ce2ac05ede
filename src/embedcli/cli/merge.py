"""`embedcli merge`: publish an output whose shards have all finished."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedcli.cli.console import print_note
from embedcli.cli.entrypoint import handle_errors
from embedcli.cli.options import QuietFlag, with_job_options
from embedcli.cli.spinner import show_spinner
from embedcli.core.counts import format_count
from embedcli.core.types import OutputFormat


@handle_errors
@with_job_options(("max_rejects",))
def merge(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Output of the shards.")],
    to: Annotated[
        OutputFormat | None, typer.Option("--to", help="Output format, if the file name does not show it.")
    ] = None,
    quiet: QuietFlag = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Publish an output whose shards have all finished.

    The last run of `encode --shard K/N` does this itself; use merge if it was interrupted. It first checks that
    no row is missing. Exit codes are those of encode.
    """
    from embedcli import runners

    with show_spinner(f"merging {output}", quiet):
        result = runners.merge_shards(output, to, flags["max_rejects"])
    if not quiet:
        rows = f"{format_count(result.totals['read'], 'row')}: " if result.totals else ""
        print_note(f"{output}: {rows}{result.reason}")
    raise typer.Exit(result.exit_code)
