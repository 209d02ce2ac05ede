"""`embedcli models`: the whole table in a pipe, what fits in a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs
from embedcli.cli.models import format_model_table, list_known_models
from embedcli.models import hub
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


def test_the_bundled_model_is_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> Path:
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr(hub, "download_snapshot", download)
    ended = jobs.run("pull", "all-MiniLM-L6-v2")
    assert ended.code == 0
    assert "all-MiniLM-L6-v2 is installed already, nothing to download" in ended.err


def test_hints_of_pull_name_options_that_it_has() -> None:
    error = hub.explain_hub_error(OSError("no network"), "owner/name", None, "", has_model_option=False)
    assert "--model" not in error.hint
    assert "copy the folder" in error.hint
