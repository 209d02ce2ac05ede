"""The command line: the Typer application and its commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import typer

from embedcli.cli.config_file import load_config
from embedcli.cli.console import print_line
from embedcli.cli.entrypoint import run_and_exit_fast
from embedcli.cli.help import HELP_SETTINGS
from embedcli.cli.program import CommandHome, Program
from embedcli.cli.standard_streams import set_up_standard_streams
from embedcli.core.signals import hide_lost_interruptions, set_stop_handler, stop_at_once

EMBED, LOOK, CHECK, MODELS = "Embed", "Look", "Check", "Models"


class EmbedcliProgram(Program):
    """The commands of embedcli, in the order of the help."""

    homes: ClassVar[Mapping[str, CommandHome]] = {
        "encode": CommandHome(EMBED, "embedcli.cli.encode", "encode"),
        "plan": CommandHome(EMBED, "embedcli.cli.plan", "plan"),
        "merge": CommandHome(EMBED, "embedcli.cli.merge", "merge"),
        "load": CommandHome(EMBED, "embedcli.cli.load", "load"),
        "inspect": CommandHome(LOOK, "embedcli.cli.inspect", "inspect"),
        "search": CommandHome(LOOK, "embedcli.cli.search", "search"),
        "plot": CommandHome(LOOK, "embedcli.cli.plot", "plot"),
        "report": CommandHome(LOOK, "embedcli.cli.report", "report"),
        "verify": CommandHome(CHECK, "embedcli.cli.verify", "verify"),
        "compare": CommandHome(CHECK, "embedcli.cli.compare", "compare"),
        "eval": CommandHome(CHECK, "embedcli.cli.evaluate", "evaluate"),
        "bench": CommandHome(CHECK, "embedcli.cli.bench", "bench"),
        "models": CommandHome(MODELS, "embedcli.cli.models", "models"),
        "pull": CommandHome(MODELS, "embedcli.cli.models", "pull"),
        "batch": CommandHome(EMBED, "embedcli.cli.batch", "batch"),
    }


app = typer.Typer(
    name="embedcli",
    help="Batch text embedding: read tables of text, write a vector for every row.",
    rich_markup_mode=None,
    cls=EmbedcliProgram,
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


def main() -> None:
    """Run the console script."""
    set_up_standard_streams()
    hide_lost_interruptions()
    set_stop_handler(stop_at_once)
    run_and_exit_fast(lambda: app(prog_name="embedcli"))
