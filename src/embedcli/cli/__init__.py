"""argv to one call to exit code: the only room that knows Typer."""

from __future__ import annotations

from typing import Annotated

import typer

from embedcli.cli.batch import batch
from embedcli.cli.bench import bench
from embedcli.cli.compare import compare
from embedcli.cli.config_file import Command, configure
from embedcli.cli.encode import encode
from embedcli.cli.entrypoint import ended_at_once
from embedcli.cli.evaluate import evaluate
from embedcli.cli.inspect import inspect
from embedcli.cli.merge import merge
from embedcli.cli.models import models, pull
from embedcli.cli.plan import plan
from embedcli.cli.plot import plot
from embedcli.cli.report import report
from embedcli.cli.search import search
from embedcli.cli.verify import verify

app = typer.Typer(
    name="embedcli",
    help="Batch text embedding: tables in, vectors beside their ids out, no row lost.",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(value: bool) -> None:
    """Print the version and the versions of the libraries that decide vectors, then leave."""
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
    typer.echo("\n".join(lines))
    raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="Flags from this TOML file, not from ./embedcli.toml or [tool.embedcli] of ./pyproject.toml.",
            envvar="EMBEDCLI_CONFIG",
            show_envvar=False,
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Batch text embedding: tables in, vectors beside their ids out, no row lost."""
    configure(ctx, config, app)


app.command(cls=Command)(encode)
app.command(cls=Command)(merge)
app.command(cls=Command)(plan)
app.command(cls=Command)(inspect)
app.command(cls=Command)(search)
app.command(cls=Command)(verify)
app.command(cls=Command)(compare)
app.command("eval", cls=Command)(evaluate)
app.command(cls=Command)(plot)
app.command(cls=Command)(report)
app.command(cls=Command)(bench)
app.add_typer(batch)
app.command(cls=Command)(models)
app.command(cls=Command)(pull)


def main() -> None:
    """The console script."""
    ended_at_once(lambda: app(prog_name="embedcli"))
