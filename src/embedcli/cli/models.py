"""`embedcli models` and `embedcli pull`: list and download models."""

from __future__ import annotations

import shutil
import sys
import textwrap
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from embedcli.cli.completion import complete_models
from embedcli.cli.console import JsonFlag, print_line, print_note, show_json
from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import with_job_options
from embedcli.core.terminal import escape_for_terminal

COLUMN_GAP = "  "


@handle_errors
@with_job_options(("cache_dir",))
def models(
    compiled: Annotated[bool, typer.Option("--compiled", help="List the cached compiled models instead.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Delete the cached compiled models.")] = False,
    as_json: JsonFlag = False,
    *,
    flags: dict[str, Any],
) -> None:
    """List the known models and whether they are on this machine."""
    set_environment({})
    if clear:
        from embedcli.encoders.openvino import loader as openvino_loader

        print_note(f"{openvino_loader.clear_cached_models()} compiled models removed")
    elif compiled:
        show_rows(list_compiled_models(), as_json)
    else:
        show_rows(list_known_models(flags["cache_dir"]), as_json)


@handle_errors
@with_job_options(("code_revision", "cache_dir"))
def pull(
    model: Annotated[
        str,
        typer.Argument(
            help=(
                "A name listed by `embedcli models`, or a Hub ID; or a folder, to download only its code repositories."
            ),
            autocompletion=complete_models,
        ),
    ],
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="REVISION", help="Branch, tag or commit of the model.")
    ] = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Download a model, for example for use offline. Its Python code is downloaded too, but not run."""
    set_environment({})
    from embedcli.models import resolve

    files = resolve.pull_model(model, revision, flags["code_revision"], flags["cache_dir"])
    if files.origin == "bundled":
        print_note(f"{files.name} is installed already, nothing to download: {files.path}")
        return
    print_note(f"{files.name} is in {files.path}" + (f", revision {files.revision}" if files.revision else ""))
    for code in files.code_repositories:
        print_note(f"its code repository {code.name} is in {code.path}, revision {code.commit}")
    if files.code_repositories:
        print_note("code runs only with --trust-remote-code; read it first")


def list_known_models(cache_dir: str | None) -> list[dict[str, Any]]:
    """Return a row per known model: name, folder on this machine, Hub ID, notes and prompts."""
    from embedcli.models import resolve
    from embedcli.models.registry import MODEL_REGISTRY

    return [
        {
            "name": entry.alias,
            "local": resolve.locate_model(entry, cache_dir) or "",
            "id": entry.hub_id,
            "notes": entry.notes,
            "prompts": ", ".join(entry.prompts or ()),
        }
        for entry in MODEL_REGISTRY
    ]


def list_compiled_models() -> list[dict[str, Any]]:
    """Return a row per compiled model in the cache, sizes in MB."""
    from embedcli.encoders.openvino import loader as openvino_loader

    return [
        {
            "name": model.name,
            "mb": round(model.size_bytes / 1e6, 1),
            "key": model.key,
            "created": format_timestamp(model.created_at),
        }
        for model in openvino_loader.list_cached_models()
    ]


def format_timestamp(seconds: float) -> str:
    """Return seconds since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def show_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as JSON or as aligned columns."""
    if as_json:
        show_json(rows)
        return
    if not rows:
        print_note("nothing to list")
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in format_model_table(rows, width):
        print_line(line)


def format_model_table(rows: list[dict[str, Any]], width: int | None = None) -> list[str]:
    """Return rows as aligned columns.

    If they are wider than `width`, Hub IDs and prompts are left out and notes are wrapped.
    """
    table = [list(rows[0]), *[[escape_for_terminal(str(value)) for value in row.values()] for row in rows]]
    lines = align_columns(table)
    if width is None or max(map(len, lines)) <= width or "notes" not in table[0]:
        return lines
    kept = [table[0].index(name) for name in ("name", "local", "notes")]
    table = [[line[i] for i in kept] for line in table]
    notes_start = sum(max(len(line[i]) for line in table) + len(COLUMN_GAP) for i in range(2))
    cells = [(line, textwrap.wrap(line[2], max(20, width - notes_start)) or [""]) for line in table]
    return align_columns(
        [[*(line[:2] if i == 0 else ("", "")), part] for line, parts in cells for i, part in enumerate(parts)]
    )


def align_columns(table: list[list[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return [
        COLUMN_GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    ]
