"""One law for all runners: the same rows, vectors and files, whoever did them, however often they were killed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs
import models
from embedcli import checkpoint, readers, runners
from embedcli.checkpoint import partitions
from embedcli.core import types as core_types
from embedcli.core.errors import EmbedcliError, OutputError, OutputLocked, UsageError
from embedcli.core.job import Job
from embedcli.core.types import InputSplit, Partition
from embedcli.outputs import target as output_target
from embedcli.outputs.schema import OutputLayout
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.readers import preview
from embedcli.runners import multiprocess, vector_space, worker
from embedcli.runners.partitioning import select_shard

BIG = 3000
SMALL = ("--part-size", "4000")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of three formats, with bad rows, and the model."""
    folder = tmp_path_factory.mktemp("runners")
    jobs.mixed_inputs(folder)
    jobs.write_jsonl(folder / "big.jsonl", jobs.rows(BIG))
    return folder


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSONL in pieces of 2 kB and Parquet in pieces of 40 rows, so that there is something to share out."""
    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", 2000)
    monkeypatch.setattr("embedcli.readers.parquet.MAX_SPLIT_ROWS", 40)


def encode(home: Path, output: str, *more: object) -> jobs.Ended:
    asked = ("--model", home / "words.txt", "--chunk-rows", 16, "--text-column", "text")
    return jobs.run("encode", *jobs.mixed_paths(home), output, *asked, *more)


def held(output: str) -> dict[str, bytes]:
    """Every file of an output by its name, as bytes."""
    path = Path(output)
    files = path.iterdir() if output.endswith("/") else path.parent.iterdir()
    return {file.name: file.read_bytes() for file in files}


Runner = Callable[..., jobs.Ended]


def locally(home: Path, output: str, *more: object) -> jobs.Ended:
    return encode(home, output, *more)


def by_processes(home: Path, output: str, *more: object) -> jobs.Ended:
    return encode(home, output, "--workers", 3, *more)


def by_shards(home: Path, output: str, *more: object) -> jobs.Ended:
    ended = [encode(home, output, "--shard", f"{k}/5", *more) for k in (4, 1, 5, 2, 3)]
    assert {one.code for one in ended} <= {0, 3}
    assert "partitions are missing" in ended[3].err
    return ended[-1]


def by_shards_of_workers(home: Path, output: str, *more: object) -> jobs.Ended:
    """Two shards, one of them with processes."""
    encode(home, output, "--shard", "2/2", "--workers", 2, *more)
    return encode(home, output, "--shard", "1/2", *more)


@pytest.fixture(scope="module")
def local(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, bytes]]:
    """What a local run makes of an output of this name, with ids of this kind. Each is made once."""
    made: dict[tuple[str, str], dict[str, bytes]] = {}

    def of(name: str, ids: str) -> dict[str, bytes]:
        if (name, ids) not in made:
            output = f"{tmp_path_factory.mktemp('local')}/{name}"
            ended = locally(home, output, *SMALL)
            assert ended.code == 3, ended.err
            made[name, ids] = held(output)
        return made[name, ids]

    return of


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["out.parquet", "out/"])
@pytest.mark.parametrize(
    ("runner", "ids"),
    [(by_processes, "id"), (by_processes, "generated"), (by_shards, "generated"), (by_shards_of_workers, "id")],
)
def test_the_output_is_the_same_to_the_byte(
    home: Path, tmp_path: Path, runner: Runner, ids: str, name: str, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ids == "generated":
        monkeypatch.setattr("embedcli.readers.columns.ID_COLUMN_NAMES", ())
    wanted = local(name, ids)
    ended = runner(home, f"{tmp_path}/{name}", *SMALL)
    assert ended.code == 3, ended.err
    made = held(f"{tmp_path}/{name}")
    assert made.keys() == wanted.keys()
    assert [key for key in made if made[key] != wanted[key]] == []
    assert len(made) > 5 or name != "out/"


# Shares


def pieces(rows: list[int]) -> core_types.InputPlan:
    made = tuple(InputSplit(i, f"f{i}", 0, count, "rows") for i, count in enumerate(rows))
    return core_types.InputPlan(
        made, core_types.InputColumns("t", None, None, pa.int64(), {}), {}, None, sum(rows), rows
    )


@pytest.mark.parametrize("seed", range(20))
def test_shares_hold_every_piece_once_in_order(seed: int) -> None:
    chance = random.Random(seed)
    plan = pieces([chance.randint(0, 50) for _ in range(chance.randint(1, 60))])
    wanted = chance.randint(1, 200)
    made = readers.group_into_partitions(plan, wanted)
    assert [piece for share in made for piece in share.splits] == list(plan.splits)
    assert [share.index for share in made] == list(range(len(made)))
    for share in made:
        assert len(share.splits) == 1 or sum(plan.rows_per_split[p.index] for p in share.splits) <= wanted


@pytest.mark.parametrize("of", [1, 2, 3, 16, 50])
def test_shards_are_disjoint_and_complete(of: int) -> None:
    shares = [Partition(i, ()) for i in range(40)]
    mine = [select_shard(shares, (k, of)) for k in range(1, of + 1)]
    assert sorted(share.index for some in mine for share in some) == list(range(40))
    assert max(map(len, mine)) - min(map(len, mine)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3", "1/0", ""])
def test_a_shard_that_is_none(home: Path, tmp_path: Path, text: str) -> None:
    ended = encode(home, f"{tmp_path}/out/", "--shard", text)
    assert ended.code == 2
    assert "--shard 3/16" in ended.err


@pytest.mark.parametrize("text", ["", "0", "x", "-3", "12 parsecs"])
def test_a_size_that_is_none(home: Path, tmp_path: Path, text: str) -> None:
    assert encode(home, f"{tmp_path}/out/", "--part-size", text).code == 2


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--shard", "1/2", "--overwrite"], "--overwrite"),
        (["--shard", "1/2", "--update"], "--update"),
        (["--workers", 2, "--limit", 5], "--max-seconds"),
        (["--workers", 2, "--reuse", "x.parquet"], "--reuse"),
    ],
)
def test_flags_that_do_not_go_together(home: Path, tmp_path: Path, flags: list[object], word: str) -> None:
    ended = encode(home, f"{tmp_path}/out/", *flags)
    assert ended.code == 2
    assert word in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ends", [["-", "out.parquet"], ["in.jsonl", "-"]])
def test_streams_have_one_reader(tmp_path: Path, ends: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3))
    ended = jobs.run("encode", *ends, "--model", jobs.word_model(tmp_path), "--workers", 2)
    assert ended.code == 2
    assert "an output of -" in ended.err or "an input of -" in ended.err


# Merging


@pytest.mark.usefixtures("small_pieces")
def test_merge_names_what_is_missing(home: Path, tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    nothing = jobs.run("merge", output)
    assert nothing.code == 2
    encode(home, output, "--shard", "1/3", *SMALL)
    early = jobs.run("merge", output)
    assert early.code == 1
    assert "partitions are missing" in early.err
    assert not Path(output, "_manifest.json").exists()
    encode(home, output, "--shard", "3/3", *SMALL)
    encode(home, output, "--shard", "2/3", *SMALL)
    again = jobs.run("merge", output)
    assert again.code == 3
    assert "nothing to do" in again.err


@pytest.mark.usefixtures("small_pieces")
def test_merge_does_what_the_last_shard_could_not(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, output = f"{tmp_path}/whole.parquet", f"{tmp_path}/out.parquet"
    encode(home, whole)
    with monkeypatch.context() as patch:
        patch.setattr(
            "embedcli.runners.merge.merge_shards", lambda *_: (_ for _ in ()).throw(OutputError("no space left"))
        )
        assert [encode(home, output, "--shard", f"{k}/2").code for k in (1, 2)] == [3, 1]
    assert not Path(output).exists()
    merged = jobs.run("merge", output)
    assert merged.code == 3, merged.err
    assert Path(output).read_bytes() == Path(whole).read_bytes()
    assert Path(output + ".rejects.jsonl").read_bytes() == Path(whole + ".rejects.jsonl").read_bytes()
    assert not Path(output + ".parts").exists()


@pytest.mark.usefixtures("small_pieces")
def test_merge_applies_the_share_of_rejects(home: Path, tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    ended = [encode(home, output, "--shard", f"{k}/2", "--max-rejects", "0.1%", *SMALL) for k in (1, 2)]
    assert [one.code for one in ended] == [3, 1]
    assert "--max-rejects" in ended[1].err
    assert jobs.run("merge", output).code == 3


@pytest.mark.usefixtures("small_pieces")
def test_a_shard_without_work_says_why(home: Path, tmp_path: Path) -> None:
    idle = encode(home, f"{tmp_path}/out/", "--shard", "2/2")
    assert idle.code == 0
    assert "a smaller --part-size" in idle.err


@pytest.mark.usefixtures("small_pieces")
def test_shards_of_other_jobs_are_refused(home: Path, tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    encode(home, output, "--shard", "1/2", *SMALL)
    other = encode(home, output, "--shard", "2/2", "--max-seq-length", 3, *SMALL)
    assert other.code == 2
    assert "max_seq_length" in other.err


# Shards and whole runs keep each other off


def locked(output: str, lock: str) -> checkpoint.Ledger:
    """An output as another process holds it that is at work."""
    ledger = checkpoint.Ledger(output_target.resolve_target(output, None), lock=lock)
    ledger.acquire()
    return ledger


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("name", ["out.parquet", "out/"])
def test_while_a_shard_is_at_work_only_shards_begin(home: Path, tmp_path: Path, name: str) -> None:
    output = f"{tmp_path}/{name}"
    shard = locked(output, "_lock-1-of-2")
    for refused in (
        encode(home, output, *SMALL),
        encode(home, output, "--overwrite", "--limit", 100, *SMALL),
        encode(home, output, "--workers", 2, *SMALL),
        encode(home, output, "--shard", "1/2", *SMALL),
    ):
        assert refused.code == 1
        assert f"another embedcli is writing {output}" in refused.err
    with pytest.raises(OutputLocked):
        locked(output, checkpoint.LOCK_FILE)
    beside = encode(home, output, "--shard", "2/2", *SMALL)
    assert beside.code in (0, 3), beside.err
    refused = jobs.run("merge", output)
    assert (refused.code, "another embedcli is writing" in refused.err) == (1, True)
    shard.release()
    assert encode(home, output, *SMALL).code == 3


@pytest.mark.usefixtures("small_pieces")
def test_the_last_of_two_shards_that_end_together_merges(home: Path, tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    encode(home, output, "--shard", "1/2", *SMALL)
    other = locked(output, "_lock-1-of-2")
    early = encode(home, output, "--shard", "2/2", *SMALL)
    assert (early.code in (0, 3), "another shard is still running" in early.err) == (True, True)
    other.release()
    assert encode(home, output, "--shard", "1/2", *SMALL).code == 3
    assert Path(output, "_manifest.json").exists()


def test_while_a_whole_run_is_at_work_no_shard_begins(home: Path, tmp_path: Path) -> None:
    whole = locked(f"{tmp_path}/out/", checkpoint.LOCK_FILE)
    refused = encode(home, f"{tmp_path}/out/", "--shard", "1/2", *SMALL)
    assert (refused.code, "another embedcli is writing" in refused.err) == (1, True)
    whole.release()
    assert encode(home, f"{tmp_path}/out/", "--shard", "1/1", *SMALL).code == 3


# Damage and change after a kill


def begin(home: Path, output: str) -> None:
    """All shares sealed, nothing published: as a kill before publishing leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Ledger, "publish", lambda *_: (_ for _ in ()).throw(OutputError("killed")))
        assert encode(home, output, *SMALL).code == 1


@pytest.fixture
def begun(small_pieces: None, home: Path, tmp_path: Path) -> str:
    """A folder output as `begin` leaves it."""
    if not (home / "begun").exists():
        begin(home, f"{home}/begun/")
    shutil.copytree(home / "begun", tmp_path / "out")
    return f"{tmp_path}/out/"


@pytest.mark.parametrize("what", ["part", "share", "rejects"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damage_to_what_is_sealed_is_noticed(home: Path, begun: str, local: Any, what: str, damage: str) -> None:
    victim = min(Path(begun, "_parts").glob(what + "-*"))
    data = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data[:-9] if damage == "cut" else data[:50] + bytes([data[50] ^ 1]) + data[51:])
    ended = encode(home, begun, *(["--workers", 2] if damage == "flip" else []), *SMALL)
    assert ended.code == 3, ended.err
    assert held(begun) == local("out/", "id")
    assert ("damaged" in ended.err) == (what != "share" or damage != "gone")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_sealed_is_not_read_again_while_its_input_looks_the_same(
    home: Path, begun: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcli.readers.read_chunks", lambda *_, **__: pytest.fail("was read"))
    monkeypatch.setattr("embedcli.encoders.load_encoder", lambda *_, **__: pytest.fail("was loaded"))
    ended = encode(home, begun, "--workers", workers, *SMALL)
    assert ended.code == 3, ended.err


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_changed_input_of_a_sealed_share_is_refused(home: Path, tmp_path: Path, workers: int) -> None:
    moved = tmp_path / "in"
    moved.mkdir()
    for name in ("in.a.jsonl", "in.b.csv", "in.c.parquet", "words.txt"):
        (moved / name).write_bytes((home / name).read_bytes())
    begin(moved, f"{tmp_path}/out/")
    text = (moved / "in.b.csv").read_text()
    (moved / "in.b.csv").write_text(text.replace("word1", "word2", 1))
    changed = encode(moved, f"{tmp_path}/out/", "--workers", workers, "--part-size", "4000")
    assert changed.code == 2
    assert "in.b.csv has changed" in changed.err
    (moved / "in.b.csv").write_text(text)
    assert encode(moved, f"{tmp_path}/out/", "--workers", workers, "--part-size", "4000").code == 3


# Kills


def big(home: Path, output: str, *more: object) -> list[str]:
    flags = ("--model", home / "words.txt", "--chunk-rows", 16, "--part-size", "20kB", *more)
    return jobs.command("encode", home / "big.jsonl", output, *flags)


# Pieces of 8 kB in the child, too: it has no monkeypatch.
CUT = "from embedcli.readers import preview; preview.JSONL_SPLIT_BYTES = 8000; from embedcli.cli import main; main()"


def cut(command: list[str]) -> list[str]:
    return [command[0], "-c", CUT, *command[3:]]


def children(pid: int) -> list[int]:
    """The worker processes of a run: its children that are Python."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return [pid for pid in found if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def finish(home: Path, output: str, *more: object) -> jobs.Ended:
    """The same run in this process, to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "JSONL_SPLIT_BYTES", 8000)
        return jobs.run(*big(home, output, *more)[3:])


@pytest.fixture(scope="module")
def whole(home: Path) -> dict[str, bytes]:
    assert finish(home, f"{home}/whole/").code == 0
    return held(f"{home}/whole/")


def staged(output: str) -> int:
    return len(list(Path(output, "_parts").glob("part-*"))) + len(list(Path(output, "_parts").glob("share-*")))


def kept(output: str) -> set[str]:
    """The chunks that are done: parts of their own, or, once their share is sealed, in its record."""
    stage = f"{output}_parts"
    records, _ = partitions.read_records(stage)
    sealed = {Path(part.path).name for record in records.values() for part in record.parts}
    return sealed | {path.name for path in Path(stage).glob("part-*")}


@pytest.mark.parametrize(
    ("share", "again"), [(3, ["--workers", 2]), (9, []), (6, ["--shard", "1/1"])], ids=["processes", "local", "shard"]
)
def test_a_killed_run_leaves_no_process_and_goes_on_under_any_runner(
    home: Path, tmp_path: Path, whole: dict[str, bytes], share: int, again: list[object]
) -> None:
    output = f"{tmp_path}/out/"
    process = subprocess.Popen(cut(big(home, output, "--workers", 2)), stderr=subprocess.DEVNULL)
    jobs.wait_for(lambda: staged(output) >= share, process)
    workers = children(process.pid)
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until, "workers outlive their parent"
        time.sleep(0.02)
    done = finish(home, output, *again)
    assert done.code == 0, done.err
    assert held(output) == whole


def test_a_worker_that_is_killed_is_replaced(home: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    output = f"{tmp_path}/out/"
    process = subprocess.Popen(cut(big(home, output, "--workers", 2)), stderr=subprocess.PIPE, text=True)
    jobs.wait_for(lambda: staged(output) >= 5, process)  # type: ignore[arg-type]
    os.kill(children(process.pid)[0], signal.SIGKILL)
    told = process.communicate()[1]
    assert process.returncode == 0, told
    assert "died (signal SIGKILL)" in told
    assert held(output) == whole


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_stop_all_workers_and_keep_what_is_done(
    home: Path, tmp_path: Path, whole: dict[str, bytes], number: int, code: int
) -> None:
    output = f"{tmp_path}/out/"
    process = subprocess.Popen(cut(big(home, output, "--workers", 2)), stderr=subprocess.PIPE, text=True)
    jobs.wait_for(lambda: staged(output) >= 5, process)  # type: ignore[arg-type]
    process.send_signal(number)
    told = process.communicate()[1]
    assert process.returncode == code, told
    assert len(kept(output)) >= 5
    assert finish(home, output).code == 0
    assert held(output) == whole


@pytest.mark.usefixtures("small_pieces")
def test_max_seconds_stops_workers(home: Path, tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    early = encode(home, output, "--workers", 2, "--max-seconds", 0.001, "--part-size", "4000")
    assert early.code == 75, early.err
    assert encode(home, output, "--part-size", "4000").code == 3


# Workers that fail


class Faulty:
    """Loads the word vectors, and fails at a text of its own the first `times` times, over all processes."""

    def __init__(self, note: Path, times: int, error: BaseException) -> None:
        self.note, self.times, self.error = note, times, error

    def __call__(self, job: Job, notify: Any) -> Any:
        from embedcli import encoders

        encoder = encoders.load_encoder(job)
        tokenize = encoder.tokenize

        def faulty(texts: Any) -> Any:
            if len(self.note.read_bytes()) < self.times:
                with self.note.open("ab") as out:
                    out.write(b"x")
                raise self.error
            return tokenize(texts)

        encoder.tokenize = faulty  # type: ignore[method-assign]
        return encoder


def faulty_run(home: Path, tmp_path: Path, times: int, error: BaseException) -> tuple[core_types.RunResult, list[str]]:
    (tmp_path / "note").write_bytes(b"")
    files = (str(home / "in.c.parquet"),)
    job = Job(files, f"{tmp_path}/out.parquet", model=f"{home}/words.txt", workers=2, chunk_rows=16)
    watch = jobs.Silent()
    outcome = runners.execute_job(job, watch, RunControl(), MetricsCollector(), Faulty(tmp_path / "note", times, error))
    return outcome, watch.lines


@pytest.mark.usefixtures("small_pieces")
def test_an_unexpected_error_costs_one_more_try(home: Path, tmp_path: Path) -> None:
    outcome, lines = faulty_run(home, tmp_path, 1, ZeroDivisionError("odd"))
    assert outcome.exit_code == 0
    assert any(re.fullmatch(r"odd; partition \d+ is encoded by another worker", line) for line in lines)


@pytest.mark.usefixtures("small_pieces")
def test_an_error_that_stays_is_raised_with_the_workers_traceback(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="odd") as caught:
        faulty_run(home, tmp_path, 99, ZeroDivisionError("odd"))
    assert isinstance(caught.value.__cause__, multiprocess.WorkerTracebackError)
    assert "in faulty" in str(caught.value.__cause__)


@pytest.mark.usefixtures("small_pieces")
def test_a_sentence_for_the_user_ends_the_run_at_once(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such thing") as caught:
        faulty_run(home, tmp_path, 99, UsageError("no such thing", "try another"))
    assert caught.value.hint == "try another"
    assert len((tmp_path / "note").read_bytes()) <= 2


class Imported:
    """Loads the word vectors, and fails with the names of the libraries that its process has imported by then."""

    def __call__(self, job: Job, notify: Any) -> Any:
        from embedcli import encoders

        encoder = encoders.load_encoder(job)

        def told(texts: Any) -> Any:
            raise UsageError(" ".join({"pandas", "torch", "scipy", "openvino", "numpy"} & set(sys.modules)), "")

        encoder.tokenize = told  # type: ignore[method-assign]
        return encoder


@pytest.mark.usefixtures("small_pieces")
def test_a_worker_imports_no_library_it_does_not_need(home: Path, tmp_path: Path) -> None:
    job = Job((str(home / "in.c.parquet"),), f"{tmp_path}/out.parquet", model=f"{home}/words.txt", workers=2)
    with pytest.raises(UsageError) as caught:
        runners.execute_job(job, jobs.Silent(), RunControl(), MetricsCollector(), Imported())
    assert caught.value.message == "numpy"


def test_a_worker_of_another_version_is_refused(home: Path) -> None:
    columns = core_types.InputColumns("text", None, None, pa.int64(), {})
    setup = worker.WorkerSetup(
        Job((), "x.parquet"), core_types.InputPlan((), columns, {}, None, None), {}, "", version="9.9"
    )
    with pytest.raises(EmbedcliError, match=r"9\.9"):
        worker.PartitionWorker(setup, jobs.Silent(), RunControl())


def test_a_worker_that_cannot_see_the_output_says_so(tmp_path: Path) -> None:
    (tmp_path / "out" / "_parts").mkdir(parents=True)
    ledger = checkpoint.Ledger(output_target.resolve_target(f"{tmp_path}/out/", None))
    with pytest.raises(OutputError, match="cannot be seen from this machine") as caught:
        ledger.join({"model": "x"})
    assert "share" in caught.value.hint


def test_workers_have_their_devices_in_turn() -> None:
    assert worker.assign_devices(Job((), "", device="cuda:0, cuda:1")) == ["cuda:0", "cuda:1"]
    assert worker.assign_devices(Job((), "", device="cuda:0,cuda:1", workers=5))[2:] == ["cuda:0", "cuda:1", "cuda:0"]
    assert worker.assign_devices(Job((), "", workers=2)) == ["auto", "auto"]
    assert multiprocess.worker_job(Job((), "", threads=3), "cpu", 2).threads == 3


@pytest.mark.usefixtures("small_pieces")
def test_the_report_covers_all_workers(home: Path, tmp_path: Path) -> None:
    encode(home, f"{tmp_path}/out.parquet", "--workers", 2, "--report", tmp_path / "run.json")
    made = json.loads((tmp_path / "run.json").read_text())
    assert (made["rows"]["rows"], made["rows"]["this_run"], made["rows"]["rejects"]) == (900, 900, 3)
    assert made["counters"]["fed_tokens"] == made["rows"]["tokens"]
    busy = made["timeline"]["busy"]
    for name in ("read", "tokenize", "forward"):  # the parent writes too, and counts for itself
        assert made["stage_seconds"][name] > 0
        assert sum(busy[name]) * made["timeline"]["seconds"] * 2 == pytest.approx(made["stage_seconds"][name], rel=0.5)


@pytest.mark.usefixtures("small_pieces")
def test_stored_precision_has_one_set_of_ranges(home: Path, tmp_path: Path) -> None:
    made = []
    for runner in (locally, by_processes, by_shards):
        output = f"{tmp_path}/{runner.__name__}.parquet"
        assert runner(home, output, "--precision", "int8").code == 3
        made.append(pq.read_table(output).column("embedding"))
    assert made[0] == made[1] == made[2]


def test_a_layout_survives_its_note(tmp_path: Path) -> None:
    columns = core_types.InputColumns(
        "t", None, "id", pa.string(), {"a": pa.int64(), "b": pa.string()}, has_source_column=True
    )
    layout = OutputLayout(columns, 8, "binary", True)
    space = {"dim": 8, "precision": "binary"}
    vector_space.write_vector_space(str(tmp_path), layout, space)
    restored, restored_space = vector_space.read_vector_space(str(tmp_path))
    assert restored.schema() == layout.schema()
    assert (restored.bytes_per_row, restored_space) == (layout.bytes_per_row, space)
    with pytest.raises(OutputError, match="precision"):
        vector_space.write_vector_space(str(tmp_path), layout, {"dim": 8, "precision": "int8"})


def test_a_folder_output_goes_on_with_another_engine(tmp_path: Path) -> None:
    source, command = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(60)), ("-m", models.folder("m3e-base"))
    flags = ("--chunk-rows", 20, "--engine")
    assert jobs.run("encode", source, f"{tmp_path}/out/", *command, "--limit", 20, *flags, "openvino").code == 75
    done = jobs.run("encode", source, f"{tmp_path}/out/", *command, *flags, "torch")
    assert done.code == 0, done.err
    assert jobs.run("verify", f"{tmp_path}/out/", source, "--all").code == 0
