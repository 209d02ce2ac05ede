"""The ledger: parts are whole or not there, damage is noticed, two jobs never mix."""

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
from embedcli.outputs.schema import OutputLayout
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.engine import encode_chunks
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings
from fakes import COLUMNS, FakeEncoder, chunk

JOB = {"model": "fake", "prompt": ""}
LAYOUT = OutputLayout(COLUMNS, 8, "float32")
BAD = Reject("in.jsonl", 99, "bad JSON", None, "{oops")


def chunks() -> list[Chunk]:
    first = chunk([f"row {i}" for i in range(20)], seq=0, last=False)
    return [first, chunk([f"line {i}" for i in range(7)], seq=1, rejects=(BAD,))]


def opened(output: Path, job: dict[str, Any] = JOB, **values: Any) -> checkpoint.Ledger:
    ledger = checkpoint.Ledger(output_target.resolve_target(str(output), None), **values)
    ledger.acquire()
    ledger.begin(job, overwrite=False)
    return ledger


def fill(ledger: checkpoint.Ledger, source: list[Chunk]) -> int:
    """Encode what is missing; how many chunks that were."""
    made = 0
    for encoded in encode_chunks(
        ledger.skip_finished_chunks(iter(source)), FakeEncoder(), EncodingSettings(), MetricsCollector(), RunControl()
    ):
        ledger.add_chunk(encoded, LAYOUT)
        made += 1
    return made


def finish(output: Path) -> None:
    ledger = opened(output)
    fill(ledger, chunks())
    ledger.publish(LAYOUT, {"model": "fake"})


def parts(output: Path) -> list[Path]:
    return sorted(Path(f"{output}.parts").glob("part-*.arrow"))


def test_a_finished_output_leaves_no_other_file(tmp_path: Path) -> None:
    finish(tmp_path / "out.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "out.parquet.rejects.jsonl"]
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column("id").to_pylist() == [f"0-0-{i}" for i in range(20)] + [f"0-1-{i}" for i in range(7)]
    reject = json.loads((tmp_path / "out.parquet.rejects.jsonl").read_text())
    assert reject == {"source": "in.jsonl", "line": 99, "id": None, "reason": "bad JSON", "raw": "{oops"}


def test_resume_keeps_sound_parts_and_gives_the_same_bytes(tmp_path: Path) -> None:
    finish(tmp_path / "a.parquet")
    ledger = opened(tmp_path / "b.parquet")
    assert fill(ledger, chunks()[:1]) == 1
    ledger.release()
    again = opened(tmp_path / "b.parquet")
    assert fill(again, chunks()) == 1
    again.publish(LAYOUT, {"model": "fake"})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["flip early", "flip late", "truncate", "empty", "rejects", "no rejects"])
def test_damage_is_noticed_and_made_again(tmp_path: Path, damage: str) -> None:
    finish(tmp_path / "a.parquet")
    ledger = opened(tmp_path / "b.parquet")
    fill(ledger, chunks())
    ledger.release()
    victim = parts(tmp_path / "b.parquet")[1]
    rejects = next(victim.parent.glob("rejects-*"))
    match damage:
        case "flip early":
            flip(victim, 0.1)
        case "flip late":
            flip(victim, 0.97)
        case "truncate":
            victim.write_bytes(victim.read_bytes()[:-5])
        case "empty":
            victim.write_bytes(b"")
        case "rejects":
            flip(rejects, 0.5)
        case _:
            rejects.unlink()
    again = opened(tmp_path / "b.parquet")
    assert fill(again, chunks()) == 1
    assert again.damaged_parts == [str(victim)]
    again.publish(LAYOUT, {"model": "fake"})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize("fails", [0, 1])
@pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
def test_vectors_never_lie_beside_the_record_of_others(
    name: str, fails: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An output in two files that is made anew from other rows, and dies as one of them appears."""
    finish(tmp_path / name)
    old = (tmp_path / name).read_bytes()
    new = [chunk([f"other {i}" for i in range(9)])]
    job = JOB | {"prompt": "query: "}
    ledger = checkpoint.Ledger(output_target.resolve_target(str(tmp_path / name), None))
    ledger.acquire()
    ledger.begin(job, overwrite=True)
    fill(ledger, new)
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
    again = opened(tmp_path / name, job)
    assert fill(again, new) == 0
    again.publish(LAYOUT, {"model": "fake"})
    done = output_target.read_finished_output(output_target.resolve_target(str(tmp_path / name), None))
    assert done is not None
    assert done.job_manifest["job"] == job
    assert done.job_manifest["rows"] == 9


@pytest.mark.parametrize("at", [0.1, 0.5, 0.97])
def test_damage_before_the_merge_ends_the_run_and_is_made_again(tmp_path: Path, at: float) -> None:
    finish(tmp_path / "a.parquet")
    ledger = opened(tmp_path / "b.parquet")
    fill(ledger, chunks())
    flip(parts(tmp_path / "b.parquet")[1], at)
    with pytest.raises(OutputError, match="the part file is damaged"):
        ledger.publish(LAYOUT, {"model": "fake"})
    ledger.release()
    assert not (tmp_path / "b.parquet").exists()
    again = opened(tmp_path / "b.parquet")
    assert fill(again, chunks()) == 1
    again.publish(LAYOUT, {"model": "fake"})
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_changed_job_is_refused_naming_the_key(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "out.parquet")
    fill(ledger, chunks()[:1])
    ledger.release()
    with pytest.raises(ResumeError, match='prompt was "", now "query: "') as caught:
        opened(tmp_path / "out.parquet", JOB | {"prompt": "query: "})
    assert "--overwrite" in caught.value.hint
    assert "--update" in caught.value.hint


@pytest.mark.parametrize("change", ["text", "id", "kept", "fewer"])
def test_a_changed_input_is_refused(tmp_path: Path, change: str) -> None:
    import pyarrow as pa

    ledger = opened(tmp_path / "out.parquet")
    fill(ledger, chunks())
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
        fill(opened(tmp_path / "out.parquet"), [first, second])


def test_with_update_changed_chunks_are_made_again(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "out.parquet")
    fill(ledger, chunks())
    ledger.release()
    first, second = chunks()
    changed = replace(first, texts=["other", *first.texts[1:]])
    assert fill(opened(tmp_path / "out.parquet", allow_changed_input=True), [changed, second]) == 1


def test_a_damaged_manifest_forgets_the_parts(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "out.parquet")
    fill(ledger, chunks())
    ledger.release()
    (tmp_path / "out.parquet.parts" / "_manifest.json").write_text("{ torn")
    assert fill(opened(tmp_path / "out.parquet"), chunks()) == 2


def test_the_second_process_is_refused_and_a_dead_one_keeps_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path; import test_checkpoint as t\n"
        "held = t.opened(Path(sys.argv[3])); print('held', flush=True); sys.stdin.read()"
    )
    output = tmp_path / "out.parquet"
    here = Path(__file__).parent
    command = [sys.executable, "-c", code, str(here), str(here.parent / "support"), str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="another embedcli is writing"):
            opened(output)
        holder.kill()
    opened(output).release()


def taken_over(output: Path) -> tuple[checkpoint.Ledger, checkpoint.Ledger]:
    """A run at work, and one of another job that has begun anew in its stage: as where there are no locks."""
    first = opened(output)
    other = checkpoint.Ledger(output_target.resolve_target(str(output), None))
    other.begin(JOB | {"model": "other"}, overwrite=True)
    return first, other


def test_a_part_of_another_job_is_not_used(tmp_path: Path) -> None:
    first, other = taken_over(tmp_path / "out.parquet")
    fill(first, chunks())
    fill(other, chunks()[1:])
    first.release()
    again = opened(tmp_path / "out.parquet", JOB | {"model": "other"})
    assert fill(again, chunks()) == 1
    assert again.damaged_parts == []


def test_who_finds_another_job_in_its_stage_publishes_nothing(tmp_path: Path) -> None:
    first, _ = taken_over(tmp_path / "out.parquet")
    fill(first, chunks())
    with pytest.raises(OutputError, match="another run has taken over this output"):
        first.publish(LAYOUT, {"model": "fake"})
    assert not (tmp_path / "out.parquet").exists()


def test_a_share_of_another_job_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ledger, every = opened(tmp_path / "out"), chunks()
    share = Partition(0, (every[0].input_split,))
    ledger.begin_partitions([share], [share])
    fill(ledger, every)
    ledger.complete_partition(share, LAYOUT, {"model": "fake"})
    manifest = tmp_path / "out" / "_parts" / "_manifest.json"
    manifest.write_text(json.dumps(JOB | {"model": "other"}))
    with pytest.raises(OutputError, match="another run has taken over this output"):
        ledger.complete_partition(share, LAYOUT, {"model": "fake"})
    ledger.release()
    again = opened(tmp_path / "out", JOB | {"model": "other"})
    assert again.load_completed_partitions() == ([], 0)
    assert again.begin_partitions([share], [share]) == [share]
    assert again.damaged_parts == []


@pytest.mark.parametrize("allow_changed_input", [False, True])
def test_a_share_that_has_more_pieces_than_its_record_is_not_done(tmp_path: Path, allow_changed_input: bool) -> None:
    (tmp_path / "out").mkdir()
    ledger, every = opened(tmp_path / "out"), chunks()
    share = Partition(0, (every[0].input_split,))
    grown = Partition(0, (every[0].input_split, replace(every[0].input_split, index=1, start=9)))
    ledger.begin_partitions([share], [share])
    fill(ledger, every)
    ledger.complete_partition(share, LAYOUT, {"model": "fake"})
    ledger.release()
    again = opened(tmp_path / "out", allow_changed_input=allow_changed_input)
    if allow_changed_input:
        assert again.begin_partitions([grown], [grown]) == [grown]
        assert again.completed == {}
    else:
        with pytest.raises(ResumeError, match="has changed"):
            again.begin_partitions([grown], [grown])


def test_an_output_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_bytes(b"somebody's data")
    with pytest.raises(ResumeError, match="was not written by embedcli"):
        output_target.read_finished_output(output_target.resolve_target(str(tmp_path / "out.parquet"), None))


@pytest.mark.parametrize("name", ["out.parquet", "out.npy", "out.jsonl", "out.arrow", "out/"])
def test_a_finished_output_says_what_made_it(tmp_path: Path, name: str) -> None:
    output = str(tmp_path / name.rstrip("/")) + ("/" if name.endswith("/") else "")
    ledger = checkpoint.Ledger(output_target.resolve_target(output, None))
    ledger.acquire()
    ledger.begin(JOB, overwrite=False)
    fill(ledger, chunks())
    ledger.publish(LAYOUT, {"model": "fake"})
    done = output_target.read_finished_output(output_target.resolve_target(output, None))
    assert done is not None
    assert dict(done.vector_space) == {"model": "fake"}
    assert done.job_manifest["job"] == JOB
    assert (done.job_manifest["read"], done.job_manifest["rows"], done.job_manifest["rejects"]) == (28, 27, 1)


def test_npy_is_memory_mappable_and_in_step_with_its_ids(tmp_path: Path) -> None:
    finish(tmp_path / "out.npy")
    finish(tmp_path / "out.parquet")
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    table = pq.read_table(tmp_path / "out.parquet")
    assert vectors.shape == (27, 8)
    np.testing.assert_array_equal(vectors, np.array(table.column("embedding").to_pylist(), np.float32))
    ids = pq.read_table(tmp_path / "out.ids.parquet")
    assert ids.equals(table.drop_columns(["embedding"]))
