"""`embedcli verify`: check an output against its metadata, its input and its model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedcli.cli.console import JsonFlag, show_facts, show_json
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import INTERACTIVE_DEFAULTS, MovedModelOption, refuse_not_finite, with_job_options
from embedcli.cli.spinner import show_spinner
from embedcli.cli.tables import TableOption, require_target_for_table, verify_table
from embedcli.cli.vector_column import VectorColumnOption
from embedcli.core.errors import UsageError

VERIFY_FLAGS = (
    "trust_remote_code",
    "offline",
    "cache_dir",
    "device",
    "engine",
    "dtype",
    "threads",
    "batch_tokens",
    "base_url",
    "request_field",
    "omit_field",
    "patience",
)

RESULTS = {True: "ok", False: "FAILED", None: "-"}

MinCosineOption = Annotated[
    float | None,
    typer.Option(
        "--min-cosine",
        metavar="NUMBER",
        min=-1,
        max=1,
        callback=refuse_not_finite,
        help="Minimum cosine between stored and recomputed vectors; default: by precision.",
    ),
]


@handle_errors
@with_job_options(VERIFY_FLAGS, INTERACTIVE_DEFAULTS)
def verify(
    output: Annotated[str, typer.Argument(help="Output of encode.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Input of the output; default: the recorded names, in the current folder or beside OUTPUT.",
        ),
    ] = None,
    *,
    rows: Annotated[
        int, typer.Option("--rows", metavar="N", help="Number of random rows to encode again.", min=0)
    ] = 100,
    every: Annotated[bool, typer.Option("--all", help="Encode every row again.")] = False,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed for choosing random rows.", min=0)] = 0,
    least: MinCosineOption = None,
    only_output: Annotated[
        bool, typer.Option("--only-output", help="Check only the output, without input and model.")
    ] = False,
    vector_column: VectorColumnOption = None,
    model: MovedModelOption = None,
    table: TableOption = None,
    as_json: JsonFlag = False,
    flags: dict[str, Any],
) -> None:
    """Check OUTPUT against its metadata, its input and its model, or a database that it was loaded into.

    Checks row counts, ids, values and checksums of OUTPUT, ids and texts of all rows against INPUT, and the
    vectors of some rows by encoding them again. Rows of INPUT may be missing from OUTPUT if its rejects file lists
    them; kept columns are not compared. With a database in place of INPUT, checks that its table has the rows of
    OUTPUT, and compares some of them value by value.

    Exit codes: 0 no check failed ("-": there was nothing to check), 1 a check failed; the ids of wrong rows are shown.
    """
    set_environment(flags)
    from embedcli.analysis.verify import verify_against_input, verify_output
    from embedcli.databases import is_target_address
    from embedcli.outputs.dataset import open_dataset

    if only_output and inputs:
        raise UsageError("--only-output reads no input", f"leave out --only-output or {inputs[0]}")
    if not inputs or not is_target_address(inputs[0]):
        require_target_for_table(table)
    with show_spinner(f"checking {output}") as notify:
        dataset = open_dataset(output, vector_column)
        if inputs and is_target_address(inputs[0]):
            checks = verify_table(dataset, inputs, table, None if every else rows, seed)
        elif only_output:
            checks = verify_output(dataset)
        else:
            options = {"seed": seed, "least": least, "notify": notify, "model": model, **flags}
            checks = verify_against_input(dataset, tuple(inputs or ()), None if every else rows, **options)
    passed = all(check.passed is not False for check in checks)
    if as_json:
        show_json({"path": output, "ok": passed, "checks": [check.as_json() for check in checks]})
    else:
        show_facts((check.name, format_check(check)) for check in checks)
    if not passed:
        raise typer.Exit(1)


def format_check(check: Any) -> str:
    """Return the result of a check, "-" if there was nothing to check, and ids of rows that failed it."""
    ids = f": {', '.join(map(str, check.example_ids))}" if check.example_ids and not check.passed else ""
    remedy = f"; {check.remedy}" if check.remedy else ""
    return f"{RESULTS[check.passed]:<6}  {check.detail}{ids}{remedy}"
