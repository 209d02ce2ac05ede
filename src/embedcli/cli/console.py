"""Output of commands: JSON, tables and lines on stdout, notes on stderr."""

from __future__ import annotations

import codecs
import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from embedcli.core.terminal import escape_for_terminal, escape_in_json, unescaped

COLUMN_GAP = "  "
# A column of a table is not wrapped to fewer characters.
MIN_CELL_WIDTH = 16

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


def terminal_width() -> int | None:
    """Return the columns of the terminal that stdout is; None if it is not one: then no line is wrapped."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and texts in two columns; on a terminal, texts are wrapped."""
    for line in format_facts(list(facts), terminal_width()):
        print_line(line)


def format_facts(facts: Sequence[tuple[str, str]], width: int | None = None) -> list[str]:
    """Return names and texts in two columns, with texts wrapped if `width` is given."""
    start = max((len(name) for name, _ in facts), default=0) + len(COLUMN_GAP)
    lines = []
    for name, text in facts:
        parts = [text] if width is None else wrap_cell(text, max(MIN_CELL_WIDTH, width - start))
        lines += [(name if at == 0 else "").ljust(start) + part for at, part in enumerate(parts)]
    return [line.rstrip() for line in lines]


def show_table(rows: Sequence[Mapping[str, Any]], right: Iterable[str] = ()) -> None:
    """Print rows under a header, with the columns in `right` aligned to the right; nothing if there are no rows."""
    for line in format_table(rows, right, terminal_width()):
        print_line(line)


def format_table(rows: Sequence[Mapping[str, Any]], right: Iterable[str] = (), width: int | None = None) -> list[str]:
    """Return rows under a header, or one below the other if they do not fit.

    Args:
        rows: Cells by column; all rows have the same columns.
        right: Columns that are aligned to the right, and never wrapped.
        width: Columns of the terminal; None: no line is too long.
    """
    if not rows:
        return []
    names, to_right = list(rows[0]), set(right)
    table = [[escape_for_terminal(str(cell)) for cell in line] for line in (names, *(row.values() for row in rows))]
    widths = [max(len(line[i]) for line in table) for i in range(len(names))]
    excess = sum(widths) + len(COLUMN_GAP) * (len(names) - 1) - (width or math.inf)
    if excess > 0:
        wrapped = max((i for i, name in enumerate(names) if name not in to_right), key=widths.__getitem__, default=0)
        if names[wrapped] in to_right or widths[wrapped] - excess < MIN_CELL_WIDTH:
            return format_records(names, table[1:], width)
        widths[wrapped] -= int(excess)
    lines = []
    for line in table:
        cells = [wrap_cell(cell, size) for cell, size in zip(line, widths, strict=True)]
        for at in range(max(map(len, cells))):
            texts = [cell[at] if at < len(cell) else "" for cell in cells]
            aligned = (
                text.rjust(size) if name in to_right else text.ljust(size)
                for name, text, size in zip(names, texts, widths, strict=True)
            )
            lines.append(COLUMN_GAP.join(aligned).rstrip())
    return lines


def wrap_cell(text: str, width: int) -> list[str]:
    """Return a text as lines of at most `width` characters; one that fits stays as it is."""
    return [text] if len(text) <= width else textwrap.wrap(text, width) or [""]


def format_records(names: Sequence[str], table: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return the rows of a table one below the other, with an empty line between them: a line per column."""
    lines: list[str] = []
    for row in table:
        lines += ["", *format_facts(list(zip(names, row, strict=True)), width)]
    return lines[1:]


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
