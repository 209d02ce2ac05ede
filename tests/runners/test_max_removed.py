"""A job never replaces an output by an empty or much smaller one, unless it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import contents, rows, run, word_model, write_jsonl

OUTPUTS = ("out.parquet", "out.npy", "out.arrow", "out/")
UNKNOWN_ROWS = [{"id": f"r{i}", "text": "zzz"} for i in range(10)]


@pytest.fixture
def encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write rows to the input and encode them."""
    monkeypatch.chdir(tmp_path)
    word_model(tmp_path)

    def encode_rows(made: list[dict[str, Any]], output: str, *options: str) -> Any:
        write_jsonl(tmp_path / "in.jsonl", made)
        return run("encode", "in.jsonl", output, "--model", "words.txt", "--keep", "text", "--quiet", *options)

    return encode_rows


@pytest.mark.parametrize("flag", ["--update", "--overwrite"])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize(
    "smaller", [[], UNKNOWN_ROWS, rows(4)], ids=["no rows", "only rejects", "less than half of the rows"]
)
def test_the_old_output_is_kept(encode: Any, output: str, flag: str, smaller: list[dict[str, Any]]) -> None:
    assert encode(rows(10), output).code == 0
    before = published(Path(output))
    refused = encode(smaller, output, flag)
    assert refused.code == 1
    assert "10 rows" in refused.err
    assert "--max-removed 100%" in refused.err
    assert published(Path(output)) == before
    allowed = encode(smaller, output, flag, "--max-removed", "100%")
    assert allowed.code in (0, 3)
    assert published(Path(output)) != before


@pytest.mark.parametrize("flag", ["--update", "--overwrite"])
def test_half_of_the_rows_may_go(encode: Any, flag: str) -> None:
    assert encode(rows(10), "out.parquet").code == 0
    assert encode(rows(5), "out.parquet", flag).code == 0


def test_the_limit_can_be_a_number_of_rows(encode: Any) -> None:
    assert encode(rows(10), "out.parquet").code == 0
    assert encode(rows(8), "out.parquet", "--update", "--max-removed", "1").code == 1
    assert encode(rows(8), "out.parquet", "--update", "--max-removed", "2").code == 0


def test_a_file_of_unknown_content_is_not_replaced_by_nothing(encode: Any) -> None:
    Path("out.parquet").write_bytes(b"not ours")
    assert encode([], "out.parquet", "--overwrite").code == 1
    assert Path("out.parquet").read_bytes() == b"not ours"
    assert encode(rows(1), "out.parquet", "--overwrite").code == 0


def test_after_a_refusal_the_full_input_updates_the_output(encode: Any) -> None:
    assert encode(rows(10), "out.parquet").code == 0
    assert encode([], "out.parquet", "--update").code == 1
    assert encode(rows(12), "out.parquet", "--update").code == 0
    assert sorted(path.name for path in Path().iterdir()) == ["in.jsonl", "out.parquet", "words.txt"]


def test_a_limit_that_is_none_is_refused(encode: Any) -> None:
    ended = encode(rows(1), "out.parquet", "--max-removed", "half")
    assert ended.code == 2
    assert "--max-removed 'half'" in ended.err


def published(output: Path) -> list[bytes]:
    """The bytes of a finished output, without what a refused run keeps beside it."""
    if not output.is_dir():
        return contents(output)
    return [path.read_bytes() for path in sorted(output.iterdir()) if path.is_file() and "reject" not in path.name]
