"""--update and --reuse: only changed rows are encoded, and the output is that of a full run."""

from __future__ import annotations

import json
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
from embedcli.outputs.dataset import VectorBlock
from embedcli.outputs.reuse import ReuseStore
from embedcli.outputs.schema import OutputLayout, VectorField
from embedcli.outputs.target import resolve_target
from fakes import COLUMNS, chunk

COUNT = 1000
LAYOUT = OutputLayout(COLUMNS, (VectorField("dense", jobs.DIM, "float32"),))


def edit_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Change 1 % of the rows, add three and remove two."""
    changed = [row | {"text": f"{row['text']} word7 word8"} if i % 100 == 5 else row for i, row in enumerate(rows)]
    return [*changed[:-2], *({"id": f"new{i}", "text": f"word{i} word99 word98"} for i in range(3))]


def encode(folder: Path, output: str, *flags: object) -> Any:
    report = folder / "in.report.json"
    done = jobs.run(
        "encode",
        folder / "in.jsonl",
        f"{folder}/{output}",
        "-m",
        folder / "words.txt",
        "--chunk-rows",
        100,
        *flags,
        "--report",
        report,
    )
    return done, json.loads(report.read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    jobs.word_model(tmp_path)
    jobs.write_jsonl(tmp_path / "in.jsonl", unique_rows(COUNT))
    return tmp_path


def unique_rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "text": f"word{i % 120} word{i // 120} word{i % 7}"} for i in range(count)]


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "out.arrow", "out/"])
def test_only_changed_rows_are_encoded_and_the_result_is_that_of_a_full_run(folder: Path, name: str) -> None:
    _, first = encode(folder, name)
    jobs.write_jsonl(folder / "in.jsonl", edit_rows(unique_rows(COUNT)))
    refused, _ = encode(folder, name)
    assert refused.code == 2
    assert "--update" in refused.err
    done, report = encode(folder, name, "--update")
    assert done.code == 0, done.err
    assert report["changes"] == {"added": 3, "changed": 10, "reused": 988, "removed": 2}
    assert first["counters"]["sequences"] == COUNT
    assert report["counters"]["sequences"] == 13
    assert "3 added, 10 changed, 988 reused, 2 removed" in done.err
    fresh = "fresh/" if name == "out/" else f"fresh.{name.split('.')[1]}"
    encode(folder, fresh)
    assert read_files(folder / fresh) == read_files(folder / name)


def test_rows_that_the_encoder_rejects_again_are_not_added(folder: Path) -> None:
    rows = unique_rows(20)
    for row in rows[3:6]:
        row["text"] = "unknown"
    jobs.write_jsonl(folder / "in.jsonl", rows)
    done, _ = encode(folder, "out.parquet")
    assert done.code == 3, done.err
    rows[0]["text"] = "unknown"  # has a vector in the output that will be replaced
    rows[5]["text"] = "word1"
    jobs.write_jsonl(folder / "in.jsonl", [*rows, {"id": "new", "text": "word2"}])
    done, report = encode(folder, "out.parquet", "--update")
    assert done.code == 3, done.err
    assert report["changes"] == {"added": 2, "changed": 0, "reused": 16, "removed": 1}
    assert report["rows"]["rows"] == 17 + 2 - 1


def read_files(path: Path) -> list[bytes]:
    if path.is_dir():
        return [file.read_bytes() for file in sorted(path.iterdir())]
    return [path.read_bytes()]


def test_an_unchanged_input_is_nothing_to_do(folder: Path) -> None:
    encode(folder, "out.parquet")
    before = (folder / "out.parquet").stat().st_mtime_ns
    done, _ = encode(folder, "out.parquet", "--update")
    assert "nothing to do" in done.err
    assert (folder / "out.parquet").stat().st_mtime_ns == before


def test_an_interrupted_update_is_resumed(folder: Path) -> None:
    encode(folder, "out.parquet")
    old = (folder / "out.parquet").read_bytes()
    jobs.write_jsonl(folder / "in.jsonl", edit_rows(unique_rows(COUNT)))
    done, _ = encode(folder, "out.parquet", "--update", "--stop-after", 300)
    assert done.code == 75
    assert (folder / "out.parquet").read_bytes() == old
    done, report = encode(folder, "out.parquet", "--update")
    assert done.code == 0, done.err
    assert report["changes"] == {"added": 3, "changed": 10, "reused": 988, "removed": 2}
    encode(folder, "fresh.parquet")
    assert read_files(folder / "fresh.parquet") == read_files(folder / "out.parquet")


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--prompt", "word1 "], "prompt"),
        (["--truncate-dim", "8"], "truncate_dim"),
        (["--precision", "float16"], "precision"),
    ],
)
def test_another_vector_space_is_refused(folder: Path, flags: list[str], key: str) -> None:
    encode(folder, "out.parquet")
    jobs.write_jsonl(folder / "in.jsonl", edit_rows(unique_rows(COUNT)))
    done, _ = encode(folder, "out.parquet", "--update", *flags)
    assert done.code == 2
    assert f"another space: {key} was" in done.err
    assert jobs.left_in(folder) == ["out.parquet"]


POOLED = ("--overflow", "pool", "--max-seq-length", 8)


@pytest.fixture
def long_rows(folder: Path) -> Path:
    """Rows of up to 40 words, most of them longer than one window, and their output without overlap."""
    jobs.write_jsonl(folder / "in.jsonl", build_long_rows())
    assert encode(folder, "out.parquet", *POOLED)[0].code == 0
    return folder


def build_long_rows() -> list[dict[str, Any]]:
    return [{"id": f"r{i}", "text": " ".join(f"word{(i * k) % 120}" for k in range(1 + i % 40))} for i in range(200)]


@pytest.mark.parametrize("flags", [("out.parquet", "--update"), ("new.parquet", "--reuse", "out.parquet")])
def test_vectors_pooled_from_other_windows_are_refused(
    long_rows: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(long_rows)
    done, _ = encode(long_rows, *flags, *POOLED, "--split-overlap", 4)
    assert done.code == 2
    assert "--split-overlap was 0, now 4" in done.err
    assert jobs.left_in(long_rows) == ["out.parquet"]
    before = read_files(long_rows / "out.parquet")
    encode(long_rows, "fresh.parquet", *POOLED, "--split-overlap", 4)
    assert read_files(long_rows / "fresh.parquet") != before


def test_an_overlap_that_is_not_used_keeps_the_vector_space(long_rows: Path) -> None:
    cut = ("--overflow", "truncate", *POOLED[2:])
    encode(long_rows, "cut.parquet", *cut)
    done, report = encode(long_rows, "cut.parquet", *cut, "--split-overlap", 4, "--update")
    assert done.code == 0, done.err
    assert report["changes"]["reused"] == len(build_long_rows())
    job = json.loads(pq.read_schema(long_rows / "cut.parquet").metadata[b"embedcli.job"])["job"]
    assert job["split_overlap"] == 4


def test_vectors_are_reused_from_another_output(folder: Path) -> None:
    encode(folder, "old.parquet")
    jobs.write_jsonl(folder / "in.jsonl", edit_rows(unique_rows(COUNT)))
    done, report = encode(folder, "out.parquet", "--reuse", folder / "old.parquet")
    assert done.code == 0, done.err
    assert report["counters"]["sequences"] == 13
    encode(folder, "fresh.parquet")
    assert read_files(folder / "fresh.parquet") == read_files(folder / "out.parquet")


def test_update_from_stdin(folder: Path) -> None:
    flags = ["--format", "jsonl", "-m", folder / "words.txt", "--update"]
    source = (folder / "in.jsonl").read_bytes()
    assert jobs.run_apart("encode", "-", folder / "out.parquet", *flags, stdin=source).code == 0
    done = jobs.run_apart("encode", "-", folder / "out.parquet", *flags, stdin=source[: source.rindex(b"\n", 0, -1)])
    assert done.code == 0, done.err
    assert "0 added, 0 changed, 999 reused, 1 removed" in done.err
    assert pq.read_metadata(folder / "out.parquet").num_rows == COUNT - 1


def test_reuse_refuses_a_file_that_is_not_a_finished_output(folder: Path) -> None:
    done, _ = encode(folder, "out.parquet", "--reuse", folder / "in.jsonl")
    assert done.code == 2
    assert "in.jsonl" in done.err


@pytest.mark.parametrize("reused", [False, True])
def test_jsonl_outputs_are_refused_before_the_model_is_loaded(
    folder: Path, reused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(folder, "out.jsonl")
    jobs.write_jsonl(folder / "in.jsonl", edit_rows(unique_rows(COUNT)))
    monkeypatch.setattr("embedcli.encoders.load_encoder", lambda *_, **__: pytest.fail("was loaded"))
    words = ("new.parquet", "--reuse", folder / "out.jsonl") if reused else ("out.jsonl", "--update")
    done, _ = encode(folder, *words)
    assert done.code == 2
    assert "out.jsonl: the vectors of a JSONL output cannot be reused" in done.err


def test_no_room_for_the_copy_of_the_old_vectors(folder: Path) -> None:
    encode(folder, "out.parquet")
    before = read_files(folder / "out.parquet")
    jobs.write_jsonl(folder / "in.jsonl", edit_rows(unique_rows(COUNT)))
    words = ("encode", folder / "in.jsonl", folder / "out.parquet", "-m", folder / "words.txt", "--update")
    # Files of at most 30 kB: the copy has 64.
    limited = ["bash", "-c", 'ulimit -f 30; exec "$@"', "bash", *jobs.command(*words, "--chunk-rows", 100)]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "the vectors of the old output cannot be copied there: File too large" in done.stderr
    assert "TMPDIR" in done.stderr
    assert read_files(folder / "out.parquet") == before


def test_memory_per_old_row(folder: Path) -> None:
    encode(folder, "out.parquet")
    store = ReuseStore([resolve_target(str(folder / "out.parquet"), None)], LAYOUT, str(folder))
    arrays = [
        value for value in vars(store).values() if isinstance(value, np.ndarray) and not isinstance(value, np.memmap)
    ]
    assert sum(array.nbytes for array in arrays) <= 40 * COUNT
    store.close()


def test_memory_per_old_row_while_the_store_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All arrays that numpy and Arrow hold at once, on top of the blocks of rows, which are there before."""
    blocks, block = 24, 1 << 12
    chance = np.random.default_rng(1)

    def make_block(i: int) -> VectorBlock:
        columns = {
            "id": pa.array(range(i * block, (i + 1) * block)),
            "n_tokens": pa.array(np.ones(block, np.int32)),
            "truncated": pa.array(np.zeros(block, bool)),
            "text_hash": pa.array([chance.bytes(16) for _ in range(block)], pa.binary(16)),
        }
        return VectorBlock(i * block, np.zeros((block, 1), np.float32), pa.table(columns))

    old_blocks = list(map(make_block, range(blocks)))
    monkeypatch.setattr("embedcli.outputs.reuse.read_reusable_blocks", lambda *_: iter(old_blocks))
    tracemalloc.start()
    try:
        store = ReuseStore(
            [resolve_target(str(tmp_path / "out.parquet"), None)],
            OutputLayout(COLUMNS, (VectorField("dense", 1, "float32"),)),
            str(tmp_path),
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    rows = blocks * block
    assert len(store._order) == rows
    assert peak <= 40 * rows
    assert [path.name for path in tmp_path.iterdir()] == ["reuse.embedding.bin"]
    store.close()


def test_hashes_with_equal_first_halves_are_distinguished(folder: Path) -> None:
    encode(folder, "out.parquet")
    store = ReuseStore([resolve_target(str(folder / "out.parquet"), None)], LAYOUT, str(folder))
    store._high = np.zeros_like(store._high)
    order = np.argsort(store._low)
    store._low, store._order = store._low[order], store._order[order]
    rows = pq.read_table(folder / "out.parquet").slice(3, 2)
    wanted = np.frombuffer(b"".join(rows.column("text_hash").to_pylist()), np.uint8).reshape(2, 16).copy()
    wanted[:, :8] = 0
    known = store.lookup(chunk(["a", "b"]), wanted)
    expected = np.array(rows.column("embedding").to_pylist(), np.float32)
    assert known.rows.tolist() == [0, 1]
    np.testing.assert_array_equal(known.vectors, expected)
    store.close()


def test_duplicate_ids_and_texts(folder: Path) -> None:
    rows = [{"id": "same", "text": "word1 word2"}] * 5 + [{"id": "same", "text": "word3"}]
    jobs.write_jsonl(folder / "in.jsonl", rows)
    encode(folder, "out.parquet")
    jobs.write_jsonl(folder / "in.jsonl", [*rows[3:], {"id": "same", "text": "word5"}])
    done, report = encode(folder, "out.parquet", "--update")
    assert done.code == 0, done.err
    assert report["changes"] == {"added": 0, "changed": 1, "reused": 3, "removed": 0}
    assert pa.compute.count(pq.read_table(folder / "out.parquet").column("id")).as_py() == 4


def test_the_tokens_that_reused_rows_lost_are_counted(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "text": " ".join(f"word{i + j}" for j in range(8))} for i in range(6)]
    jobs.write_jsonl(tmp_path / "in.jsonl", rows)
    jobs.word_model(tmp_path)
    _, plain = encode(tmp_path, "a.parquet", "--max-seq-length", 3)
    _, reused = encode(tmp_path, "b.parquet", "--max-seq-length", 3, "--reuse", tmp_path / "a.parquet")
    assert reused["changes"]["reused"] == 6
    assert reused["rows"]["lost_tokens"] == plain["rows"]["lost_tokens"] == 6 * 5
