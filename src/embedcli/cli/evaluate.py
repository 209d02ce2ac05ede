"""`embedcli eval`: evaluate models on the user's labelled rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from embedcli.cli.completion import complete_models
from embedcli.cli.console import JsonFlag, print_line, print_note, show_json, show_table
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import INPUT_FLAGS, INTERACTIVE_DEFAULTS, with_job_options
from embedcli.core.constants import DEFAULT_MODEL
from embedcli.core.errors import UsageError
from embedcli.core.job import Job

EVALUATE_FLAGS = (
    "revision", "trust_remote_code", "code_revision", "offline", "cache_dir", "as_", "prompt_name", "prompt",
    "max_seq_length", "heads", "normalize", "truncate_dim", "device", "engine", "dtype", "batch_tokens", "threads",
    *INPUT_FLAGS,
    "base_url", "request_field", "omit_field", "patience",
)  # fmt: skip

ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        help="Model; repeatable: each becomes a line of the table.",
        envvar="EMBEDCLI_MODEL",
        autocompletion=complete_models,
    ),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns", metavar="A,B,SCORE", help="Pairs: the columns TEXT_A,TEXT_B,SCORE; guessed if not given."
    ),
]
FuseOption = Annotated[
    Literal["rrf"] | None,
    typer.Option("--fuse", help="Retrieval: also fuse the rankings of all models and heads, as search does."),
]
RelevanceOption = Annotated[
    str | None,
    typer.Option(
        "--relevance",
        metavar="PATH",
        help="Retrieval: file with query_id, document_id and relevance, or TREC qrels.",
    ),
]


@handle_errors
@with_job_options(EVALUATE_FLAGS, INTERACTIVE_DEFAULTS)
def evaluate(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Labelled rows; each file becomes a column of the table.")
    ],
    *,
    model: ModelOption = None,
    columns: ColumnsOption = None,
    queries: Annotated[
        str | None,
        typer.Option("--queries", metavar="PATH", help="Retrieval: file of queries; FILE has the documents."),
    ] = None,
    relevance: RelevanceOption = None,
    query_prompt: Annotated[
        str | None, typer.Option("--query-prompt", metavar="TEXT", help="Retrieval: text to put before each query.")
    ] = None,
    document_prompt: Annotated[
        str | None,
        typer.Option("--document-prompt", metavar="TEXT", help="Retrieval: text to put before each document."),
    ] = None,
    count: Annotated[
        int, typer.Option("-k", "--count", metavar="N", help="Retrieval: number of top results that are scored.", min=1)
    ] = 10,
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="Clustering: column with the labels.")
    ] = None,
    fuse: FuseOption = None,
    as_json: JsonFlag = False,
    flags: dict[str, Any],
) -> None:
    """Evaluate models on labelled rows.

    Pairs with scores: Spearman and Pearson correlation of the cosine. With --queries and --relevance: nDCG, recall
    and MAP; a query without a vector scores 0 and is counted. With --label: v-measure of k-means clusters. The first
    table shows the main measure of each file, times 100, and their average; the second shows all measures. With
    --heads, each head of the model becomes a line.
    """
    set_environment(flags)
    encoder_flags = {name: value for name, value in flags.items() if name not in INPUT_FLAGS}
    jobs = [Job(inputs=(), output="-", model=name, **encoder_flags) for name in model or [DEFAULT_MODEL]]
    if fuse is not None:
        check_fusion(fuse, jobs, queries)
    from embedcli.analysis.evaluate import evaluate_fusion, evaluate_model, name_result

    input_job = Job(inputs=(), output="-", **{name: flags[name] for name in INPUT_FLAGS})
    tasks = read_tasks(input_job, files, columns, label, (queries, relevance, query_prompt, document_prompt))
    evaluations = [each for job in jobs for each in evaluate_model(job, tasks, count, print_note)]
    results = [evaluation.result for evaluation in evaluations]
    if fuse is not None:
        results.append(evaluate_fusion(tasks, evaluations, count))
    if as_json:
        show_json(results)
        return
    names = [name_result(result) for result in results]
    rows = [model_row(name, result) for name, result in zip(names, results, strict=True)]
    show_table(rows, right=[column for column in rows[0] if column != "model"])
    print_line()
    show_table(detail_rows(names, results), right=names)


def check_fusion(fuse: str, jobs: list[Job], queries: str | None) -> None:
    """Raise UsageError unless there are rankings of several models or heads to fuse."""
    if queries is None:
        raise UsageError(f"--fuse {fuse} fuses rankings, and there are none without queries", "add --queries PATH")
    if sum(len(job.heads or ("dense",)) for job in jobs) < 2:
        raise UsageError(
            f"--fuse {fuse} needs two models or heads, and only {jobs[0].model} was given",
            "add another model: -m MODEL -m OTHER, or heads of one: --heads dense,sparse",
        )


def read_tasks(
    job: Job, files: list[str], columns: str | None, label: str | None, retrieval: tuple[str | None, ...]
) -> Any:
    """Read the evaluation tasks; raise UsageError for options that contradict each other."""
    from dataclasses import replace

    from embedcli.analysis.eval_data import read_labelled_texts, read_pairs, read_retrieval

    queries, relevance, query_prompt, document_prompt = retrieval
    if (queries is None) != (relevance is None):
        raise UsageError("--queries and --relevance must be used together", "give both, and the documents as FILE")
    if sum((columns is not None, label is not None, queries is not None)) > 1:
        raise UsageError("--columns, --label and --queries cannot be combined", "choose one of them")
    if queries is not None and relevance is not None:
        tasks = [read_retrieval(job, file, queries, relevance) for file in files]
        return [replace(task, query_prompt=query_prompt, document_prompt=document_prompt) for task in tasks]
    if label is not None:
        return [read_labelled_texts(job, file, label) for file in files]
    names = columns.split(",") if columns is not None else None
    if names is not None and len(names) != 3:
        raise UsageError(f"--columns {columns} names {len(names)} columns", "give three: TEXT_A,TEXT_B,SCORE")
    return [read_pairs(job, file, names) for file in files]


def model_row(name: str, result: dict[str, Any]) -> dict[str, str]:
    """Return a model's line of the table: main measures times 100, as benchmark tables print them."""
    main = {task["name"]: to_percent(next(iter(task["measures"].values()))) for task in result["tasks"]}
    speed = result["rows_per_second"]
    average = {"average": to_percent(result["average"])} if len(result["tasks"]) > 1 else {}
    return {"model": name, **main, **average, "rows/s": f"{speed:,.0f}" if speed is not None else "-"}


def detail_rows(names: list[str], results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return a line for every measure of every file, with a column per model."""
    return [
        {"file": task["name"], "measure": measure}
        | {name: f"{result['tasks'][i]['measures'][measure]:.4f}" for name, result in zip(names, results, strict=True)}
        for i, task in enumerate(results[0]["tasks"])
        for measure in task["measures"]
    ]


def to_percent(value: float) -> str:
    return f"{100 * value:.2f}"
