"""An output of other settings: what is suggested works when it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import rows, run, word_model, write_jsonl

OVERWRITE = "hint: use --overwrite to start again, or another output"
UPDATE = "hint: use --overwrite to start again, --update to keep the vectors of unchanged rows, or another output"
GO_ON = "hint: use the earlier settings to go on, --overwrite to start again, or another output"


@pytest.fixture(autouse=True)
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    word_model(tmp_path)
    write_jsonl(tmp_path / "in.jsonl", rows(12))


def command(output: str, *options: str) -> tuple[str, ...]:
    return ("encode", "in.jsonl", output, "--model", "words.txt", "--quiet", "--chunk-rows", "4", *options)


def test_an_unfinished_output_cannot_be_updated() -> None:
    assert run(*command("out.parquet", "--stop-after", "4")).code == 75
    ended = run(*command("out.parquet", "--keep", "n"))
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == GO_ON
    assert run(*command("out.parquet", "--keep", "n", "--update")).code == 2
    assert run(*command("out.parquet")).code == 0


@pytest.mark.parametrize(
    "options", [("--precision", "float16"), ("--truncate-dim", "8"), ("--normalize",), ("--overflow", "split")]
)
def test_vectors_of_another_space_cannot_be_updated(options: tuple[str, ...]) -> None:
    assert run(*command("out.parquet")).code == 0
    ended = run(*command("out.parquet", *options))
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == OVERWRITE
    assert run(*command("out.parquet", *options, "--update")).code == 2
    assert run(*command("out.parquet", *options, "--overwrite")).code == 0


@pytest.mark.parametrize("output", ["out.parquet", "out/"])
@pytest.mark.parametrize("options", [("--keep", "n"), ("--limit", "6"), ("--template", "{text} {n}")])
def test_other_rows_can_be_updated(output: str, options: tuple[str, ...]) -> None:
    assert run(*command(output)).code == 0
    ended = run(*command(output, *options))
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == UPDATE
    assert run(*command(output, *options, "--update")).code == 0


@pytest.mark.parametrize(
    ("output", "options", "hint"),
    [("out.parquet", (), UPDATE), ("out.jsonl", (), OVERWRITE), ("out.parquet", ("--overflow", "split"), OVERWRITE)],
)
def test_other_input(output: str, options: tuple[str, ...], hint: str) -> None:
    assert run(*command(output, *options)).code == 0
    write_jsonl(Path("in.jsonl"), rows(12, seed=2))
    ended = run(*command(output, *options))
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == hint
    assert run(*command(output, *options, "--update")).code == (0 if hint == UPDATE else 2)
