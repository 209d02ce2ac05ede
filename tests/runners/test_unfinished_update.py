"""An --update that was stopped goes on although inputs or options have changed since."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import rows, run, word_model, write_jsonl

UPDATE = ("out.parquet", "--model", "words.txt", "--update", "--quiet")


@pytest.fixture(autouse=True)
def unfinished_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished output of 10 rows, and an update to 20 rows that stopped after 12."""
    monkeypatch.chdir(tmp_path)
    word_model(tmp_path)
    write_jsonl(tmp_path / "in.jsonl", rows(10))
    assert run("encode", "in.jsonl", "out.parquet", "--model", "words.txt", "--chunk-rows", "4").code == 0
    write_jsonl(tmp_path / "in.jsonl", rows(20))
    assert run("encode", "in.jsonl", *UPDATE, "--stop-after", "12").code == 75
    assert list(Path("out.parquet.parts").glob("part-*"))


@pytest.mark.parametrize(
    "options", [("--template", "{text} {text}"), ("--chunk-rows", "5"), ("--keep", "n"), ("--format", "jsonl")]
)
def test_it_goes_on_with_other_options(options: tuple[str, ...]) -> None:
    ended = run("encode", "in.jsonl", *UPDATE[:-1], *options)
    assert ended.code == 0, ended.err
    assert "is begun again" in ended.err
    assert pq.read_table("out.parquet")["id"].to_pylist() == [f"r{i}" for i in range(20)]
    assert not Path("out.parquet.parts").exists()


def test_it_goes_on_with_other_inputs() -> None:
    write_jsonl(Path("more.jsonl"), [row | {"id": f"more-{row['id']}"} for row in rows(3)])
    assert run("encode", "in.jsonl", "more.jsonl", *UPDATE).code == 0
    assert pq.read_table("out.parquet").num_rows == 23


def test_another_model_does_not_discard_its_work() -> None:
    Path("other.txt").write_text(Path("words.txt").read_text().replace("word1 ", "word1x "))
    kept = sorted(Path("out.parquet.parts").iterdir())
    ended = run("encode", "in.jsonl", "out.parquet", "--model", "other.txt", "--update")
    assert ended.code == 2
    assert "other settings" in ended.err
    assert sorted(Path("out.parquet.parts").iterdir()) == kept
