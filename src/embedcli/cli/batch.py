"""`embedcli batch export` and `embedcli batch import`: the OpenAI Batch API, half the price and a day's patience."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from embedcli.cli.config_file import ConfigurableCommand
from embedcli.cli.config_file import collect_given_options as settings_of
from embedcli.cli.console import print_note
from embedcli.cli.encode import run_job_with_reporting
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import INPUT_FLAGS, PriceOption, ProgressOption, QuietFlag, ReportOption, with_job_options
from embedcli.core.errors import UsageError
from embedcli.core.job import Job

EXPORT_FLAGS = (
    "model", *INPUT_FLAGS, "keep", "as_", "prompt", "max_seq_length", "normalize", "truncate_dim", "base_url",
    "cache_dir", "overwrite",
)  # fmt: skip
IMPORT_FLAGS = (
    "to", "keep", "precision", "chunk_rows", "on_bad_row", "max_rejects", "overwrite", "update", "reuse", "limit",
    "max_seconds",
)  # fmt: skip

batch = typer.Typer(
    name="batch",
    help="Embed through the files of the OpenAI Batch API: export requests, import results.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@batch.command("export", cls=ConfigurableCommand)
@handle_errors
@with_job_options(EXPORT_FLAGS)
def export_command(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="INPUT... REQUESTS", help="Files, globs or folders; last, the .jsonl of requests."),
    ],
    results: Annotated[
        list[str] | None, typer.Option("--results", help="Results there are: only what they lack is asked; repeatable.")
    ] = None,
    price: PriceOption = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Write one request per distinct text to files that the Batch API accepts.

    REQUESTS.jsonl, REQUESTS-00002.jsonl and so on hold at most 50,000 requests and 200 MB each;
    REQUESTS.job.json beside them is what `batch import` needs. No request is made and no key is needed.
    Exit codes as of encode: 3 if some rows cannot be read.
    """
    set_environment(flags)
    from embedcli import openai_batch

    if len(paths) < 2:
        raise UsageError("batch export needs an input and an output", "embedcli batch export in.jsonl requests.jsonl")
    job = Job(inputs=tuple(paths[:-1]), output="-", **flags)
    made = openai_batch.export_requests(job, paths[-1], print_note, results=results or ())
    for line in format_export(made, price):
        print_note(line)
    raise typer.Exit(3 if made.rejects else 0)


def format_export(made: Any, price: float | None) -> list[str]:
    """What was exported, in a few lines."""
    lines = [("rows", f"{made.rows + made.rejects:,} in, {made.rejects:,} that cannot be read")]
    told = [
        (made.duplicate_rows, "repeated"), (made.answered_rows, "answered already"), (made.empty_rows, "empty")
    ]  # fmt: skip
    rest = "".join(f", {count:,} {what}" for count, what in told if count)
    lines.append(("requests", f"{made.requests:,}{rest}"))
    lines.append(("tokens", f"{made.tokens:,} ({made.counting_method}), {made.truncated:,} texts cut"))
    if price is not None:
        lines.append(("cost", f"{made.tokens * price / 1e6:,.6g} at {price:g} per million tokens"))
    lines += [("output", path) for path in (*made.files, made.job_file)]
    return [f"{name:<8}  {text}" for name, text in lines]


@batch.command("import", cls=ConfigurableCommand)
@handle_errors
@with_job_options(IMPORT_FLAGS)
def import_command(
    ctx: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="RESULTS... OUTPUT", help="Result and error files of the batches; last, the output."),
    ],
    inputs: Annotated[
        list[str] | None, typer.Option("-i", "--input", help="The exported rows, where they lie now; repeatable.")
    ] = None,
    job_file: Annotated[
        str | None, typer.Option("--job", help="The .job.json of the export; default: the one beside RESULTS.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Reject rows without an answer instead of stopping.")
    ] = False,
    report: ReportOption = None,
    progress: ProgressOption = "auto",
    price: PriceOption = None,
    *,
    quiet: QuietFlag = False,
    flags: dict[str, Any],
) -> None:
    """Join results with the exported rows and write OUTPUT, as encode would have.

    Results may come in any order and any number of files; a text the server refused becomes a reject.
    Outputs, resume, --update and exit codes are those of encode.
    """
    set_environment(flags)
    from embedcli import openai_batch

    if len(paths) < 2:
        raise UsageError("batch import needs results and an output", "embedcli batch import results.jsonl out.parquet")
    results, output = paths[:-1], paths[-1]
    # What the export recorded stands unless it is given anew.
    given = {name: value for name, value in flags.items() if name != "keep" or value}
    job = replace(openai_batch.load_job(results, output, job_file), **given)
    if inputs:
        job = replace(job, inputs=tuple(inputs))

    def load(job: Job, notify: Any) -> Any:
        return openai_batch.load_batch_encoder(results, job, notify, allow_missing=allow_missing)

    raise typer.Exit(run_job_with_reporting(job, report, progress, quiet, price, load, settings_of(ctx)))
