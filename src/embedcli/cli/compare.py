"""`embedcli compare`: what another model, precision or setting changes, on the same rows."""

from __future__ import annotations

from typing import Annotated, Any, cast, get_args

import typer

from embedcli.cli.console import JsonFlag, format_bytes, print_note, shorten, show_json, show_table
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.core.errors import UsageError
from embedcli.core.types import Precision

BAR_WIDTH = 40
RIGHT_ALIGNED_COLUMNS = ("rows", "dim", "size", "cosine min", "5%", "median", "neighbours", "worst")


@handle_errors
def compare(
    outputs: Annotated[list[str], typer.Argument(metavar="OUTPUT OTHER...", help="Outputs of the same rows.")],
    *,
    precision: Annotated[
        list[str] | None, typer.Option("--precision", help="Also OUTPUT itself, stored like this; repeatable.")
    ] = None,
    truncate_dim: Annotated[
        list[int] | None, typer.Option("--truncate-dim", help="Also OUTPUT itself, cut to N dimensions; repeatable.")
    ] = None,
    count: Annotated[int, typer.Option("-k", "--count", help="Neighbours of each row.", min=1)] = 10,
    rows: Annotated[
        int, typer.Option("--rows", help="Rows whose neighbours are compared, drawn at random.", min=1)
    ] = 1000,
    moved: Annotated[int, typer.Option("--moved", help="Rows to show that moved most.", min=0)] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Which rows are drawn.", min=0)] = 0,
    picture: Annotated[str | None, typer.Option("--plot", help="Draw the spread: .png, .svg or .pdf.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare OUTPUT with each OTHER on the rows they share by id.

    cosine: of each row's two vectors, where the dimensions are the same. neighbours: the share of a row's K
    nearest rows that stay the same. Where model and prompt are the same, both are asked with the finer vectors.
    --precision and --truncate-dim tell what these would cost, without encoding again.
    """
    set_environment({})
    if len(outputs) < 2 and not precision and not truncate_dim:
        raise UsageError(
            "compare needs two outputs, or a --precision or --truncate-dim to compare with",
            "embedcli compare out.parquet other.parquet",
        )
    from embedcli.analysis.compare import compare_outputs as compared
    from embedcli.analysis.derived import DerivedDataset
    from embedcli.outputs.dataset import open_dataset

    first = open_dataset(outputs[0])
    others = [open_dataset(path) for path in outputs[1:]]
    others += [DerivedDataset(first, dim=dim) for dim in truncate_dim or []]
    others += [DerivedDataset(first, parse_precision(name)) for name in precision or []]
    made = [compared(first, other, k=count, rows=rows, moved=moved, seed=seed) for other in others]
    found = [one.as_json() for one in made]
    if picture is not None:
        from embedcli.analysis.figures import draw_comparisons

        draw_comparisons(found, picture)
        print_note(f"the picture is in {picture}")
    if as_json:
        show_json(found)
    else:
        show_comparisons(found)


def parse_precision(name: str) -> Precision:
    """A precision by its name. UsageError if there is none."""
    if name not in get_args(Precision):
        raise UsageError(f"there is no --precision {name!r}", f"choose one of {', '.join(get_args(Precision))}")
    return cast("Precision", name)


def show_comparisons(found: list[dict[str, Any]]) -> None:
    """A table with one line for each file, then for each the spread and the rows that moved most."""
    first, shared = found[0]["first"], found[0]["shared_rows"]
    about = f"{first['rows']:,} rows, {first['dim']} dimensions, {first['precision']}, {format_bytes(first['bytes'])} of vectors"
    typer.echo(f"{first['path']}: {about}\n")
    show_table(
        [comparison_row(one) for one in found],
        right=["rows", "dim", "size", "cosine min", "5%", "median", "neighbours", "worst"],
    )
    for one in found:
        typer.echo(f"\n{one['second']['path']}")
        if one["cosine_histogram"]:
            show_bars("cosine", histogram_steps(one["cosine_histogram"]))
        show_bars(f"of {one['k']} neighbours kept", [(str(i), n) for i, n in enumerate(one["overlap_histogram"])])
        if one["moved"]:
            typer.echo(f"moved most, by {one['moved_by']}")
            show_table([moved_row(row) for row in one["moved"]], right=["similarity"])
    if shared < first["rows"]:
        print_note(f"{first['rows'] - shared:,} rows of {first['path']} are not in every other file")


def comparison_row(one: dict[str, Any]) -> dict[str, str]:
    second, cosine, overlap = one["second"], one["cosine"], one["overlap"]
    told = {"cosine min": "-", "5%": "-", "median": "-"}
    if cosine:
        told = {"cosine min": f"{cosine['min']:.5f}", "5%": f"{cosine['p05']:.5f}", "median": f"{cosine['median']:.5f}"}
    kept = {"neighbours": f"{overlap['mean']:.1%}", "worst": f"{overlap['min']:.0%}"} if overlap else {}
    return {
        "other": second["path"],
        "rows": f"{one['shared_rows']:,}",
        "dim": str(second["dim"]),
        "precision": second["precision"],
        "size": format_bytes(second["bytes"]),
        **told,
        **({"neighbours": "-", "worst": "-"} | kept),
    }


def histogram_steps(found: dict[str, Any]) -> list[tuple[str, int]]:
    """A histogram's bins by where they begin."""
    width = (found["to"] - found["from"]) / len(found["counts"])
    return [(f"{found['from'] + i * width:.5f}", count) for i, count in enumerate(found["counts"])]


def show_bars(title: str, counts: list[tuple[str, int]]) -> None:
    """Counts as bars of at most BAR characters; empty ends are left out."""
    filled = [i for i, (_, count) in enumerate(counts) if count]
    most = max((count for _, count in counts), default=0)
    if not most:
        return
    typer.echo(title)
    for name, count in counts[filled[0] : filled[-1] + 1]:
        typer.echo(f"  {name:>8}  {count:>9,}  {'#' * -(-count * BAR_WIDTH // most)}".rstrip())


def moved_row(row: dict[str, Any]) -> dict[str, str]:
    kept = " | ".join(
        shorten(str(value), 60) for name, value in row.items() if name not in ("similarity", "id") and value
    )
    return {"similarity": f"{row['similarity']:.5f}", "id": str(row["id"]), "row": kept}
