"""`embedcli batch`: embed through the OpenAI Batch API, at half the price and within a day."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from embedcli.cli.config_file import ConfigurableCommand, collect_given_options
from embedcli.cli.console import print_note
from embedcli.cli.encode import run_job_with_reporting
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import INPUT_FLAGS, PriceOption, ProgressOption, QuietFlag, ReportOption, with_job_options
from embedcli.cli.program import CommandGroup
from embedcli.core.counts import format_count
from embedcli.core.errors import UsageError
from embedcli.core.job import Job

EXPORT_FLAGS = (
    "model", *INPUT_FLAGS, "keep", "as_", "prompt", "max_seq_length", "normalize", "truncate_dim", "base_url",
    "request_field", "omit_field", "tokenizer",
    "cache_dir", "overwrite",
)  # fmt: skip
IMPORT_FLAGS = (
    "to", "keep", "precision", "chunk_rows", "on_bad_row", "max_rejects", "overwrite", "update", "max_removed", "reuse",
    "limit", "stop_after", "max_seconds",
)  # fmt: skip

batch = typer.Typer(
    name="batch",
    help="Embed with the OpenAI Batch API: export requests, import results.",
    rich_markup_mode=None,
    add_completion=False,
    cls=CommandGroup,
)


@batch.command("export", cls=ConfigurableCommand)
@handle_errors
@with_job_options(EXPORT_FLAGS)
def export_command(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT... REQUESTS", help="Input files, globs or folders; the .jsonl file of requests comes last."
        ),
    ],
    results: Annotated[
        list[str] | None,
        typer.Option(
            "--results",
            metavar="PATH",
            help="Results from earlier batches: export only texts that they lack; repeatable.",
        ),
    ] = None,
    price: PriceOption = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Write one request per distinct text to files for the Batch API.

    REQUESTS.jsonl, REQUESTS-00002.jsonl and so on hold at most 50,000 requests and 200 MB each;
    `batch import` needs the file REQUESTS.job.json beside them. No request is sent and no API key is needed.
    Exit codes are those of encode: 3 if some rows cannot be read.
    """
    set_environment(flags)
    from embedcli import openai_batch

    if len(paths) < 2:
        raise UsageError("batch export needs an input and an output", "embedcli batch export in.jsonl requests.jsonl")
    job = Job(inputs=tuple(paths[:-1]), output="-", **flags)
    export = openai_batch.export_requests(job, paths[-1], print_note, results=results or ())
    for line in format_export(export, price):
        print_note(line)
    raise typer.Exit(3 if export.rejects else 0)


def format_export(export: Any, price: float | None) -> list[str]:
    """Return the summary of an export as lines."""
    lines = [("rows", f"{export.rows + export.rejects:,} in, {export.rejects:,} unreadable")]
    counts = [
        (export.duplicate_rows, "repeated"), (export.answered_rows, "already answered"), (export.empty_rows, "empty")
    ]  # fmt: skip
    not_requested = "".join(f", {count:,} {kind}" for count, kind in counts if count)
    lines.append(("requests", f"{export.requests:,}{not_requested}"))
    lines.append(
        ("tokens", f"{export.tokens:,} ({export.counting_method}), {format_count(export.truncated, 'text')} truncated")
    )
    if price is not None:
        lines.append(("cost", f"{export.tokens * price / 1e6:,.6g} at {price:g} per million tokens"))
    lines += [("output", path) for path in (*export.files, export.job_file)]
    return [f"{name:<8}  {text}" for name, text in lines]


@batch.command("import", cls=ConfigurableCommand)
@handle_errors
@with_job_options(IMPORT_FLAGS)
def import_command(
    ctx: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULTS... OUTPUT", help="Result and error files of the batches; the output comes last."
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("-i", "--input", help="Where the exported rows are now; default: as recorded; repeatable."),
    ] = None,
    job_file: Annotated[
        str | None, typer.Option("--job", help="The .job.json file of the export; default: the one beside RESULTS.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Reject rows without a result instead of failing.")
    ] = False,
    report: ReportOption = None,
    progress: ProgressOption = "auto",
    price: PriceOption = None,
    *,
    quiet: QuietFlag = False,
    flags: dict[str, Any],
) -> None:
    """Join results with the exported rows and write OUTPUT as encode does.

    Results may be in any order and in several files; a row whose text the server refused becomes a reject.
    Outputs, resuming, --update and exit codes are those of encode.
    """
    set_environment(flags)
    from embedcli import openai_batch

    if len(paths) < 2:
        raise UsageError("batch import needs results and an output", "embedcli batch import results.jsonl out.parquet")
    results, output = paths[:-1], paths[-1]
    # Options given here override those that the export recorded; an empty --keep was not given.
    given = {name: value for name, value in flags.items() if name != "keep" or value}
    job = replace(openai_batch.load_job(results, output, job_file, inputs or ()), **given)

    def load(job: Job, notify: Any) -> Any:
        return openai_batch.load_batch_encoder(results, job, notify, allow_missing=allow_missing)

    raise typer.Exit(run_job_with_reporting(job, report, progress, quiet, price, load, collect_given_options(ctx)))
