"""`embedcli report`: show a run report that --report wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import typer

from embedcli.cli.console import JsonFlag, escape_for_terminal, print_note, show_json
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.core.errors import InputError

BAR_WIDTH = 50
BUSY_SHADES = " .:-=+*#"


@handle_errors
def report(
    file: Annotated[str, typer.Argument(help="File written by `embedcli encode --report FILE`.")],
    picture: Annotated[
        str | None, typer.Option("--plot", help="Draw the stages to this file: .png, .svg, .pdf or .html.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the summary of a run report and how busy each stage was."""
    set_environment({})
    made = load_report(file)
    if picture is not None:
        from embedcli.analysis.figures import draw_stages

        draw_stages(made, picture)
        print_note(f"plot written to {picture}")
    if as_json:
        show_json(made)
        return
    from embedcli.reporting.summary import format_summary

    lines = [f"{'started':<8}  {made['started']}", *format_summary(made), f"{'ended':<8}  {made['reason']}"]
    lines += [
        f"{'setting':<8}  --{flag} {format_value(one['value'])} ({one['from']})" for flag, one in changed_options(made)
    ]
    typer.echo("\n".join([*map(escape_for_terminal, lines), "", *format_timeline(made)]))


def changed_options(made: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The flags that were not left at their defaults."""
    return list(made.get("settings", {}).items())


def format_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def load_report(file: str) -> dict[str, Any]:
    """The content of a run report. InputError if it is none."""
    hint = "give a file that `embedcli encode --report FILE` wrote"
    wrong = InputError(f"{file}: is not a run report", hint)
    try:
        made = json.loads(Path(file).read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}", hint) from None
    except ValueError:
        raise wrong from None
    if not isinstance(made, dict) or not {"embedcli", "rows", "stage_seconds", "seconds", "reason"} <= set(made):
        raise wrong
    return made


def format_timeline(made: Mapping[str, Any]) -> list[str]:
    """One line per stage: how busy it was over the run, and in all. Stages work at the same time."""
    whole = made["seconds"] or 1
    lines = []
    for name, seconds in made["stage_seconds"].items():
        share = min(1.0, seconds / whole)
        busy = (made.get("timeline") or {}).get("busy", {}).get(name)
        lane = (
            "#" * round(share * BAR_WIDTH)
            if busy is None
            else format_busy_bar(busy, made["timeline"]["seconds"], whole)
        )
        lines.append(f"{name:<8}  {lane:<{BAR_WIDTH}}  {share:4.0%}".rstrip())
    return lines


def format_busy_bar(busy: Sequence[float], width: float, whole: float) -> str:
    """BAR characters for the time of a run, each darker the busier the stage was."""
    shown = [0.0] * BAR_WIDTH
    for i, share in enumerate(busy):
        for at in range(BAR_WIDTH):
            overlap = min((i + 1) * width, (at + 1) * whole / BAR_WIDTH) - max(i * width, at * whole / BAR_WIDTH)
            shown[at] += share * max(0.0, overlap) * BAR_WIDTH / whole
    return "".join(
        BUSY_SHADES[min(len(BUSY_SHADES) - 1, ceil(share * (len(BUSY_SHADES) - 1) - 0.01))] for share in shown
    )
