"""`embedcli plan`: estimate rows, tokens, output size, time and cost of a job."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedcli.cli.console import JsonFlag, format_bytes, print_note, show_facts, show_json, show_table
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import ENCODER_FLAGS, INPUT_FLAGS, PriceOption, with_job_options

PLAN_FLAGS = (*INPUT_FLAGS, *ENCODER_FLAGS, "keep", "overflow", "split_overlap", "chunk_rows")


@handle_errors
@with_job_options(PLAN_FLAGS)
def plan(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Input files, globs, folders or - for stdin.")
    ],
    sample: Annotated[
        int | None,
        typer.Option("--sample", help="Estimate the tokens from N random rows instead of counting all.", min=2),
    ] = None,
    price: PriceOption = None,
    measure: Annotated[
        float,
        typer.Option(
            "--measure-seconds",
            help="How long to measure the encoder; 0 to skip the time estimate.",
            min=0,
            envvar="EMBEDCLI_MEASURE_SECONDS",
            show_envvar=False,
        ),
    ] = 2.0,
    as_json: JsonFlag = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Estimate rows, tokens, output size, time and cost.

    Also shows rows that would be truncated, distinct texts, and bad rows by reason. The time comes from a short
    run on this machine, the size is for every precision and format. Nothing is written, and no request is sent
    to a hosted model.
    """
    set_environment(flags)
    from embedcli.core.job import Job
    from embedcli.estimate import EstimateOptions, estimate_job

    found = estimate_job(
        Job(inputs=tuple(inputs), output="-", **flags), EstimateOptions(sample, price, measure), print_note
    )
    if as_json:
        show_json(found)
        return
    show_facts(format_estimate(found))
    if found["output_bytes"]:
        show_sizes(found["output_bytes"])


def format_estimate(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The estimate in a few lines."""
    formats = ", ".join(sorted(set(found["inputs"].values())))
    known = f", {format_bytes(found['bytes'])}" if found["bytes"] is not None else ""
    lines = [
        ("input", f"{len(found['inputs'])} file{'s' * (len(found['inputs']) != 1)} ({formats}{known})"),
        ("rows", f"{found['rows']:,}, of which {found['rows'] - found['rejected']:,} would be embedded"),
    ]
    lines += [("rejected", f"{count:,} rows: {reason}") for reason, count in found["rejects"].items()]
    lines += [("distinct", f"{found['distinct_texts']:,} texts"), ("tokens", format_token_estimate(found["tokens"]))]
    if found["truncated_rows"]:
        lost = f"{found['lost_token_share']:.1%} of all tokens never read"
        lines.append(("truncated", f"{found['truncated_rows']:,} rows ({found['truncated_share']:.1%}), {lost}"))
    else:
        lines.append(
            ("truncated", format_none_found(found["tokens"]["sampled_rows"], found["rows"] - found["rejected"]))
        )
    if found["output_rows"] != found["rows"] - found["rejected"]:
        lines.append(("windows", f"{found['output_rows']:,} output rows"))
    lines += [("model", found["model"] + (f", {found['dim']} dimensions" if found["dim"] else ""))]
    lines += [("time", format_time_estimate(found["time"]))]
    if found["cost"]:
        lines.append(("cost", format_cost_estimate(found["cost"])))
    if not found["output_bytes"]:
        lines.append(("size", "unknown: only the server knows the dimensions; --truncate-dim N tells"))
    return lines


def format_none_found(looked_at: int, rows: int) -> str:
    """What no row among those looked at means: with a sample, no more than that."""
    return "no row" if looked_at >= rows else f"none of the {looked_at:,} rows of the sample"


def format_token_estimate(made: dict[str, Any]) -> str:
    text = f"{made['total']:,}" if made["exact"] else f"about {made['total']:,}"
    if made["standard_error"]["total"]:
        text += f", standard error {made['standard_error']['total']:,.0f}, from {made['sampled_rows']:,} rows"
    if made["sent"] != made["total"]:
        text += f"; {made['sent']:,} go through the model"
    return f"{text} (counted by {made['counting']})"


def format_time_estimate(made: dict[str, Any]) -> str:
    """The whole job's time, and what it was told from."""
    if made["seconds"] is not None:
        speed = f"{made['tokens_per_second']:,.0f} tokens/s ({made['device']})"
        return f"about {format_seconds(made['seconds'])} on this machine; {made['measured_rows']:,} rows ran at {speed}"
    if made.get("at_least_seconds"):
        return f"at least {format_seconds(made['at_least_seconds'])}, as --tpm allows no more"
    return "unknown: it depends on the server" if "at_least_seconds" in made else "unknown: nothing was measured"


def format_cost_estimate(made: dict[str, Any]) -> str:
    error = f", standard error {made['standard_error']:,.3g}" if made["standard_error"] else ""
    return f"{made['amount']:,.6g}{error}, at {made['price_per_mtok']:g} per million tokens"


def format_seconds(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def show_sizes(made: dict[str, dict[str, int]]) -> None:
    """Precisions down, formats across."""
    rows = [
        {"size": kind} | {form: format_bytes(count) for form, count in forms.items()} for kind, forms in made.items()
    ]
    show_table(rows, right=list(next(iter(made.values()))))
