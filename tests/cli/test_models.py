"""`embedcli models`: the whole table in a pipe, what fits in a terminal."""

from __future__ import annotations

import jobs
from embedcli.cli.models import known_rows, table_of
from embedcli.models.registry import KNOWN


def test_a_pipe_gets_every_column() -> None:
    ended = jobs.run("models")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].split() == ["name", "local", "id", "notes", "prompts"]
    assert len(lines) == 1 + len(KNOWN)
    assert all(known.id in line for known, line in zip(KNOWN, lines[1:], strict=True))


def test_a_terminal_gets_what_fits() -> None:
    rows = known_rows(None)
    lines = table_of(rows, 80)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert all(row["name"] in text for row in rows)
    assert all(word in text for row in rows for word in row["notes"].split())
    assert table_of(rows, 500) == table_of(rows)
