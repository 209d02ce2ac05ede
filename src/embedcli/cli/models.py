"""`embedcli models` and `embedcli pull`: which names are known, what is here, and how to get more."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from embedcli.cli.entrypoint import handle_errors, set_environment
from embedcli.cli.options import with_job_options

JsonLinesFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
COLUMN_GAP = "  "


@handle_errors
@with_job_options(("cache_dir",))
def models(
    compiled: Annotated[bool, typer.Option("--compiled", help="List the compiled models in the cache.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Empty the cache of compiled models.")] = False,
    as_json: JsonLinesFlag = False,
    *,
    flags: dict[str, Any],
) -> None:
    """List the known model names and which of them are on this machine."""
    set_environment({})
    if clear:
        from embedcli.encoders.openvino import loader as engine

        print_model_note(f"{engine.clear_cached_models()} compiled models removed")
    elif compiled:
        show_rows(list_compiled_models(), as_json)
    else:
        show_rows(list_known_models(flags["cache_dir"]), as_json)


@handle_errors
@with_job_options(("cache_dir",))
def pull(
    model: Annotated[str, typer.Argument(help="A name from `embedcli models`, or a hub id.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Fetch a model into the local cache, for machines that run offline later."""
    set_environment({})
    from embedcli.models import resolve

    files = resolve.download_model(model, revision, flags["cache_dir"])
    print_model_note(f"{files.name} is in {files.path}" + (f", revision {files.revision}" if files.revision else ""))


def list_known_models(cache_dir: str | None) -> list[dict[str, Any]]:
    """One row per known name: its hub id, where it is on this machine, what it is for."""
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
    """One row per compiled model in the cache, with its size in MB."""
    from embedcli.encoders.openvino import loader as openvino_loader

    return [
        {"name": c.name, "mb": round(c.size_bytes / 1e6, 1), "key": c.key, "created": format_timestamp(c.created_at)}
        for c in openvino_loader.list_cached_models()
    ]


def format_timestamp(seconds: float) -> str:
    """A time in seconds since 1970 as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def show_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Rows on stdout: JSON lines' cousin for programs, or aligned columns for people."""
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if not rows:
        print_model_note("nothing there yet")
        return
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in format_model_table(rows, room):
        typer.echo(line)


def format_model_table(rows: list[dict[str, Any]], room: int | None = None) -> list[str]:
    """Aligned columns. Where there is little room, hub ids and prompts are left to --json, and notes are wrapped."""
    table = [list(rows[0]), *[[str(value) for value in row.values()] for row in rows]]
    lines = align_columns(table)
    if room is None or max(map(len, lines)) <= room or "notes" not in table[0]:
        return lines
    kept = [table[0].index(name) for name in ("name", "local", "notes")]
    table = [[line[i] for i in kept] for line in table]
    before = sum(max(len(line[i]) for line in table) + len(COLUMN_GAP) for i in range(2))
    cells = [(line, textwrap.wrap(line[2], max(20, room - before)) or [""]) for line in table]
    return align_columns(
        [[*(line[:2] if i == 0 else ("", "")), part] for line, parts in cells for i, part in enumerate(parts)]
    )


def align_columns(table: list[list[str]]) -> list[str]:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return [
        COLUMN_GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    ]


def print_model_note(text: str) -> None:
    """A sentence for people, on stderr."""
    typer.echo(text, file=sys.stderr)
