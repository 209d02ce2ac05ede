"""The ledger: part files are intact or missing, damage is detected, and two jobs never mix."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedcli import checkpoint
from embedcli.core.errors import OutputError, ResumeError
from embedcli.core.types import Chunk, Partition, Reject
from embedcli.outputs import target as output_target
from embedcli.outputs.schema import OutputLayout, VectorField
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.engine import encode_chunks
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings
from fakes import COLUMNS, FakeEncoder, chunk

JOB = {"model": "fake", "prompt": ""}
LAYOUT = OutputLayout(COLUMNS, (VectorField("dense", 8, "float32"),))
BAD = Reject("in.jsonl", 99, "bad JSON", None, "{oops")


def chunks() -> list[Chunk]:
    first = chunk([f"row {i}" for i in range(20)], seq=0, last=False)
    return [first, chunk([f"line {i}" for i in range(7)], seq=1, rejects=(BAD,))]


def open_ledger(output: Path, job: dict[str, Any] = JOB, **values: Any) -> checkpoint.Ledger:
    ledger = checkpoint.Ledger(output_target.resolve_target(str(output), None), **values)
    ledger.acquire()
    ledger.begin(job, overwrite=False)
    return ledger


def encode_missing(ledger: checkpoint.Ledger, source: list[Chunk]) -> int:
    """Encode the missing chunks; returns how many there were."""
    count = 0
    for encoded in encode_chunks(
        ledger.skip_finished_chunks(iter(source)), FakeEncoder(), EncodingSettings(), MetricsCollector(), RunControl()
    ):
        ledger.add_chunk(encoded, LAYOUT)
        count += 1
    return count


def write_output(output: Path) -> None:
    ledger = open_ledger(output)
    encode_missing(ledger, chunks())
    ledger.publish(LAYOUT, {"model": "fake"})


def part_files_of(output: Path) -> list[Path]:
    return sorted(Path(f"{output}.parts").glob("part-*.arrow"))


def test_a_finished_output_leaves_no_other_file(tmp_path: Path) -> None:
    write_output(tmp_path / "out.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "out.parquet.rejects.jsonl"]
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("id").to_pylist() == [f"0-0-{i}" for i in range(20)] + [f"0-1-{i}" for i in range(7)]
    reject = json.loads((tmp_path / "out.parquet.rejects.jsonl").read_text())
    assert reject == {"source": "in.jsonl", "line": 99, "id": None, "reason": "bad JSON", "raw": "{oops"}


def test_resume_keeps_intact_part_files_and_gives_the_same_bytes(tmp_path: Path) -> None:
    write_output(tmp_path / "a.parquet")
    ledger = open_ledger(tmp_path / "b.parquet")
    assert encode_missing(ledger, chunks()[:1]) == 1
    ledger.release()
    again = open_ledger(tmp_path / "b.parquet")
    assert encode_missing(again, chunks()) == 1
    again.publish(LAYOUT, {"model": "fake"})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def flip_byte(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flip early", "flip late", "truncate", "empty", "rejects", "no rejects"])
def test_damaged_part_files_are_encoded_again(tmp_path: Path, damage: str) -> None:
    write_output(tmp_path / "a.parquet")
    ledger = open_ledger(tmp_path / "b.parquet")
    encode_missing(ledger, chunks())
    ledger.release()
    victim = part_files_of(tmp_path / "b.parquet")[1]
    rejects = next(victim.parent.glob("rejects-*"))
    match damage:
        case "flip early":
            flip_byte(victim, 0.1)
        case "flip late":
            flip_byte(victim, 0.97)
        case "truncate":
            victim.write_bytes(victim.read_bytes()[:-5])
        case "empty":
            victim.write_bytes(b"")
        case "rejects":
            flip_byte(rejects, 0.5)
        case _:
            rejects.unlink()
    again = open_ledger(tmp_path / "b.parquet")
    assert encode_missing(again, chunks()) == 1
    assert again.damaged_parts == [str(victim)]
    again.publish(LAYOUT, {"model": "fake"})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize("fails", [0, 1])
@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
def test_vectors_are_never_next_to_the_metadata_of_another_job(
    name: str, fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishing an output of two files again, from other rows, fails when one of them gets its name."""
    write_output(tmp_path / name)
    old = (tmp_path / name).read_bytes()
    new = [chunk([f"other {i}" for i in range(9)])]
    job = JOB | {"prompt": "query: "}
    ledger = checkpoint.Ledger(output_target.resolve_target(str(tmp_path / name), None))
    ledger.acquire()
    ledger.begin(job, overwrite=True)
    encode_missing(ledger, new)
    replace, left = os.replace, [fails]

    def failing(source: str, target: str) -> None:
        if Path(target).parent == tmp_path:
            if not left[0]:
                raise OSError(errno.EIO, "no more")
            left[0] -= 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OutputError):
        ledger.publish(LAYOUT, {"model": "fake"})
    monkeypatch.setattr(os, "replace", replace)
    ledger.release()
    assert (fails == 0) == ((tmp_path / name).read_bytes() == old)
    assert output_target.read_finished_output(output_target.resolve_target(str(tmp_path / name), None)) is None
    again = open_ledger(tmp_path / name, job)
    assert encode_missing(again, new) == 0
    again.publish(LAYOUT, {"model": "fake"})
    done = output_target.read_finished_output(output_target.resolve_target(str(tmp_path / name), None))
    assert done is not None
    assert done.job_manifest["job"] == job
    assert done.job_manifest["rows"] == 9


@pytest.mark.parametrize("at", [0.1, 0.5, 0.97])
def test_damage_found_while_publishing_ends_the_run_and_is_encoded_again(tmp_path: Path, at: float) -> None:
    write_output(tmp_path / "a.parquet")
    ledger = open_ledger(tmp_path / "b.parquet")
    encode_missing(ledger, chunks())
    flip_byte(part_files_of(tmp_path / "b.parquet")[1], at)
    with pytest.raises(OutputError, match="the part file is damaged"):
        ledger.publish(LAYOUT, {"model": "fake"})
    ledger.release()
    assert not (tmp_path / "b.parquet").exists()
    again = open_ledger(tmp_path / "b.parquet")
    assert encode_missing(again, chunks()) == 1
    again.publish(LAYOUT, {"model": "fake"})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_changed_job_is_refused_naming_the_key(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "out.parquet")
    encode_missing(ledger, chunks()[:1])
    ledger.release()
    with pytest.raises(ResumeError, match=r'--prompt \(none, now "query: "\)') as caught:
        open_ledger(tmp_path / "out.parquet", JOB | {"prompt": "query: "})
    assert "--overwrite" in caught.value.hint
    assert "the earlier settings" in caught.value.hint


@pytest.mark.parametrize("change", ["text", "id", "kept", "fewer"])
def test_a_changed_input_is_refused(tmp_path: Path, change: str) -> None:
    import pyarrow as pa

    ledger = open_ledger(tmp_path / "out.parquet")
    encode_missing(ledger, chunks())
    ledger.release()
    first, second = chunks()
    match change:
        case "text":
            first = replace(first, texts=["other", *first.texts[1:]])
        case "id":
            first = replace(first, ids=pa.array(["x", *first.ids.to_pylist()[1:]]))
        case "kept":
            first = replace(first, kept_columns=pa.table({"year": list(range(20))}))
        case _:
            first = chunk(list(first.texts[:-1]), seq=0, last=False)
    with pytest.raises(ResumeError, match=r"in\.jsonl has changed"):
        encode_missing(open_ledger(tmp_path / "out.parquet"), [first, second])


def test_with_update_changed_chunks_are_encoded_again(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "out.parquet")
    encode_missing(ledger, chunks())
    ledger.release()
    first, second = chunks()
    changed = replace(first, texts=["other", *first.texts[1:]])
    assert encode_missing(open_ledger(tmp_path / "out.parquet", allow_changed_input=True), [changed, second]) == 1


def test_a_damaged_manifest_discards_the_part_files(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path / "out.parquet")
    encode_missing(ledger, chunks())
    ledger.release()
    (tmp_path / "out.parquet.parts" / "_manifest.json").write_text("{ torn")
    assert encode_missing(open_ledger(tmp_path / "out.parquet"), chunks()) == 2


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path; import test_checkpoint as t\n"
        "ledger = t.open_ledger(Path(sys.argv[3])); print('locked', flush=True); sys.stdin.read()"
    )
    output = tmp_path / "out.parquet"
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(here), str(here.parent / "support"), str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(OutputError, match="another embedcli is writing"):
            open_ledger(output)
        holder.kill()
    open_ledger(output).release()


def begin_two_jobs(output: Path) -> tuple[checkpoint.Ledger, checkpoint.Ledger]:
    """A running job, and another one that has overwritten its staging folder: possible where locks do not work."""
    first = open_ledger(output)
    other = checkpoint.Ledger(output_target.resolve_target(str(output), None))
    other.begin(JOB | {"model": "other"}, overwrite=True)
    return first, other


def test_a_part_file_of_another_job_is_not_used(tmp_path: Path) -> None:
    first, other = begin_two_jobs(tmp_path / "out.parquet")
    encode_missing(first, chunks())
    encode_missing(other, chunks()[1:])
    first.release()
    again = open_ledger(tmp_path / "out.parquet", JOB | {"model": "other"})
    assert encode_missing(again, chunks()) == 1
    assert again.damaged_parts == []


def test_nothing_is_published_when_another_job_has_taken_over(tmp_path: Path) -> None:
    first, _ = begin_two_jobs(tmp_path / "out.parquet")
    encode_missing(first, chunks())
    with pytest.raises(OutputError, match="another run has taken over this output"):
        first.publish(LAYOUT, {"model": "fake"})
    assert not (tmp_path / "out.parquet").exists()


def test_a_partition_of_another_job_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ledger, every = open_ledger(tmp_path / "out"), chunks()
    partition = Partition(0, (every[0].input_split,))
    ledger.begin_partitions([partition], [partition])
    encode_missing(ledger, every)
    ledger.complete_partition(partition, LAYOUT, {"model": "fake"})
    manifest = tmp_path / "out" / "_parts" / "_manifest.json"
    manifest.write_text(json.dumps(JOB | {"model": "other"}))
    with pytest.raises(OutputError, match="another run has taken over this output"):
        ledger.complete_partition(partition, LAYOUT, {"model": "fake"})
    ledger.release()
    again = open_ledger(tmp_path / "out", JOB | {"model": "other"})
    assert again.load_completed_partitions() == ([], 0)
    assert again.begin_partitions([partition], [partition]) == [partition]
    assert again.damaged_parts == []


@pytest.mark.parametrize("allow_changed_input", [False, True])
def test_a_partition_with_more_splits_than_its_record_is_not_done(tmp_path: Path, allow_changed_input: bool) -> None:
    (tmp_path / "out").mkdir()
    ledger, every = open_ledger(tmp_path / "out"), chunks()
    partition = Partition(0, (every[0].input_split,))
    grown = Partition(0, (every[0].input_split, replace(every[0].input_split, index=1, start=9)))
    ledger.begin_partitions([partition], [partition])
    encode_missing(ledger, every)
    ledger.complete_partition(partition, LAYOUT, {"model": "fake"})
    ledger.release()
    again = open_ledger(tmp_path / "out", allow_changed_input=allow_changed_input)
    if allow_changed_input:
        assert again.begin_partitions([grown], [grown]) == [grown]
        assert again.completed == {}
    else:
        with pytest.raises(ResumeError, match="has changed"):
            again.begin_partitions([grown], [grown])


def test_an_output_without_metadata_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_bytes(b"somebody's data")
    with pytest.raises(ResumeError, match="was not written by embedcli"):
        output_target.read_finished_output(output_target.resolve_target(str(tmp_path / "out.parquet"), None))


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "out.jsonl", "out.arrow", "out/"])
def test_a_finished_output_records_its_job_and_vector_space(tmp_path: Path, name: str) -> None:
    output = str(tmp_path / name.rstrip("/")) + ("/" if name.endswith("/") else "")
    ledger = checkpoint.Ledger(output_target.resolve_target(output, None))
    ledger.acquire()
    ledger.begin(JOB, overwrite=False)
    encode_missing(ledger, chunks())
    ledger.publish(LAYOUT, {"model": "fake"})
    done = output_target.read_finished_output(output_target.resolve_target(output, None))
    assert done is not None
    assert dict(done.vector_space) == {"model": "fake"}
    assert done.job_manifest["job"] == JOB
    assert (done.job_manifest["read"], done.job_manifest["rows"], done.job_manifest["rejects"]) == (28, 27, 1)


def test_npy_is_memory_mappable_and_in_the_order_of_its_ids(tmp_path: Path) -> None:
    write_output(tmp_path / "out.npy")
    write_output(tmp_path / "out.parquet")
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    table = pq.read_table(tmp_path / "out.parquet")
    assert vectors.shape == (27, 8)
    np.testing.assert_array_equal(vectors, np.array(table.column("embedding").to_pylist(), np.float32))
    ids = pq.read_table(tmp_path / "out.ids.parquet")
    assert ids.equals(table.drop_columns(["embedding"]))
