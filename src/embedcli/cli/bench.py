"""`embedcli bench`: compare speed with other libraries on the user's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedcli.cli.console import print_line
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import ENCODER_FLAGS, FLAGS_BY_NAME, INPUT_FLAGS, QuietFlag, with_job_options
from embedcli.cli.spinner import show_spinner
from embedcli.core.errors import UsageError
from embedcli.core.job import Job

if TYPE_CHECKING:
    from embedcli.benchmark.compare import BenchRequest


@handle_errors
@with_job_options((*ENCODER_FLAGS, *INPUT_FLAGS))
def bench(
    paths: Annotated[list[str] | None, typer.Argument(metavar="INPUT", help="Rows to encode.")] = None,
    *,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Runs of each library, in turn.")] = 3,
    rows: Annotated[int | None, typer.Option("--rows", metavar="N", min=1, help="Use only the first N rows.")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Measure the speed with several values of --batch-tokens instead.")
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Include other installed libraries, or only SentenceTransformer.")
    ] = True,
    peer_python: Annotated[
        str,
        typer.Option(
            "--peer-python",
            metavar="PATH",
            help="Python of another environment where the other libraries are installed.",
        ),
    ] = "",
    json: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write all figures to this JSON file.")
    ] = None,
    quiet: QuietFlag = False,
    flags: dict[str, Any],
) -> None:
    """Compare the speed of embedcli with other libraries.

    embedcli, SentenceTransformer.encode and others encode the same rows in turn, each run in its own process.
    The table shows medians; each ratio compares runs of the same round. docs/concepts/speed.md explains the figures.
    """
    from embedcli.benchmark.text_tables import format_batch_tokens, format_comparison
    from embedcli.reporting import run_report

    set_environment(flags)
    if not paths:
        raise UsageError("bench needs rows to encode", "embedcli bench in.jsonl")
    request = make_request(paths, flags, rounds=rounds, rows=rows, peers=peers, peer_python=peer_python)
    with show_spinner("measuring", quiet) as notify:
        if tune:
            from embedcli.benchmark.tune_batch import measure_batch_tokens

            figures = measure_batch_tokens(request, notify)
            table = format_batch_tokens(figures)
        else:
            from embedcli.benchmark.compare import run_comparison

            figures = run_comparison(request, notify)
            table = format_comparison(figures)
    for line in table.split("\n"):
        print_line(line)
    if json is not None:
        run_report.write_report(json, figures)


def make_request(paths: Sequence[str], flags: Mapping[str, Any], **settings: Any) -> BenchRequest:
    """Make the request to measure the job with these inputs and flags.

    Args:
        paths: The inputs.
        flags: Values of job options by Job field, all encoder options among them.
        **settings: Other fields of the request.
    """
    from embedcli.benchmark.compare import BenchRequest

    return BenchRequest(Job(inputs=tuple(paths), output="-", **flags), encoder_arguments(flags), **settings)


def encoder_arguments(flags: Mapping[str, Any]) -> tuple[str, ...]:
    """The encoder options that differ from their defaults, as they would be typed."""
    arguments: list[str] = []
    for name in ENCODER_FLAGS:
        value = flags[name]
        if value == getattr(Job, name):
            continue
        spellings = FLAGS_BY_NAME[name].spellings.split(",")[-1].split("/")
        if isinstance(value, bool):
            arguments.append(spellings[0] if value else spellings[-1])
        else:
            arguments += [spellings[0], str(value)]
    return tuple(arguments)
