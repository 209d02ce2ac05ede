"""`embedcli search`: find the rows of an output that are nearest to a query."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import typer

from embedcli.cli.console import JsonFlag, print_note, shorten, show_json, show_table
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import with_job_options
from embedcli.core.errors import UsageError
from embedcli.core.job import Job

SEARCH_FLAGS = (
    "trust_remote_code", "offline", "cache_dir", "device", "engine", "dtype", "threads", "base_url",
    "text_column", "id_column", "template", "format", "encoding",
)  # fmt: skip
DEFAULT_TEXT_WIDTH = 80
INPUT_FIELDS = ("text_column", "id_column", "template", "format", "encoding")


@handle_errors
@with_job_options(SEARCH_FLAGS)
def search(
    output: Annotated[str, typer.Argument(help="Output of encode.")],
    words: Annotated[list[str] | None, typer.Argument(help="Query.")] = None,
    *,
    count: Annotated[int, typer.Option("-k", "--count", help="Number of results per query.", min=1)] = 10,
    queries: Annotated[
        str | None,
        typer.Option("--queries", help="Search for each row of this file, which is read as encode reads its input."),
    ] = None,
    to: Annotated[
        str | None, typer.Option("-o", "--to-file", help="Write the results to this file: .jsonl or .parquet.")
    ] = None,
    show: Annotated[
        list[str] | None, typer.Option("--show", help="Column to show; repeatable; default: all kept text columns.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text to put before each query; default: the model's query prompt.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="Where the same model is now; default: as recorded.")
    ] = None,
    metric: Annotated[Literal["cosine", "dot"], typer.Option("--metric", help="Similarity measure.")] = "cosine",
    as_json: JsonFlag = False,
    flags: dict[str, Any],
) -> None:
    """Find the rows of OUTPUT that are nearest to WORDS.

    The search is exact and uses the model and the query prompt recorded in OUTPUT. It prints score, id and the
    kept columns; with --queries, one JSON line per result, or a file.
    """
    set_environment(flags)
    if bool(words) == (queries is not None):
        raise UsageError("search needs either words or --queries", 'embedcli search out.parquet "words to look for"')
    if words is not None and queries is None and not " ".join(words).strip():
        raise UsageError("the words to look for are empty", 'embedcli search out.parquet "words to look for"')
    from embedcli.analysis.hits_writer import write_rows
    from embedcli.analysis.search import Searcher, SearchQuery, choose_shown_columns
    from embedcli.outputs.dataset import open_dataset

    opened = open_dataset(output)
    columns = choose_shown_columns(opened, show or [])
    loading = {name: value for name, value in flags.items() if name not in INPUT_FIELDS}
    with Searcher(opened, notify=print_note, prompt=prompt, model=model, **loading) as searcher:
        if queries is not None:
            file = Job(inputs=(queries,), output="-", **{name: flags[name] for name in INPUT_FIELDS})
            hits = search_queries_in_file(searcher, file, (count, columns, metric))
            write_rows(hits, to or "-")
            return
        found = searcher.search([SearchQuery(" ".join(words or []))], count, columns, metric)
    if to is not None:
        write_rows(iter(found), to)
    elif as_json:
        show_json(found)
    else:
        show_hits(found, columns)


def search_queries_in_file(searcher: Any, file: Job, how: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """The hits of all queries in a file, in order, batch by batch."""
    from embedcli.analysis.search import batch_queries, read_search_queries

    for batch in batch_queries(read_search_queries(file)):
        yield from searcher.search(batch, *how)


def show_hits(found: list[dict[str, Any]], columns: list[str]) -> None:
    if not columns:
        print_note("no text was kept; encode with --keep COLUMN to see it here")
    ids = max((len(str(hit["id"])) for hit in found), default=0)
    room = text_width(len("1.0000") + 2 + ids + 2, len(columns))
    rows = [
        {"score": f"{hit['score']:.4f}", "id": str(hit["id"])}
        | {name: shorten(str(hit[name] if hit[name] is not None else ""), room) for name in columns}
        for hit in found
    ]
    show_table(rows, right=["score"])


def text_width(taken: int, columns: int) -> int:
    """Characters for each text, so that a line fits the terminal; TEXT where there is none."""
    if not sys.stdout.isatty() or not columns:
        return DEFAULT_TEXT_WIDTH
    return max(16, (shutil.get_terminal_size().columns - taken) // columns - 2)
