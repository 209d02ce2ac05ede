"""The command line: the Typer application and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from embedcli.cli.batch import batch
from embedcli.cli.bench import bench
from embedcli.cli.compare import compare
from embedcli.cli.config_file import ConfigurableCommand, load_config
from embedcli.cli.console import print_line
from embedcli.cli.encode import encode
from embedcli.cli.entrypoint import run_and_exit_fast
from embedcli.cli.evaluate import evaluate
from embedcli.cli.help import HELP_SETTINGS
from embedcli.cli.inspect import inspect
from embedcli.cli.load import load
from embedcli.cli.merge import merge
from embedcli.cli.models import models, pull
from embedcli.cli.plan import plan
from embedcli.cli.plot import plot
from embedcli.cli.program import Program
from embedcli.cli.report import report
from embedcli.cli.search import search
from embedcli.cli.standard_streams import set_up_standard_streams
from embedcli.cli.verify import verify
from embedcli.core.signals import hide_lost_interruptions, set_stop_handler, stop_at_once

app = typer.Typer(
    name="embedcli",
    help="Batch text embedding: read tables of text, write a vector for every row.",
    rich_markup_mode=None,
    cls=Program,
    pretty_exceptions_enable=False,
    context_settings=HELP_SETTINGS,
)


def show_version(value: bool) -> None:
    """Print the versions of embedcli and of the libraries that affect vectors, and exit."""
    if not value:
        return
    from importlib import metadata

    from embedcli import __version__

    lines = [f"embedcli {__version__}"]
    for name in ("torch", "sentence-transformers", "transformers", "tokenizers", "openvino", "pyarrow"):
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} not installed")
    for line in lines:
        print_line(line)
    raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="PATH",
            help="Read options from this TOML file instead of ./embedcli.toml or [tool.embedcli] in ./pyproject.toml.",
            envvar="EMBEDCLI_CONFIG",
            show_envvar=False,
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=show_version,
            is_eager=True,
            help="Show the versions of embedcli and its libraries, and exit.",
        ),
    ] = False,
) -> None:
    """Batch text embedding: read tables of text, write a vector for every row."""
    load_config(ctx, config)


EMBED, LOOK, CHECK, MODELS = "Embed", "Look", "Check", "Models"
app.command(cls=ConfigurableCommand, rich_help_panel=EMBED)(encode)
app.command(cls=ConfigurableCommand, rich_help_panel=EMBED)(plan)
app.command(cls=ConfigurableCommand, rich_help_panel=EMBED)(merge)
app.command(cls=ConfigurableCommand, rich_help_panel=EMBED)(load)
app.add_typer(batch, rich_help_panel=EMBED)
app.command(cls=ConfigurableCommand, rich_help_panel=LOOK)(inspect)
app.command(cls=ConfigurableCommand, rich_help_panel=LOOK)(search)
app.command(cls=ConfigurableCommand, rich_help_panel=LOOK)(plot)
app.command(cls=ConfigurableCommand, rich_help_panel=LOOK)(report)
app.command(cls=ConfigurableCommand, rich_help_panel=CHECK)(verify)
app.command(cls=ConfigurableCommand, rich_help_panel=CHECK)(compare)
app.command("eval", cls=ConfigurableCommand, rich_help_panel=CHECK)(evaluate)
app.command(cls=ConfigurableCommand, rich_help_panel=CHECK)(bench)
app.command(cls=ConfigurableCommand, rich_help_panel=MODELS)(models)
app.command(cls=ConfigurableCommand, rich_help_panel=MODELS)(pull)


def main() -> None:
    """Run the console script."""
    set_up_standard_streams()
    hide_lost_interruptions()
    set_stop_handler(stop_at_once)
    run_and_exit_fast(lambda: app(prog_name="embedcli"))
