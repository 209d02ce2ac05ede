"""`embedcli report`: the summary of a run again, from the file that --report wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from embedcli.cli.boundary import guarded, set_environment
from embedcli.cli.show import Json, clean, note, show_json
from embedcli.contracts import InputError

BAR = 50


@guarded
def report(
    file: Annotated[str, typer.Argument(help="What `embedcli encode --report FILE` wrote.")],
    picture: Annotated[str | None, typer.Option("--plot", help="Draw the stages: .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Show a run's summary again, and how busy each stage was."""
    set_environment({})
    made = loaded(file)
    if picture is not None:
        from embedcli.vectors.pictures import draw_stages

        draw_stages(made, picture)
        note(f"the picture is in {picture}")
    if as_json:
        show_json(made)
        return
    from embedcli.report import summary_lines

    lines = [f"{'started':<8}  {made['started']}", *summary_lines(made), f"{'ended':<8}  {made['reason']}"]
    lines += [f"{'setting':<8}  --{flag} {spelled(one['value'])} ({one['from']})" for flag, one in settings(made)]
    typer.echo("\n".join([*map(clean, lines), "", *timeline(made)]))


def settings(made: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The flags that were not left at their defaults."""
    return list(made.get("settings", {}).items())


def spelled(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def loaded(file: str) -> dict[str, Any]:
    """The content of a run report. InputError if it is none."""
    wrong = InputError(f"{file}: is not a run report", "give a file that `embedcli encode --report FILE` wrote")
    try:
        made = json.loads(Path(file).read_bytes())
    except ValueError:
        raise wrong from None
    if not isinstance(made, dict) or not {"embedcli", "rows", "stage_seconds", "seconds", "reason"} <= set(made):
        raise wrong
    return made


def timeline(made: Mapping[str, Any]) -> list[str]:
    """One bar per stage: the part of the run in which it was busy. Stages work at the same time."""
    whole = made["seconds"] or 1
    lines = []
    for name, seconds in made["stage_seconds"].items():
        share = min(1.0, seconds / whole)
        lines.append(f"{name:<8}  {'#' * round(share * BAR):<{BAR}}  {share:4.0%}".rstrip())
    return lines
