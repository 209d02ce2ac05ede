"""`embedcli search`: find the rows of an output that are nearest to a query."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, Literal

import typer

from embedcli.cli.completion import complete_kept_columns
from embedcli.cli.console import JsonFlag, print_note, shorten, show_json, show_table
from embedcli.cli.entrypoint import EXIT_REJECTS, handle_errors, set_environment
from embedcli.cli.options import INPUT_FLAGS, INTERACTIVE_DEFAULTS, MovedModelOption, with_job_options
from embedcli.cli.spinner import show_spinner
from embedcli.cli.tables import TableOption, open_table_searcher, require_target_for_table
from embedcli.cli.vector_column import VectorColumnsOption, open_outputs
from embedcli.core.counts import format_count
from embedcli.core.errors import EmbedcliError, InputError, UsageError
from embedcli.core.job import Job

SEARCH_FLAGS = (
    "trust_remote_code", "offline", "cache_dir", "device", "engine", "dtype", "threads", "base_url",
    *INPUT_FLAGS,
    "request_field", "omit_field", "patience",
)  # fmt: skip
DEFAULT_TEXT_WIDTH = 80

QueriesOption = Annotated[
    str | None,
    typer.Option(
        "--queries", metavar="PATH", help="Search for each row of this file, which is read as encode reads its input."
    ),
]
FuseOption = Annotated[
    Literal["rrf"] | None,
    typer.Option("--fuse", help="Search several outputs, given before the words, and fuse their rankings."),
]
Metric = Literal["cosine", "dot", "maxsim"]
MetricOption = Annotated[
    Metric | None,
    typer.Option(
        "--metric", help="Similarity measure; default: cosine, dot for sparse vectors, maxsim for multi-vector models."
    ),
]
ShowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--show",
        metavar="COLUMN",
        help="Column to show; repeatable; default: all kept text columns.",
        autocompletion=complete_kept_columns,
    ),
]


@handle_errors
@with_job_options(SEARCH_FLAGS, INTERACTIVE_DEFAULTS)
def search(
    output: Annotated[str, typer.Argument(help="Output of encode, or a database, such as sqlite:FILE.")],
    words: Annotated[list[str] | None, typer.Argument(help="Query.")] = None,
    *,
    count: Annotated[int, typer.Option("-k", "--count", metavar="N", help="Number of results per query.", min=1)] = 10,
    queries: QueriesOption = None,
    to: Annotated[
        str | None,
        typer.Option("-o", "--to-file", metavar="PATH", help="Write the results to this file: .jsonl or .parquet."),
    ] = None,
    show: ShowOption = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", help="Text to put before each query; default: the model's query prompt."
        ),
    ] = None,
    model: MovedModelOption = None,
    fuse: FuseOption = None,
    vector_column: VectorColumnsOption = None,
    metric: MetricOption = None,
    table: TableOption = None,
    as_json: JsonFlag = False,
    flags: dict[str, Any],
) -> None:
    """Find the rows of OUTPUT, or of a table in a database, that are nearest to WORDS.

    The search is exact and uses the model and the query prompt recorded in OUTPUT. It prints score, id and the
    kept columns; with --queries, one JSON line per result, or a file. Of sparse vectors, only rows that share a term
    with the query are found. With --fuse rrf, outputs of the same ids are searched, of any kind of vectors, and a row
    scores the sum of 1 / (60 + rank) over its first 1,000 ranks; they may be several --vector-column of one output.

    Exit codes: 0 all queries searched, 1 failed, 2 usage error, 3 some --queries not searched: each is named.
    """
    set_environment(flags)
    others, words = split_outputs(output, words or [], fuse, vector_column or [])
    query = " ".join(words)
    check_query(query, words, queries)
    encoder_flags = {name: value for name, value in flags.items() if name not in INPUT_FLAGS}
    encoder_flags |= {"prompt": prompt, "model": model}
    # Results that appear one by one on a terminal would run into a spinner.
    prints_while_searching = queries is not None and to is None and sys.stdout.isatty()
    with (
        nullcontext(print_note) if prints_while_searching else show_spinner(f"searching {output}") as notify,
        open_searcher([output, *others], vector_column, table, show or [], metric, notify, encoder_flags) as (
            searcher,
            columns,
        ),
    ):
        if queries is not None:
            query_job = Job(inputs=(queries,), output="-", **{name: flags[name] for name in INPUT_FLAGS})
            search_file(searcher, query_job, (count, columns, metric), to or "-", notify)
            return
        hits = search_words(searcher, query, (count, columns, metric), notify)
    if to is not None:
        write_hits(hits, to)
    elif as_json:
        show_json(hits)
    else:
        show_hits(hits, columns)


def split_outputs(
    output: str, arguments: list[str], fuse: str | None, columns: list[str]
) -> tuple[list[str], list[str]]:
    """Return the outputs among the arguments after the first output, with --fuse, and the words behind them.

    Raises:
        UsageError: With --fuse there is only one output with one column of vectors, or without it are several columns
            or several outputs.
    """
    if fuse is None:
        if arguments and is_output(arguments[0]):
            raise UsageError(
                f"{arguments[0]} is an output, and several outputs need --fuse rrf",
                "add --fuse rrf, or put all words of the query into one pair of quotation marks",
            )
        if len(columns) > 1:
            raise UsageError("several --vector-column need --fuse rrf", "add --fuse rrf, or name one column")
        return [], arguments
    count = next((i for i, name in enumerate(arguments) if not is_path(name)), len(arguments))
    if not count and len(columns) < 2:
        raise UsageError(
            f"--fuse {fuse} needs two outputs, and only {output} was given",
            f'embedcli search {output} other.parquet "words to look for" --fuse {fuse}',
        )
    return arguments[:count], arguments[count:]


def is_path(name: str) -> bool:
    """Whether there is something at a path; False for a name that no file can have, such as a long query."""
    from embedcli import storage

    try:
        return storage.exists(name)
    except (EmbedcliError, ValueError):
        return False


def is_output(path: str) -> bool:
    """Whether there is an output at a path."""
    from embedcli.outputs.dataset import open_dataset

    try:
        open_dataset(path)
    except (EmbedcliError, ValueError):  # a name that no file can have
        return False
    return True


@contextmanager
def open_searcher(
    outputs: list[str],
    vector_columns: list[str] | None,
    table: str | None,
    show: list[str],
    metric: Metric | None,
    notify: Callable[[str], None],
    flags: dict[str, Any],
) -> Iterator[tuple[Any, list[str]]]:
    """Load the models of the outputs, or of a table in a database; several outputs are searched together.

    Yields:
        The searcher and the columns to show.
    """
    from embedcli.databases import is_target_address

    if is_target_address(outputs[0]):
        if vector_columns:
            raise UsageError("--vector-column is for outputs: a table has one column of vectors", "leave it out")
        with open_table_searcher(outputs, table, show, notify, flags) as searcher:
            yield searcher, searcher.columns
        return
    require_target_for_table(table)
    from embedcli.analysis.fusion import FusedSearcher
    from embedcli.analysis.search import Searcher, choose_shown_columns
    from embedcli.analysis.similarities import choose_metric

    datasets = open_outputs(outputs, vector_columns)
    for dataset in datasets:  # before a model is loaded
        choose_metric(dataset, metric)
    columns = choose_shown_columns(datasets[0], show)
    if len(datasets) == 1:
        with Searcher(datasets[0], notify=notify, **flags) as searcher:
            yield searcher, columns
    else:
        with FusedSearcher(datasets, notify=notify, **flags) as fused:
            yield fused, columns


def check_query(query: str, words: list[str], queries: str | None) -> None:
    """UsageError unless there is one query that is not empty, or a file of queries."""
    if bool(words) == (queries is not None):
        raise UsageError("search needs either words or --queries", 'embedcli search out.parquet "words to look for"')
    if queries is None and not query.strip():
        raise UsageError("the query is empty", 'embedcli search out.parquet "words to look for"')


def search_words(searcher: Any, words: str, options: tuple[Any, ...], notify: Callable[[str], None]) -> Any:
    """Return the hits of one query. Raises InputError if it has no vector."""
    from embedcli.analysis.queries import SearchQuery

    query = SearchQuery(words)
    result = searcher.search([query], *options)
    for reason in result.rejects.values():
        raise InputError(f"the query {query} has no vector: {reason}", "use other words")
    for rows in result.few_matches.values():
        shared = format_count(rows, "row shares", "rows share")
        notify(f"only {shared} a term with the query" if rows else "no row shares a term with the query")
    return result.hits


def search_file(searcher: Any, job: Job, options: tuple[Any, ...], path: str, notify: Callable[[str], None]) -> None:
    """Write the hits of all queries of a file, and name the queries that cannot be searched.

    Raises:
        InputError: No query can be searched.
        typer.Exit: With EXIT_REJECTS, if some cannot.
    """
    from embedcli.analysis.file_search import FileSearch

    search = FileSearch(searcher, job, options, notify)
    write_hits(search.run(), path)
    for note in search.notes():
        notify(note)
    if search.rejects.count:
        raise typer.Exit(EXIT_REJECTS)


def write_hits(hits: Iterable[dict[str, Any]], path: str) -> None:
    """Write hits to a file, or as lines of JSON to stdout for `-`."""
    from embedcli.analysis.hits_writer import write_rows

    write_rows(iter(hits), path)


def show_hits(hits: list[dict[str, Any]], columns: list[str]) -> None:
    if not hits:
        print_note("no row was found")
        return
    if not columns:
        print_note("the output has no text column; encode with --keep COLUMN to see texts here")
    ids = max(len(str(hit["id"])) for hit in hits)
    width = text_width(len("1.0000") + 2 + ids + 2, len(columns))
    rows = [
        {"score": f"{hit['score']:.4f}", "id": str(hit["id"])}
        | {name: shorten(str(hit[name] if hit[name] is not None else ""), width) for name in columns}
        for hit in hits
    ]
    show_table(rows, right=["score"])


def text_width(used: int, columns: int) -> int:
    """Return the characters for each text column so that a line fits the terminal, DEFAULT_TEXT_WIDTH without one."""
    if not sys.stdout.isatty() or not columns:
        return DEFAULT_TEXT_WIDTH
    return max(16, (shutil.get_terminal_size().columns - used) // columns - 2)
