"""`embedcli plot`: draw an output as a two-dimensional map."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from embedcli.cli.console import JsonFlag, print_note, show_json
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.vector_column import VectorColumnOption


@handle_errors
def plot(
    output: Annotated[str, typer.Argument(help="Output of encode.")],
    target: Annotated[str, typer.Argument(metavar="MAP", help="File to write: .html, .png, .svg or .pdf.")],
    *,
    color: Annotated[
        str | None, typer.Option("--color", metavar="COLUMN", help="Kept column that sets the colour of the points.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="COLUMN", help="Kept column to show for a point; default: the text."),
    ] = None,
    vector_column: VectorColumnOption = None,
    rows: Annotated[
        int, typer.Option("--rows", metavar="N", help="Maximum number of points, chosen at random.", min=2)
    ] = 10_000,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed for choosing random rows.", min=0)] = 0,
    method: Annotated[Literal["pca", "umap"], typer.Option("--method", help="Projection to two dimensions.")] = "pca",
    as_json: JsonFlag = False,
) -> None:
    """Draw OUTPUT as a map that places similar rows near each other.

    An .html page works offline, with zoom, hover and search. UMAP and image files need optional packages.
    """
    set_environment({})
    from embedcli.analysis.projection import make_map, write_page
    from embedcli.outputs.dataset import open_dataset

    map_ = make_map(open_dataset(output, vector_column), rows=rows, seed=seed, method=method, color=color, label=label)
    if target.endswith((".html", ".htm")):
        write_page(map_, target)
    else:
        from embedcli.analysis.figures import draw_map

        draw_map(map_, target)
    if as_json:
        show_json({"map": target, "points": len(map_.ids), "about": map_.description})
    else:
        print_note(f"{target}: {map_.description}")
