"""`embedcli report`: show a run report that --report wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import typer

from embedcli.cli.console import JsonFlag, print_line, print_note, show_json
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.core.errors import InputError, UsageError

BAR_WIDTH = 50
BUSY_SHADES = " .:-=+*#"


@handle_errors
def report(
    file: Annotated[str, typer.Argument(help="File written by --report of encode or load.")],
    picture: Annotated[
        str | None,
        typer.Option("--plot", metavar="PATH", help="Draw the stages to this file: .png, .svg, .pdf or .html."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the summary of a run report and how busy each stage was."""
    set_environment({})
    run = load_report(file)
    if is_load_report(run):
        show_load_report(run, file, picture, as_json)
        return
    if picture is not None:
        from embedcli.analysis.figures import draw_stages

        draw_stages(run, picture)
        print_note(f"plot written to {picture}")
    if as_json:
        show_json(run)
        return
    from embedcli.reporting.summary import format_summary

    lines = [f"{'started':<8}  {run['started']}", *format_summary(run), f"{'ended':<8}  {run['reason']}"]
    lines += [
        f"{'setting':<8}  --{name} {format_value(option['value'])} ({option['from']})"
        for name, option in run.get("settings", {}).items()
    ]
    for line in [*lines, "", *format_timeline(run)]:
        print_line(line)


def format_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def load_report(file: str) -> dict[str, Any]:
    """Read a run report; raise InputError if the file is not one."""
    hint = "give a file that `embedcli encode --report FILE` or `embedcli load --report FILE` wrote"
    not_a_report = InputError(f"{file}: is not a run report", hint)
    try:
        run = json.loads(Path(file).read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}", hint) from None
    except ValueError:
        raise not_a_report from None
    if not isinstance(run, dict) or not {"embedcli", "rows", "seconds", "reason"} <= set(run):
        raise not_a_report
    if "stage_seconds" not in run and not is_load_report(run):
        raise not_a_report
    return run


def is_load_report(run: Mapping[str, Any]) -> bool:
    """Whether a report is that of a load: it names a database."""
    return isinstance(run.get("job"), dict) and "target" in run["job"]


def show_load_report(run: Mapping[str, Any], file: str, picture: str | None, as_json: bool) -> None:
    """Print the report of a load. Raises UsageError with --plot: a load has no stages."""
    if picture is not None:
        raise UsageError(f"{file}: is the report of a load, which has no stages to draw", "leave out --plot")
    if as_json:
        show_json(run)
        return
    from embedcli.databases.report import format_load_summary

    for line in [f"{'started':<8}  {run['started']}", *format_load_summary(run), f"{'ended':<8}  {run['reason']}"]:
        print_line(line)


def format_timeline(run: Mapping[str, Any]) -> list[str]:
    """Return a line per stage that shows how busy it was over time and in total; stages overlap in time."""
    total = run["seconds"] or 1
    lines = []
    for name, seconds in run["stage_seconds"].items():
        share = min(1.0, seconds / total)
        busy = (run.get("timeline") or {}).get("busy", {}).get(name)
        bar = (
            "#" * round(share * BAR_WIDTH) if busy is None else format_busy_bar(busy, run["timeline"]["seconds"], total)
        )
        lines.append(f"{name:<8}  {bar:<{BAR_WIDTH}}  {share:4.0%}".rstrip())
    return lines


def format_busy_bar(busy: Sequence[float], interval: float, total: float) -> str:
    """Return BAR_WIDTH characters over the time of a run, darker where the stage was busier.

    Args:
        busy: Busy fraction of each interval.
        interval: Seconds per interval.
        total: Seconds of the whole run.
    """
    shown = [0.0] * BAR_WIDTH
    for i, share in enumerate(busy):
        for at in range(BAR_WIDTH):
            overlap = min((i + 1) * interval, (at + 1) * total / BAR_WIDTH) - max(i * interval, at * total / BAR_WIDTH)
            shown[at] += share * max(0.0, overlap) * BAR_WIDTH / total
    return "".join(
        BUSY_SHADES[min(len(BUSY_SHADES) - 1, ceil(share * (len(BUSY_SHADES) - 1) - 0.01))] for share in shown
    )
