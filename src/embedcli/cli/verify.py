"""`embedcli verify`: is an output what it says it is?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from embedcli.cli.console import JsonFlag, print_note, show_facts, show_json
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import with_job_options

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
)


@handle_errors
@with_job_options(VERIFY_FLAGS)
def verify(
    output: Annotated[str, typer.Argument(help="An output of encode.")],
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT...", help="What it was made from; default: as recorded.")
    ] = None,
    *,
    rows: Annotated[int, typer.Option("--rows", help="Rows to encode again, drawn at random.", min=0)] = 100,
    every: Annotated[bool, typer.Option("--all", help="Encode every row again.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Which rows are drawn.", min=0)] = 0,
    least: Annotated[
        float | None, typer.Option("--min-cosine", help="What a vector made again must reach; default: by precision.")
    ] = None,
    only_output: Annotated[
        bool, typer.Option("--only-output", help="Look at the output alone: no input, no model.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="Where the same model lies now; default: as recorded.")
    ] = None,
    as_json: JsonFlag = False,
    flags: dict[str, Any],
) -> None:
    """Check OUTPUT: row counts, ids, values, checksums; then ids and texts of all rows against INPUT,
    and the vectors of some by encoding them again.

    Exit code 0: all holds; 1: something does not, and the ids are shown.
    """
    set_environment(flags)
    from embedcli.analysis.verify import verify_against_input as checked
    from embedcli.analysis.verify import verify_output
    from embedcli.outputs.dataset import open_dataset

    opened = open_dataset(output)
    if only_output:
        checks = verify_output(opened)
    else:
        given = {"seed": seed, "least": least, "notify": print_note, "model": model, **flags}
        checks = checked(opened, tuple(inputs or ()), None if every else rows, **given)
    ok = all(check.passed for check in checks)
    if as_json:
        show_json({"path": output, "ok": ok, "checks": [check.as_json() for check in checks]})
    else:
        show_facts((check.name, format_check(check)) for check in checks)
    if not ok:
        raise typer.Exit(1)


def format_check(check: Any) -> str:
    """Whether a check holds, what it found, and the ids for which it does not."""
    ids = f": {', '.join(map(str, check.example_ids))}" if check.example_ids and not check.passed else ""
    return f"{'ok' if check.passed else 'FAILED':<6}  {check.detail}{ids}"
