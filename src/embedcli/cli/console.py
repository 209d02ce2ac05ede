"""Output of commands: JSON, tables and lines on stdout, notes on stderr."""

from __future__ import annotations

import codecs
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from embedcli.core.terminal import escape_for_terminal, escape_in_json, unescaped

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_line(text: str = "") -> None:
    """Print a line for people on stdout; the only place that does."""
    sys.stdout.write(escape_for_terminal(text).rstrip() + "\n")


def print_note(text: str) -> None:
    """Print a line for people on stderr."""
    sys.stderr.write(escape_for_terminal(text) + "\n")
    sys.stderr.flush()


def print_labelled(label: str, text: str, color: str) -> None:
    """Print a line on stderr after a label such as "error", which has its colour on a terminal."""
    if has_color(sys.stderr):
        label = typer.style(label, fg=color, bold=True)
    print_styled(f"{label}: {escape_for_terminal(text)}", sys.stderr)


def show_json(content: Any) -> None:
    """Print a value as JSON, with null for NaN and infinities."""
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    text = json.dumps(_finite(content), indent=1, ensure_ascii=not is_utf8, default=str)
    sys.stdout.write(escape_in_json(text) + "\n")


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and texts in two columns."""
    lines = list(facts)
    width = max((len(name) for name, _ in lines), default=0)
    for name, text in lines:
        print_line(f"{name:<{width}}  {text}")


def show_table(rows: Sequence[Mapping[str, Any]], right: Iterable[str] = ()) -> None:
    """Print rows under a header, with the columns in `right` aligned to the right; nothing if there are no rows."""
    if not rows:
        return
    names = list(rows[0])
    lines = [[escape_for_terminal(str(cell)) for cell in line] for line in (names, *(row.values() for row in rows))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    to_right = set(right)
    for line in lines:
        cells = (
            cell.rjust(width) if name in to_right else cell.ljust(width)
            for name, cell, width in zip(names, line, widths, strict=True)
        )
        print_line("  ".join(cells))


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


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def has_color(stream: Any) -> bool:
    """Whether text on a stream may have colours: on a terminal, unless NO_COLOR or TERM=dumb asks for none."""
    asks_for_none = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return bool(stream.isatty()) and not asks_for_none


def print_styled(text: str, stream: Any) -> None:
    """Print lines that may have escape sequences for colours; what comes from outside must be escaped already."""
    target = unescaped(stream) if has_color(stream) else stream
    target.write(text.rstrip("\n") + "\n")
    target.flush()
