"""`embedcli eval`: a benchmark table from your own labelled files."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedcli.cli.console import JsonFlag, print_note, show_json, show_table
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import with_job_options
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import DEFAULT_MODEL

EVALUATE_FLAGS = (
    "revision", "trust_remote_code", "offline", "cache_dir", "as_", "prompt_name", "prompt", "max_seq_length",
    "normalize", "truncate_dim", "device", "engine", "dtype", "batch_tokens", "threads", "base_url",
    "text_column", "id_column", "template", "format", "encoding",
)  # fmt: skip
INPUT_FIELDS = ("text_column", "id_column", "template", "format", "encoding")


@handle_errors
@with_job_options(EVALUATE_FLAGS)
def evaluate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Labelled rows; each file is one column.")],
    *,
    model: Annotated[
        list[str] | None,
        typer.Option("-m", "--model", help="Model; repeatable, for a line each.", envvar="EMBEDCLI_MODEL"),
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Pairs: TEXT_A,TEXT_B,SCORE; guessed when not given.")
    ] = None,
    queries: Annotated[
        str | None, typer.Option("--queries", help="Retrieval: the queries; FILE has the documents.")
    ] = None,
    relevance: Annotated[
        str | None, typer.Option("--relevance", help="Retrieval: query_id, document_id, relevance; or TREC qrels.")
    ] = None,
    query_prompt: Annotated[
        str | None, typer.Option("--query-prompt", help="Retrieval: put before each query.")
    ] = None,
    document_prompt: Annotated[
        str | None, typer.Option("--document-prompt", help="Retrieval: put before each document.")
    ] = None,
    count: Annotated[int, typer.Option("-k", "--count", help="Retrieval: rows per query that count.", min=1)] = 10,
    label: Annotated[str | None, typer.Option("--label", help="Clustering: the column with the groups.")] = None,
    as_json: JsonFlag = False,
    flags: dict[str, Any],
) -> None:
    """Measure models on labelled rows; the first measure of each file, times 100, makes the table.

    Pairs with scores: Spearman and Pearson of the cosine. With --queries and --relevance: nDCG, recall and MAP.
    With --label: v-measure of k-means. Several files give columns and an average, several models give lines.
    """
    set_environment(flags)
    from embedcli.analysis.evaluate import evaluate_model as evaluated

    reading = Job(inputs=(), output="-", **{name: flags[name] for name in INPUT_FIELDS})
    tasks = read_tasks(reading, files, columns, label, (queries, relevance, query_prompt, document_prompt))
    encoding = {name: value for name, value in flags.items() if name not in INPUT_FIELDS}
    jobs = [Job(inputs=(), output="-", model=name, **encoding) for name in model or [DEFAULT_MODEL]]
    found = [evaluated(job, tasks, count, print_note) for job in jobs]
    if as_json:
        show_json(found)
        return
    show_table([model_row(one) for one in found], right=[name for name in model_row(found[0]) if name != "model"])
    typer.echo()
    show_table(detail_rows(found), right=[one["model"] for one in found])


def read_tasks(
    job: Job, files: list[str], columns: str | None, label: str | None, retrieval: tuple[str | None, ...]
) -> Any:
    """The tasks that the files and flags describe. UsageError where they do not fit together."""
    from dataclasses import replace

    from embedcli.analysis.eval_data import read_labelled_texts, read_pairs, read_retrieval

    queries, relevance, query_prompt, document_prompt = retrieval
    if (queries is None) != (relevance is None):
        raise UsageError("--queries and --relevance belong together", "give both, and the documents as FILE")
    if sum((columns is not None, label is not None, queries is not None)) > 1:
        raise UsageError("--columns, --label and --queries are three kinds of evaluation", "choose one")
    if queries is not None and relevance is not None:
        made = [read_retrieval(job, file, queries, relevance) for file in files]
        return [replace(task, query_prompt=query_prompt, document_prompt=document_prompt) for task in made]
    if label is not None:
        return [read_labelled_texts(job, file, label) for file in files]
    names = columns.split(",") if columns is not None else None
    if names is not None and len(names) != 3:
        raise UsageError(f"--columns {columns} names {len(names)} columns", "give three: TEXT_A,TEXT_B,SCORE")
    return [read_pairs(job, file, names) for file in files]


def model_row(one: dict[str, Any]) -> dict[str, str]:
    """A model's line of the table: main measures times 100, as benchmark tables print them."""
    main = {task["name"]: to_percent(next(iter(task["measures"].values()))) for task in one["tasks"]}
    speed = one["rows_per_second"]
    average = {"average": to_percent(one["average"])} if len(one["tasks"]) > 1 else {}
    return {"model": one["model"], **main, **average, "rows/s": f"{speed:,.0f}" if speed is not None else "-"}


def detail_rows(found: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Every measure of every file, one column for each model."""
    return [
        {"file": task["name"], "measure": name}
        | {one["model"]: f"{one['tasks'][i]['measures'][name]:.4f}" for one in found}
        for i, task in enumerate(found[0]["tasks"])
        for name in task["measures"]
    ]


def to_percent(value: float) -> str:
    return f"{100 * value:.2f}"
