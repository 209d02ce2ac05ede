"""Commands that somebody waits for give up soon when the server of a hosted model is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

import fake_server as fake
import jobs
from embedcli.cli import options
from fake_server import FakeServer

MODEL = f"openai:{fake.MODEL}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows, pairs, and an output of a server that is gone; its address is in `url.txt`."""
    jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(5))
    pair = {"text_a": "a cat", "text_b": "a dog", "score": 0.5}
    jobs.write_jsonl(tmp_path / "pairs.jsonl", [pair, pair | {"score": 0.9}])
    with FakeServer() as server:
        done = jobs.run(
            "encode", tmp_path / "in.jsonl", tmp_path / "out.parquet", "-m", MODEL, "--base-url", server.base_url
        )
        assert done.code == 0, done.err
        (tmp_path / "url.txt").write_text(server.base_url)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [("search", "out.parquet", "words"), ("verify", "out.parquet"), ("eval", "pairs.jsonl", "-m", MODEL)],
    ids=lambda arguments: arguments[0],
)
def test_an_interactive_command_gives_up_when_its_patience_ends(
    folder: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    flags = ("--base-url", (folder / "url.txt").read_text(), "--patience", 0.5)
    done = jobs.run(*arguments, *flags)
    assert done.code == 1, done.err
    assert "given up after" in done.out + done.err


@pytest.mark.parametrize("command", ["search", "verify", "eval"])
def test_the_patience_of_an_interactive_command_is_a_minute(command: str) -> None:
    (shown,) = [line for line in jobs.run(command, "--help").out.split("--") if line.startswith("patience")]
    assert "[default: 60" in " ".join(shown.split())
    assert options.INTERACTIVE_DEFAULTS["patience"] == 60
    assert "28800" in jobs.run("encode", "--help").out
