"""--limit N embeds the first N rows and publishes them, whatever the format, the runner and the rows per chunk."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedcli.readers import preview
from jobs import rows, run, run_apart, word_model, write_jsonl


def write(folder: Path, kind: str, count: int = 100) -> list[Path]:
    """Two inputs of `count` rows each."""
    made = rows(2 * count)
    paths = []
    for i, part in enumerate((made[:count], made[count:])):
        path = folder / f"in-{i}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(part), path, row_group_size=30)
        elif kind == "csv":
            path.write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in part))
        elif kind == "jsonl.gz":
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in part).encode()))
        else:
            write_jsonl(path, part)
        paths.append(path)
    return paths


@pytest.mark.parametrize("limit", [1, 7, 100, 101, 155, 200, 1000])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "jsonl.gz"])
def test_the_first_rows_are_published(kind: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", 1000)
    paths = write(tmp_path, kind)
    limited = ("--limit", limit, "--chunk-rows", 8)
    ended = run("encode", *paths, tmp_path / "out.parquet", "-m", word_model(tmp_path), *limited)
    assert ended.code == 0, ended.err
    ids = pq.read_table(tmp_path / "out.parquet")["id"].to_pylist()
    assert ids == [f"r{i}" for i in range(min(limit, 200))]


def test_bad_rows_count_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("{broken\n" + "".join(json.dumps(row) + "\n" for row in rows(9)))
    ended = run("encode", path, tmp_path / "out.parquet", "-m", word_model(tmp_path), "--limit", 5)
    assert ended.code == 3
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ["r0", "r1", "r2", "r3"]


def test_a_folder_by_several_workers_holds_the_first_rows(tmp_path: Path) -> None:
    paths = write(tmp_path, "parquet")
    ended = run_apart(
        "encode", *paths, f"{tmp_path}/out/", "-m", word_model(tmp_path), "--limit", 125, "--workers", 2,
        "--part-size", "1kB",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    ids = [row_id for part in parts for row_id in pq.read_table(part)["id"].to_pylist()]
    assert ids == [f"r{i}" for i in range(125)]


def test_the_first_rows_of_stdin_are_enough(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "in.jsonl", rows(5000)).read_bytes()
    ended = run_apart("encode", "-", tmp_path / "out.parquet", "-m", word_model(tmp_path), "--limit", 10, stdin=data)
    assert ended.code == 0, ended.err
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 10


def test_all_rows_after_the_first_ones_need_a_decision(tmp_path: Path) -> None:
    (path, _), model, output = write(tmp_path, "jsonl"), word_model(tmp_path), tmp_path / "out.parquet"
    assert run("encode", path, output, "-m", model, "--limit", 10).code == 0
    again = run("encode", path, output, "-m", model, "--limit", 10)
    assert (again.code, "nothing to do" in again.err) == (0, True), again.err
    whole = run("encode", path, output, "-m", model)
    assert whole.code == 2
    assert "was made with other settings: --limit (10, now none)" in whole.err
    assert run("encode", path, output, "-m", model, "--update").code == 0
    assert pq.read_table(output).num_rows == 100
