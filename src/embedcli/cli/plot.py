"""`embedcli plot`: a map of an output, to look at."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from embedcli.cli.console import JsonFlag, print_note, show_json
from embedcli.cli.entrypoint import handle_errors, set_environment


@handle_errors
def plot(
    output: Annotated[str, typer.Argument(help="An output of encode.")],
    target: Annotated[str, typer.Argument(metavar="MAP", help="The page or picture: .html, .png, .svg or .pdf.")],
    *,
    color: Annotated[str | None, typer.Option("--color", help="Kept column that colours the points.")] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="Kept column shown for a point; default: the text.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", help="Points at most, drawn at random.", min=2)] = 10_000,
    seed: Annotated[int, typer.Option("--seed", help="Which rows are drawn.", min=0)] = 0,
    method: Annotated[Literal["pca", "umap"], typer.Option("--method", help="How points are placed.")] = "pca",
    as_json: JsonFlag = False,
) -> None:
    """Draw OUTPUT as a map on which similar rows lie near each other.

    An .html page works offline, with zoom, hover and search. PCA needs nothing else; UMAP is an extra, as are pictures.
    """
    set_environment({})
    from embedcli.analysis.projection import make_map, write_page
    from embedcli.outputs.dataset import open_dataset

    made = make_map(open_dataset(output), rows=rows, seed=seed, method=method, color=color, label=label)
    if target.endswith((".html", ".htm")):
        write_page(made, target)
    else:
        from embedcli.analysis.figures import draw_map

        draw_map(made, target)
    if as_json:
        show_json({"map": target, "points": len(made.ids), "about": made.description})
    else:
        print_note(f"{target}: {made.description}")
