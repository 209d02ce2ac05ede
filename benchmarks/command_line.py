"""What the programs of this folder share: the command line, and the figures as a table and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from embedcli.cli.entrypoint import handle_errors
from embedcli.reporting import run_report

Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Runs of each contender, in turn.")]
RowLimit = Annotated[int | None, typer.Option("--rows", min=1, help="Use only the first N rows.")]
JsonPath = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write all figures as JSON.")]


def make_app(command: Callable[..., None]) -> typer.Typer:
    """A program with this one command, whose errors end in a message and an exit code, as embedcli's do."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(handle_errors(command))
    return app


def publish(figures: Mapping[str, Any], table: str, json_path: str | None) -> None:
    """Print the table, and write the figures to `json_path` if there is one."""
    sys.stdout.write(table + "\n")
    if json_path is not None:
        run_report.write_report(json_path, figures)
