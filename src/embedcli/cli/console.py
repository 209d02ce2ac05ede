"""Output of commands: JSON, tables and lines on stdout, notes on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show_json(content: Any) -> None:
    """Print a value as JSON, with null for NaN and infinities."""
    typer.echo(json.dumps(_finite(content), indent=1, ensure_ascii=False, default=str))


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and texts in two columns."""
    lines = list(facts)
    width = max((len(name) for name, _ in lines), default=0)
    for name, text in lines:
        typer.echo(escape_for_terminal(f"{name:<{width}}  {text}").rstrip())


def show_table(rows: Sequence[Mapping[str, Any]], right: Iterable[str] = ()) -> None:
    """Print rows under a header; the columns in `right` are aligned to the right. Print nothing if there are no rows."""
    if not rows:
        return
    names = list(rows[0])
    lines = [names, *[[escape_for_terminal(str(row[name])) for name in names] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    to_right = set(right)
    for line in lines:
        cells = (
            cell.rjust(width) if name in to_right else cell.ljust(width)
            for name, cell, width in zip(names, line, widths, strict=True)
        )
        typer.echo("  ".join(cells).rstrip())


def print_note(text: str) -> None:
    """Print a message for people on stderr."""
    typer.echo(escape_for_terminal(text), file=sys.stderr)


def escape_for_terminal(text: str) -> str:
    """Return text as one line, with control characters and lone surrogates as escapes."""
    escaped = "".join(c if c.isprintable() or c == " " else _escape(c) for c in text)
    return escaped.encode("utf-8", "backslashreplace").decode()


def shorten(text: str, width: int = 80) -> str:
    """Return the beginning of a text as one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3] + "..."


def format_bytes(count: float) -> str:
    """Return a size in a readable unit: 154.6 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode() if not char.isspace() else " "


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
