"""What `search` and `verify` do with a table in a database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcli.core.errors import UsageError

if TYPE_CHECKING:
    from embedcli.databases.search import TableSearcher

TableOption = Annotated[
    str | None,
    typer.Option("--table", metavar="NAME", help="Table or collection of the database; default: embeddings."),
]


@contextmanager
def open_table_searcher(
    outputs: Sequence[str],
    table: str | None,
    show: Sequence[str],
    notify: Callable[[str], None],
    flags: dict[str, Any],
) -> Iterator[TableSearcher]:
    """Connect to a database and load the model of a table.

    Args:
        outputs: The address of the database.
        table: The table.
        show: Columns to show.
        notify: Receives notes.
        flags: Job options that override the recorded ones.

    Raises:
        UsageError: There are other outputs, with --fuse.
    """
    from embedcli.databases import connect, parse_target
    from embedcli.databases.search import TableSearcher

    if len(outputs) > 1:
        raise UsageError(
            "--fuse searches outputs, not databases", "give the outputs that were loaded, or leave out --fuse"
        )
    address = parse_target(outputs[0], table)
    with (
        connect(address, read_only=True) as database,
        TableSearcher(database, address.table, show, notify=notify, **flags) as searcher,
    ):
        yield searcher


def verify_table(dataset: Any, inputs: Sequence[str], table: str | None, rows: int | None, seed: int) -> list[Any]:
    """Return the checks of a table against the output that was loaded into it.

    Args:
        dataset: The output.
        inputs: The address of the database.
        table: The table.
        rows: Number of random rows to compare value by value; None for all.
        seed: Seed of the sample.

    Raises:
        UsageError: Something else is named beside the database.
    """
    from embedcli.databases import connect, parse_target
    from embedcli.databases.verify import TableVerifier

    if len(inputs) > 1:
        raise UsageError("a database is compared with the output alone", f"leave out {inputs[1]}")
    address = parse_target(inputs[0], table)
    with connect(address, read_only=True) as database:
        return TableVerifier(dataset, database, address.table, rows, seed).run()


def require_target_for_table(table: str | None) -> None:
    """Raise UsageError if --table is given without a database."""
    if table is not None:
        raise UsageError("--table names the table of a database", "give the address of one, such as sqlite:FILE")
