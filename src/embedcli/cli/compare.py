"""`embedcli compare`: differences between outputs of the same rows."""

from __future__ import annotations

from typing import Annotated, Any, cast, get_args

import typer

from embedcli.cli.console import JsonFlag, format_bytes, print_line, print_note, shorten, show_json, show_table
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.vector_column import VectorColumnsOption, open_outputs
from embedcli.core.counts import format_count
from embedcli.core.errors import UsageError
from embedcli.core.types import Precision

BAR_WIDTH = 40
RIGHT_ALIGNED_COLUMNS = ("rows", "dim", "size", "cosine min", "5%", "median", "neighbours", "worst")

RowsOption = Annotated[
    int | None,
    typer.Option(
        "--rows",
        metavar="N",
        help="Number of random rows whose neighbours are compared; default 1000, or 100 of a multi-vector model.",
        min=1,
    ),
]


@handle_errors
def compare(
    outputs: Annotated[list[str], typer.Argument(metavar="OUTPUT OTHER...", help="Outputs of the same rows.")],
    *,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision", metavar="PRECISION", help="Also compare with OUTPUT stored in this precision; repeatable."
        ),
    ] = None,
    truncate_dim: Annotated[
        list[int] | None,
        typer.Option("--truncate-dim", metavar="N", help="Also compare with OUTPUT cut to N dimensions; repeatable."),
    ] = None,
    vector_column: VectorColumnsOption = None,
    count: Annotated[int, typer.Option("-k", "--count", metavar="N", help="Neighbours per row.", min=1)] = 10,
    rows: RowsOption = None,
    moved: Annotated[
        int, typer.Option("--moved", metavar="N", help="Number of rows to show that changed most.", min=0)
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed for choosing random rows.", min=0)] = 0,
    picture: Annotated[
        str | None,
        typer.Option("--plot", metavar="PATH", help="Draw the distributions to this file: .png, .svg or .pdf."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare OUTPUT with each OTHER on the rows whose ids are in both.

    cosine: similarity of a row's two vectors, if both have the same dimensions. neighbours: fraction of a row's K
    nearest rows that stay the same. If model and prompt are the same, the more precise vectors query both outputs.
    --precision and --truncate-dim show the loss of these options without encoding again.
    """
    set_environment({})
    if len(outputs) < 2 and not precision and not truncate_dim:
        raise UsageError(
            "compare needs two outputs, or a --precision or --truncate-dim to compare with",
            "embedcli compare out.parquet other.parquet",
        )
    from embedcli.analysis.compare import compare_outputs
    from embedcli.analysis.derived import DerivedDataset

    first, *others = open_outputs(outputs, vector_column)
    others += [DerivedDataset(first, dim=dim) for dim in truncate_dim or []]
    others += [DerivedDataset(first, parse_precision(name)) for name in precision or []]
    comparisons = [
        compare_outputs(first, other, k=count, rows=rows, moved=moved, seed=seed).as_json() for other in others
    ]
    if picture is not None:
        from embedcli.analysis.figures import draw_comparisons

        draw_comparisons(comparisons, picture)
        print_note(f"plot written to {picture}")
    if as_json:
        show_json(comparisons)
    else:
        show_comparisons(comparisons)


def parse_precision(name: str) -> Precision:
    """Return a precision by its name; raise UsageError for any other name."""
    if name not in get_args(Precision):
        raise UsageError(
            f"--precision {name!r} is not a valid choice", f"choose one of {', '.join(get_args(Precision))}"
        )
    return cast("Precision", name)


def show_comparisons(comparisons: list[dict[str, Any]]) -> None:
    """Print a table with a line per output, then for each output the distributions and the rows that changed most."""
    first, shared = comparisons[0]["first"], comparisons[0]["shared_rows"]
    size = f"{format_bytes(first['bytes'])} of vectors"
    rows = format_count(first["rows"], "row")
    print_line(f"{first['path']}: {rows}, {first['dim']} dimensions, {first['precision']}, {size}")
    print_line()
    show_table(
        [comparison_row(comparison) for comparison in comparisons],
        right=RIGHT_ALIGNED_COLUMNS,
    )
    for comparison in comparisons:
        print_line()
        print_line(comparison["second"]["path"])
        if comparison["cosine_histogram"]:
            show_bars("cosine", label_bins(comparison["cosine_histogram"]))
        count = comparison["k"]
        overlaps = [(f"{kept} of {count}", rows) for kept, rows in enumerate(comparison["overlap_histogram"])]
        show_bars("neighbours kept", overlaps)
        if comparison["moved"]:
            print_line(f"changed most, by {comparison['moved_by']}")
            show_table([moved_row(row) for row in comparison["moved"]], right=["similarity"])
    for comparison in comparisons:
        if comparison["same_vocabulary"] is False:
            path = comparison["second"]["path"]
            print_note(f"{first['path']} and {path} have different vocabularies: their weights cannot be compared")
    if shared < first["rows"]:
        print_note(f"{format_count(first['rows'] - shared, 'row')} of {first['path']} missing from other outputs")


def comparison_row(comparison: dict[str, Any]) -> dict[str, str]:
    second, cosine, overlap = comparison["second"], comparison["cosine"], comparison["overlap"]
    cosines = {"cosine min": "-", "5%": "-", "median": "-"}
    if cosine:
        cosines = {
            "cosine min": f"{cosine['min']:.5f}",
            "5%": f"{cosine['p05']:.5f}",
            "median": f"{cosine['median']:.5f}",
        }
    kept = {"neighbours": f"{overlap['mean']:.1%}", "worst": f"{overlap['min']:.0%}"} if overlap else {}
    return {
        "other": second["path"],
        "rows": f"{comparison['shared_rows']:,}",
        "dim": str(second["dim"]),
        "precision": second["precision"],
        "size": format_bytes(second["bytes"]),
        **cosines,
        **({"neighbours": "-", "worst": "-"} | kept),
    }


def label_bins(histogram: dict[str, Any]) -> list[tuple[str, int]]:
    """Return the counts of a histogram, labelled by the lower edges of the bins."""
    width = (histogram["to"] - histogram["from"]) / len(histogram["counts"])
    return [(f"{histogram['from'] + i * width:.5f}", count) for i, count in enumerate(histogram["counts"])]


def show_bars(title: str, counts: list[tuple[str, int]]) -> None:
    """Print counts as bars of at most BAR_WIDTH characters, without the empty bins at either end."""
    nonzero = [i for i, (_, count) in enumerate(counts) if count]
    most = max((count for _, count in counts), default=0)
    if not most:
        return
    print_line(title)
    for name, count in counts[nonzero[0] : nonzero[-1] + 1]:
        print_line(f"  {name:>8}  {count:>9,}  {'#' * -(-count * BAR_WIDTH // most)}")


def moved_row(row: dict[str, Any]) -> dict[str, str]:
    kept = " | ".join(
        shorten(str(value), 60) for name, value in row.items() if name not in ("similarity", "id") and value
    )
    return {"similarity": f"{row['similarity']:.5f}", "id": str(row["id"]), "row": kept}
