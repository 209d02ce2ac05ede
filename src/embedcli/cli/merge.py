"""`embedcli merge`: publish an output whose shards are all done."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedcli.cli.entrypoint import handle_errors
from embedcli.cli.options import QuietFlag, with_job_options
from embedcli.core.types import OutputFormat


@handle_errors
@with_job_options(("max_rejects",))
def merge(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="The output that the shards have in common.")],
    to: Annotated[OutputFormat | None, typer.Option("--to", help="Its format, when the name does not tell.")] = None,
    quiet: QuietFlag = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Publish an output whose shards (`encode --shard K/N`) are all done, after checking that no row is missing.

    The last shard does it by itself; this is for when it could not. Exit codes as of encode.
    """
    from embedcli import runners

    outcome = runners.merge_shards(output, to, flags["max_rejects"])
    if not quiet:
        counted = f"{outcome.totals['read']:,} rows: " if outcome.totals else ""
        typer.echo(f"{output}: {counted}{outcome.reason}", err=True)
    raise typer.Exit(outcome.exit_code)
