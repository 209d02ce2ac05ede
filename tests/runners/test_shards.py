"""Shards of different inputs are never merged: all rows of an output come from the same state of the inputs."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import jobs
from embedcli import storage
from embedcli.checkpoint import input_snapshot
from embedcli.core.errors import OutputError
from embedcli.core.types import InputSplit, Partition
from embedcli.readers import preview

ROWS = jobs.rows(400)


@pytest.fixture(autouse=True)
def _small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", 2000)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two inputs of 200 rows, and the model."""
    jobs.word_model(tmp_path)
    write_inputs(tmp_path, ROWS[:200], ROWS[200:])
    return tmp_path


def write_inputs(home: Path, *files: list[dict[str, Any]]) -> None:
    for number, rows in enumerate(files):
        jobs.write_jsonl(home / f"in.{number}.jsonl", rows)


def encode(home: Path, output: str, *more: object) -> jobs.Ended:
    flags = ("--model", home / "words.txt", "--chunk-rows", 16, "--part-size", "2000", "--text-column", "text")
    return jobs.run("encode", home / "in.0.jsonl", home / "in.1.jsonl", f"{home}/{output}", *flags, *more)


def run_shard(home: Path, output: str, number: int, *more: object) -> jobs.Ended:
    return encode(home, output, "--shard", f"{number}/2", *more)


def read_ids(home: Path, output: str) -> list[Any]:
    ids: list[Any] = pq.read_table(home / output).column(0).to_pylist()
    return ids


CHANGES = {
    "a row moves from one to the other": (ROWS[:199], ROWS[199:]),
    "a row is replaced by another of its size": ([*ROWS[:7], ROWS[8] | {"id": "r7"}, *ROWS[8:200]], ROWS[200:]),
    "an input grows by splits": ([*ROWS[:200], *jobs.rows(500)[400:]], ROWS[200:]),
    "an input shrinks by splits": (ROWS[:90], ROWS[200:]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("output", ["out/", "out.parquet"])
@pytest.mark.parametrize("more", [(), ("--workers", 2)], ids=["local", "processes"])
def test_an_input_that_changes_between_shards(home: Path, output: str, change: str, more: tuple[Any, ...]) -> None:
    assert run_shard(home, output, 1, *more).code == 0
    write_inputs(home, *CHANGES[change])
    last = run_shard(home, output, 2, *more)
    merged = jobs.run("merge", f"{home}/{output}")
    for refused in (merged,) if "partitions are missing" in last.err else (last, merged):
        assert refused.code == 1
        assert "in.0.jsonl has changed between the shards" in refused.err
        assert "run every shard again" in refused.err
    assert not (home / "out.parquet").exists()
    assert not (home / "out" / "_manifest.json").exists()
    codes = [run_shard(home, output, number, *more).code for number in (2, 1)]
    assert codes[-1] == 0, codes
    assert read_ids(home, output) == [row["id"] for rows in CHANGES[change] for row in rows]
    assert encode(home, f"whole{output[3:]}").code == 0
    assert pq.read_table(home / output).equals(pq.read_table(home / f"whole{output[3:]}"))


def test_row_numbers_depend_on_earlier_inputs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.readers.columns.ID_COLUMN_NAMES", ())
    assert run_shard(home, "out/", 1).code == 0
    size = (home / "in.0.jsonl").stat().st_size
    write_inputs(home, [*ROWS[:150], *ROWS[151:200]])
    with (home / "in.0.jsonl").open("ab") as out:  # one row less, with the same split boundaries
        out.write(b" " * (size - out.tell() - 1) + b"\n")
    assert run_shard(home, "out/", 2).code == 1
    assert run_shard(home, "out/", 1).code == 0
    assert read_ids(home, "out/") == list(range(399))


@pytest.mark.parametrize("more", [(), ("--workers", 2)], ids=["local", "processes"])
def test_a_touched_input_is_compared_and_not_encoded_again(
    home: Path, more: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_shard(home, "out/", 1).code == 0
    os.utime(home / "in.0.jsonl", (1, 1))
    assert run_shard(home, "out/", 2).code == 1
    monkeypatch.setattr("embedcli.encoders.load_encoder", lambda *_, **__: pytest.fail("was loaded"))
    again = run_shard(home, "out/", 1, *more)
    assert again.code == 0, again.err
    assert read_ids(home, "out/") == [row["id"] for row in ROWS]


@pytest.mark.parametrize("change", ["an input grows by splits", "an input shrinks by splits"])
@pytest.mark.parametrize("more", [(), ("--workers", 2)], ids=["local", "processes"])
def test_a_whole_run_refuses_partitions_with_other_splits(home: Path, change: str, more: tuple[Any, ...]) -> None:
    assert run_shard(home, "out/", 1).code == 0
    write_inputs(home, *CHANGES[change])
    refused = encode(home, "out/", *more)
    assert (refused.code, "has changed since" in refused.err) == (2, True), refused.err
    assert encode(home, "out/", "--update").code == 0
    assert read_ids(home, "out/") == [row["id"] for rows in CHANGES[change] for row in rows]


def test_an_input_that_changes_while_it_is_read_is_detected(home: Path) -> None:
    path = str(home / "in.0.jsonl")
    partition = Partition(0, (InputSplit(0, path),))
    snapshot = input_snapshot.take_snapshot([partition])
    input_snapshot.write_snapshot(str(home), snapshot)
    unchanged_record = input_snapshot.build_record(partition, snapshot, "job", (), ())
    assert input_snapshot.find_common_snapshot(str(home), "out/", [unchanged_record]) == snapshot
    jobs.write_jsonl(home / "in.0.jsonl", ROWS[:3])
    changed_record = input_snapshot.build_record(partition, snapshot, "job", (), ())
    with pytest.raises(OutputError, match="has changed while partition 0"):
        input_snapshot.find_common_snapshot(str(home), "out/", [changed_record])
    assert snapshot.is_unchanged(unchanged_record, has_row_numbers=False)
    assert not input_snapshot.take_snapshot([partition]).is_unchanged(changed_record, has_row_numbers=False)


def test_folders_may_move_between_shards(home: Path) -> None:
    assert run_shard(home, "out/", 1).code == 0
    moved = home / "moved"
    moved.mkdir()
    for name in ("in.0.jsonl", "in.1.jsonl", "out"):
        os.rename(home / name, moved / name)
    done = run_shard(moved, "out/", 2, "--model", home / "words.txt")
    assert done.code == 0, done.err
    assert read_ids(moved, "out/") == [row["id"] for row in ROWS]


@pytest.mark.parametrize("kind", ["npy", "jsonl", "arrow", "parquet"])
def test_merge_uses_the_format_of_the_shards(home: Path, kind: str) -> None:
    output = f"{home}/out/"
    assert run_shard(home, "out/", 1, "--to", kind).code == 0
    other = run_shard(home, "out/", 2, "--to", "parquet" if kind != "parquet" else "npy")
    assert other.code == 2
    assert f"--to ({kind}, now " in other.err
    with ExitStack() as held:  # as if a third shard were running: the last one does not merge
        held.callback(storage.acquire_lock(f"{output}_parts/_lock", output, shared=True))
        assert run_shard(home, "out/", 2, "--to", kind).code == 0
        assert jobs.run("merge", output).code == 1
    merged = jobs.run("merge", output)
    assert merged.code == 0, merged.err
    parts = json.loads((home / "out" / "_manifest.json").read_text())["parts"]
    assert parts
    assert all(name.endswith(f".{kind}") for name in parts)
    verified = jobs.run("verify", output, home / "in.0.jsonl", home / "in.1.jsonl")
    assert verified.code == 0, verified.out
    again = jobs.run("merge", output)
    assert (again.code, "nothing to do" in again.err) == (0, True)


@pytest.mark.parametrize("removed", range(0, 14, 2))
def test_a_merge_killed_while_it_removes_the_staging_folder_is_finished(
    removed: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    remove, left = storage.remove, [removed]

    def dying(path: str) -> None:
        if (home / "out" / "_manifest.json").exists():
            if not left[0]:
                raise Killed
            left[0] -= 1
        remove(path)

    assert run_shard(home, "out/", 1).code == 0
    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", dying)
        assert "Killed" in run_shard(home, "out/", 2).err
    merged = jobs.run("merge", f"{home}/out/")
    assert (merged.code, len(read_ids(home, "out/"))) == (0, 400), merged.err


def test_fewer_partitions_than_shards_are_told(home: Path) -> None:
    """By the shard that has rows, too: its user waits for the others."""
    source = jobs.write_jsonl(home / "one.jsonl", [{"id": 1, "text": "word1 word2"}])
    for number, who in ((2, "this shard"), (1, "some shards")):
        flags = ("--model", home / "words.txt", "--shard", f"{number}/2")
        ended = jobs.run("encode", source, home / "out.parquet", *flags)
        told = " ".join(ended.err.split())
        assert f"{who} will have nothing to do: the input is divided into 1 partition; JSONL is split" in told
