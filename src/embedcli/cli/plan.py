"""`embedcli plan`: estimate rows, tokens, output size, time and cost of a job."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedcli.cli.console import JsonFlag, format_bytes, print_note, show_facts, show_json, show_table
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import ENCODER_FLAGS, INPUT_FLAGS, PriceOption, with_job_options
from embedcli.core.counts import format_count

PLAN_FLAGS = (
    *INPUT_FLAGS, *ENCODER_FLAGS, "keep", "overflow", "split_overlap", "heads", "top_k_terms", "min_weight",
    "pool_factor", "chunk_rows",
)  # fmt: skip


@handle_errors
@with_job_options(PLAN_FLAGS)
def plan(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Input files, globs, folders or - for stdin.")
    ],
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample", metavar="N", help="Estimate the tokens from N random rows instead of counting all.", min=2
        ),
    ] = None,
    price: PriceOption = None,
    measure: Annotated[
        float,
        typer.Option(
            "--measure-seconds",
            metavar="SECONDS",
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

    estimate = estimate_job(
        Job(inputs=tuple(inputs), output="-", **flags), EstimateOptions(sample, price, measure), print_note
    )
    if as_json:
        show_json(estimate)
        return
    show_facts(format_estimate(estimate))
    if estimate["output_bytes"]:
        show_sizes(estimate["output_bytes"])


def format_estimate(estimate: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the estimate as names and texts."""
    formats = ", ".join(sorted(set(estimate["inputs"].values())))
    known = f", {format_bytes(estimate['bytes'])}" if estimate["bytes"] is not None else ""
    lines = [
        ("input", f"{format_count(len(estimate['inputs']), 'file')} ({formats}{known})"),
        ("rows", f"{estimate['rows']:,}, of which {estimate['rows'] - estimate['rejected']:,} would be embedded"),
    ]
    lines += [("rejected", f"{format_count(count, 'row')}: {reason}") for reason, count in estimate["rejects"].items()]
    lines += [
        ("distinct", format_count(estimate["distinct_texts"], "text")),
        ("tokens", format_token_estimate(estimate["tokens"])),
    ]
    if estimate["truncated_rows"]:
        lost = f"{estimate['lost_token_share']:.1%} of all tokens cut off"
        lines.append(
            (
                "truncated",
                f"{format_count(estimate['truncated_rows'], 'row')} ({estimate['truncated_share']:.1%}), {lost}",
            )
        )
    else:
        lines.append(
            (
                "truncated",
                format_none_truncated(estimate["tokens"]["sampled_rows"], estimate["rows"] - estimate["rejected"]),
            )
        )
    if estimate["output_rows"] != estimate["rows"] - estimate["rejected"]:
        lines.append(("windows", format_count(estimate["output_rows"], "output row")))
    lines += [("model", estimate["model"] + (f", {estimate['dim']} dimensions" if estimate["dim"] else ""))]
    lines += [("time", format_time_estimate(estimate["time"]))]
    if estimate["cost"]:
        lines.append(("cost", format_cost_estimate(estimate["cost"])))
    if not estimate["output_bytes"]:
        known = "no row of the sample gets a vector"
        unknown = "the server sets the dimensions; use --truncate-dim N to set them"
        lines.append(("size", f"unknown: {known if estimate['dim'] else unknown}"))
    return lines


def format_none_truncated(sampled: int, rows: int) -> str:
    """Return the text for no truncated row among `sampled` rows, which may be only some of all."""
    return "no row" if sampled >= rows else f"none of the {sampled:,} rows of the sample"


def format_token_estimate(tokens: dict[str, Any]) -> str:
    text = f"{tokens['total']:,}" if tokens["exact"] else f"about {tokens['total']:,}"
    if tokens["standard_error"]["total"]:
        sampled = format_count(tokens["sampled_rows"], "row")
        text += f", standard error {tokens['standard_error']['total']:,.0f}, from {sampled}"
    if tokens["sent"] != tokens["total"]:
        text += f"; {tokens['sent']:,} {'goes' if tokens['sent'] == 1 else 'go'} through the model"
    return f"{text} (counted by {tokens['counting']})"


def format_time_estimate(time: dict[str, Any]) -> str:
    """Return the time of the whole job, and the measurement that it is based on."""
    if time["seconds"] is not None:
        speed = f"{time['tokens_per_second']:,.0f} tokens/s ({time['device']})"
        return f"about {format_seconds(time['seconds'])} on this machine, which computed a sample at {speed}"
    if time.get("at_least_seconds"):
        return f"at least {format_seconds(time['at_least_seconds'])}, because of --tpm"
    return "unknown: it depends on the server" if "at_least_seconds" in time else "unknown: nothing was measured"


def format_cost_estimate(cost: dict[str, Any]) -> str:
    error = f", standard error {cost['standard_error']:,.3g}" if cost["standard_error"] else ""
    return f"{cost['amount']:,.6g}{error}, at {cost['price_per_mtok']:g} per million tokens"


def format_seconds(seconds: float) -> str:
    """Return seconds in a readable unit: 45 s, 12 min, 3.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def show_sizes(sizes: dict[str, dict[str, int]]) -> None:
    """Print output sizes: a line per precision, a column per format."""
    rows = [
        {"size": kind} | {form: format_bytes(count) for form, count in forms.items()} for kind, forms in sizes.items()
    ]
    show_table(rows, right=list(next(iter(sizes.values()))))
