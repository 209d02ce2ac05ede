"""The option --vector-column: which column of vectors a command reads of each output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from embedcli.core.errors import UsageError

if TYPE_CHECKING:
    from embedcli.outputs.dataset import VectorDataset

VectorColumnOption = Annotated[
    str | None,
    typer.Option(
        "--vector-column",
        metavar="COLUMN",
        help="Column of vectors to read, of an output with several; default: embedding.",
    ),
]
VectorColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--vector-column",
        metavar="COLUMN",
        help="Column of vectors to read, of outputs with several; once for all outputs, or once for each.",
    ),
]


def open_outputs(paths: Sequence[str], columns: Sequence[str] | None) -> list[VectorDataset]:
    """Open outputs, each with the column of vectors that is asked for.

    Args:
        paths: The outputs.
        columns: None for the usual columns, one for all outputs, or one for each; several for one output open it as
            often.

    Raises:
        UsageError: There are more or fewer columns, or an output has no vectors there.
    """
    from embedcli.outputs.dataset import open_dataset

    if not columns:
        return [open_dataset(path) for path in paths]
    paths = list(paths) * len(columns) if len(paths) == 1 else paths
    if len(columns) not in (1, len(paths)):
        raise UsageError(
            f"--vector-column is given {len(columns)} times for {len(paths)} outputs",
            "give it once for all outputs, or once for each",
        )
    chosen = columns if len(columns) == len(paths) else list(columns) * len(paths)
    return [open_dataset(path, column) for path, column in zip(paths, chosen, strict=True)]
