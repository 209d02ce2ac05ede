"""What commands print on stdout: JSON for programs, aligned lines for people, the same in a pipe and on a terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def show_json(content: Any) -> None:
    """One JSON value, numbers that JSON does not know as null."""
    typer.echo(json.dumps(_finite(content), indent=1, ensure_ascii=False, default=str))


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Names and what is said of them, in two columns."""
    listed = list(facts)
    width = max((len(name) for name, _ in listed), default=0)
    for name, text in listed:
        typer.echo(escape_for_terminal(f"{name:<{width}}  {text}").rstrip())


def show_table(rows: Sequence[Mapping[str, Any]], right: Iterable[str] = ()) -> None:
    """Rows under a header, columns aligned; those named in `right` to the right. Prints nothing for no rows."""
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
    """A sentence for people, on stderr."""
    typer.echo(escape_for_terminal(text), file=sys.stderr)


def escape_for_terminal(text: str) -> str:
    """One line that any terminal can show: control characters and lone surrogates as escapes."""
    shown = "".join(c if c.isprintable() or c == " " else _escape(c) for c in text)
    return shown.encode("utf-8", "backslashreplace").decode()


def shorten(text: str, width: int = 80) -> str:
    """The beginning of a text on one line."""
    one = " ".join(text.split())
    return one if len(one) <= width else one[: width - 3] + "..."


def format_bytes(count: float) -> str:
    """Bytes for people: 154.6 MB."""
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
