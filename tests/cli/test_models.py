"""`embedcli models`: the whole table in a pipe, what fits in a terminal."""

from __future__ import annotations

import jobs
from embedcli.cli.models import format_model_table, list_known_models
from embedcli.models.registry import MODEL_REGISTRY


def test_a_pipe_gets_every_column() -> None:
    ended = jobs.run("models")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0].split() == ["name", "local", "id", "notes", "prompts"]
    assert len(lines) == 1 + len(MODEL_REGISTRY)
    assert all(known.hub_id in line for known, line in zip(MODEL_REGISTRY, lines[1:], strict=True))


def test_a_terminal_gets_what_fits() -> None:
    rows = list_known_models(None)
    lines = format_model_table(rows, 80)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert all(row["name"] in text for row in rows)
    assert all(word in text for row in rows for word in row["notes"].split())
    assert format_model_table(rows, 500) == format_model_table(rows)
