"""Every runner gives the same rows, vectors and files, however often it is killed."""

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
from embedcli.outputs.schema import OutputLayout, VectorField
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
def small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSONL splits of 2 kB and Parquet splits of 40 rows, so that there are several partitions."""
    monkeypatch.setattr(preview, "JSONL_SPLIT_BYTES", 2000)
    monkeypatch.setattr("embedcli.readers.record_batches.MAX_SPLIT_ROWS", 40)


def encode(home: Path, output: str, *more: object) -> jobs.Ended:
    asked = ("--model", home / "words.txt", "--chunk-rows", 16, "--text-column", "text")
    return jobs.run("encode", *jobs.mixed_paths(home), output, *asked, *more)


def read_output(output: str) -> dict[str, bytes]:
    """Read every file of an output, by its name."""
    path = Path(output)
    files = path.iterdir() if output.endswith("/") else path.parent.iterdir()
    return {file.name: file.read_bytes() for file in files}


Runner = Callable[..., jobs.Ended]


def encode_locally(home: Path, output: str, *more: object) -> jobs.Ended:
    return encode(home, output, *more)


def encode_by_processes(home: Path, output: str, *more: object) -> jobs.Ended:
    return encode(home, output, "--workers", 3, *more)


def encode_by_shards(home: Path, output: str, *more: object) -> jobs.Ended:
    ended = [encode(home, output, "--shard", f"{k}/5", *more) for k in (4, 1, 5, 2, 3)]
    assert {one.code for one in ended} <= {0, 3}
    assert "partitions are missing" in ended[3].err
    return ended[-1]


def encode_by_shards_with_workers(home: Path, output: str, *more: object) -> jobs.Ended:
    """Encode two shards, one of them with two processes."""
    encode(home, output, "--shard", "2/2", "--workers", 2, *more)
    return encode(home, output, "--shard", "1/2", *more)


@pytest.fixture(scope="module")
def local_output(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, bytes]]:
    """Return the files of a local run by output name and kind of ids; each is encoded once."""
    outputs: dict[tuple[str, str], dict[str, bytes]] = {}

    def of(name: str, ids: str) -> dict[str, bytes]:
        if (name, ids) not in outputs:
            output = f"{tmp_path_factory.mktemp('local')}/{name}"
            ended = encode_locally(home, output, *SMALL)
            assert ended.code == 3, ended.err
            outputs[name, ids] = read_output(output)
        return outputs[name, ids]

    return of


@pytest.mark.usefixtures("small_splits")
@pytest.mark.parametrize("name", ["out.parquet", "out/"])
@pytest.mark.parametrize(
    ("runner", "ids"),
    [
        (encode_by_processes, "id"),
        (encode_by_processes, "generated"),
        (encode_by_shards, "generated"),
        (encode_by_shards_with_workers, "id"),
    ],
)
def test_the_output_is_the_same_to_the_byte(
    home: Path, tmp_path: Path, runner: Runner, ids: str, name: str, local_output: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ids == "generated":
        monkeypatch.setattr("embedcli.readers.columns.ID_COLUMN_NAMES", ())
    wanted = local_output(name, ids)
    ended = runner(home, f"{tmp_path}/{name}", *SMALL)
    assert ended.code == 3, ended.err
    files = read_output(f"{tmp_path}/{name}")
    assert files.keys() == wanted.keys()
    assert [key for key in files if files[key] != wanted[key]] == []
    assert len(files) > 5 or name != "out/"


# Partitions


def plan_with_rows(rows: list[int]) -> core_types.InputPlan:
    splits = tuple(InputSplit(i, f"f{i}", 0, count, "rows") for i, count in enumerate(rows))
    return core_types.InputPlan(
        splits, core_types.InputColumns("t", None, None, pa.int64(), {}), {}, None, sum(rows), rows
    )


@pytest.mark.parametrize("seed", range(20))
def test_partitions_hold_every_split_once_in_order(seed: int) -> None:
    generator = random.Random(seed)
    plan = plan_with_rows([generator.randint(0, 50) for _ in range(generator.randint(1, 60))])
    wanted = generator.randint(1, 200)
    grouped = readers.group_into_partitions(plan, wanted)
    assert [split for partition in grouped for split in partition.splits] == list(plan.splits)
    assert [partition.index for partition in grouped] == list(range(len(grouped)))
    for partition in grouped:
        assert len(partition.splits) == 1 or sum(plan.rows_per_split[p.index] for p in partition.splits) <= wanted


@pytest.mark.parametrize("of", [1, 2, 3, 16, 50])
def test_shards_are_disjoint_and_complete(of: int) -> None:
    all_partitions = [Partition(i, ()) for i in range(40)]
    mine = [select_shard(all_partitions, (k, of)) for k in range(1, of + 1)]
    assert sorted(partition.index for some in mine for partition in some) == list(range(40))
    assert max(map(len, mine)) - min(map(len, mine)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3", "1/0", ""])
def test_a_wrong_shard_is_refused(home: Path, tmp_path: Path, text: str) -> None:
    ended = encode(home, f"{tmp_path}/out/", "--shard", text)
    assert ended.code == 2
    assert "--shard 3/16" in ended.err


@pytest.mark.parametrize("text", ["", "0", "x", "-3", "12 parsecs"])
def test_a_wrong_part_size_is_refused(home: Path, tmp_path: Path, text: str) -> None:
    assert encode(home, f"{tmp_path}/out/", "--part-size", text).code == 2


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--shard", "1/2", "--overwrite"], "--overwrite"),
        (["--shard", "1/2", "--update"], "--update"),
        (["--workers", 2, "--stop-after", 5], "--max-seconds"),
        (["--workers", 2, "--reuse", "x.parquet"], "--reuse"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(home: Path, tmp_path: Path, flags: list[object], word: str) -> None:
    ended = encode(home, f"{tmp_path}/out/", *flags)
    assert ended.code == 2
    assert word in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ends", [["-", "out.parquet"], ["in.jsonl", "-"]])
def test_stdin_and_stdout_need_one_process(tmp_path: Path, ends: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(3))
    ended = jobs.run("encode", *ends, "--model", jobs.word_model(tmp_path), "--workers", 2)
    assert ended.code == 2
    assert "an output of -" in ended.err or "an input of -" in ended.err


# Merging


@pytest.mark.usefixtures("small_splits")
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


@pytest.mark.usefixtures("small_splits")
def test_merge_publishes_what_the_last_shard_could_not(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_output, output = f"{tmp_path}/whole.parquet", f"{tmp_path}/out.parquet"
    encode(home, whole_output)
    with monkeypatch.context() as patch:
        patch.setattr(
            "embedcli.runners.merge.merge_shards", lambda *_: (_ for _ in ()).throw(OutputError("no space left"))
        )
        assert [encode(home, output, "--shard", f"{k}/2").code for k in (1, 2)] == [3, 1]
    assert not Path(output).exists()
    merged = jobs.run("merge", output)
    assert merged.code == 3, merged.err
    assert Path(output).read_bytes() == Path(whole_output).read_bytes()
    assert Path(output + ".rejects.jsonl").read_bytes() == Path(whole_output + ".rejects.jsonl").read_bytes()
    assert not Path(output + ".parts").exists()


@pytest.mark.usefixtures("small_splits")
def test_merge_applies_the_percentage_of_rejects(home: Path, tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    ended = [encode(home, output, "--shard", f"{k}/2", "--max-rejects", "0.1%", *SMALL) for k in (1, 2)]
    assert [one.code for one in ended] == [3, 1]
    assert "--max-rejects" in ended[1].err
    assert jobs.run("merge", output).code == 3


@pytest.mark.usefixtures("small_splits")
def test_a_shard_without_work_says_why(home: Path, tmp_path: Path) -> None:
    idle = encode(home, f"{tmp_path}/out/", "--shard", "2/2")
    assert idle.code == 0
    assert "a smaller --part-size" in idle.err


@pytest.mark.usefixtures("small_splits")
def test_shards_of_other_jobs_are_refused(home: Path, tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    encode(home, output, "--shard", "1/2", *SMALL)
    other = encode(home, output, "--shard", "2/2", "--max-seq-length", 3, *SMALL)
    assert other.code == 2
    assert "--max-seq-length" in other.err


# Shards and whole runs exclude each other


def lock_output(output: str, lock: str) -> checkpoint.Ledger:
    """Lock an output like another running process."""
    ledger = checkpoint.Ledger(output_target.resolve_target(output, None), lock=lock)
    ledger.acquire()
    return ledger


@pytest.mark.usefixtures("small_splits")
@pytest.mark.parametrize("name", ["out.parquet", "out/"])
def test_while_a_shard_is_running_only_shards_begin(home: Path, tmp_path: Path, name: str) -> None:
    output = f"{tmp_path}/{name}"
    shard = lock_output(output, "_lock-1-of-2")
    for refused in (
        encode(home, output, *SMALL),
        encode(home, output, "--overwrite", "--stop-after", 100, *SMALL),
        encode(home, output, "--workers", 2, *SMALL),
        encode(home, output, "--shard", "1/2", *SMALL),
    ):
        assert refused.code == 1
        assert f"another embedcli is writing {output}" in refused.err
    with pytest.raises(OutputLocked):
        lock_output(output, checkpoint.LOCK_FILE)
    beside = encode(home, output, "--shard", "2/2", *SMALL)
    assert beside.code in (0, 3), beside.err
    refused = jobs.run("merge", output)
    assert (refused.code, "another embedcli is writing" in refused.err) == (1, True)
    shard.release()
    assert encode(home, output, *SMALL).code == 3


@pytest.mark.usefixtures("small_splits")
def test_the_last_of_two_shards_that_end_together_merges(home: Path, tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    encode(home, output, "--shard", "1/2", *SMALL)
    other = lock_output(output, "_lock-1-of-2")
    early = encode(home, output, "--shard", "2/2", *SMALL)
    assert (early.code in (0, 3), "another shard is still running" in early.err) == (True, True)
    other.release()
    assert encode(home, output, "--shard", "1/2", *SMALL).code == 3
    assert Path(output, "_manifest.json").exists()


def test_while_a_whole_run_is_running_no_shard_begins(home: Path, tmp_path: Path) -> None:
    whole_output = lock_output(f"{tmp_path}/out/", checkpoint.LOCK_FILE)
    refused = encode(home, f"{tmp_path}/out/", "--shard", "1/2", *SMALL)
    assert (refused.code, "another embedcli is writing" in refused.err) == (1, True)
    whole_output.release()
    assert encode(home, f"{tmp_path}/out/", "--shard", "1/1", *SMALL).code == 3


# Damage and change after a kill


def encode_without_publishing(home: Path, output: str) -> None:
    """Complete all partitions without publishing them, like a run that is killed before that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Ledger, "publish", lambda *_: (_ for _ in ()).throw(OutputError("killed")))
        assert encode(home, output, *SMALL).code == 1


@pytest.fixture
def unpublished(small_splits: None, home: Path, tmp_path: Path) -> str:
    """A folder output whose partitions are completed and not published."""
    if not (home / "begun").exists():
        encode_without_publishing(home, f"{home}/begun/")
    shutil.copytree(home / "begun", tmp_path / "out")
    return f"{tmp_path}/out/"


@pytest.mark.parametrize("what", ["part", "share", "rejects"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_damage_to_a_completed_partition_is_detected(
    home: Path, unpublished: str, local_output: Any, what: str, damage: str
) -> None:
    victim = min(Path(unpublished, "_parts").glob(what + "-*"))
    data = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data[:-9] if damage == "cut" else data[:50] + bytes([data[50] ^ 1]) + data[51:])
    ended = encode(home, unpublished, *(["--workers", 2] if damage == "flip" else []), *SMALL)
    assert ended.code == 3, ended.err
    assert read_output(unpublished) == local_output("out/", "id")
    assert ("damaged" in ended.err) == (what != "share" or damage != "gone")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_completed_partition_of_an_unchanged_input_is_not_read_again(
    home: Path, unpublished: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedcli.readers.read_chunks", lambda *_, **__: pytest.fail("was read"))
    monkeypatch.setattr("embedcli.encoders.load_encoder", lambda *_, **__: pytest.fail("was loaded"))
    ended = encode(home, unpublished, "--workers", workers, *SMALL)
    assert ended.code == 3, ended.err


@pytest.mark.usefixtures("small_splits")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_changed_input_of_a_completed_partition_is_refused(home: Path, tmp_path: Path, workers: int) -> None:
    moved = tmp_path / "in"
    moved.mkdir()
    for name in ("in.a.jsonl", "in.b.csv", "in.c.parquet", "words.txt"):
        (moved / name).write_bytes((home / name).read_bytes())
    encode_without_publishing(moved, f"{tmp_path}/out/")
    text = (moved / "in.b.csv").read_text()
    (moved / "in.b.csv").write_text(text.replace("word1", "word2", 1))
    changed = encode(moved, f"{tmp_path}/out/", "--workers", workers, "--part-size", "4000")
    assert changed.code == 2
    assert "in.b.csv has changed" in changed.err
    (moved / "in.b.csv").write_text(text)
    assert encode(moved, f"{tmp_path}/out/", "--workers", workers, "--part-size", "4000").code == 3


# Kills


def big_command(home: Path, output: str, *more: object) -> list[str]:
    flags = ("--model", home / "words.txt", "--chunk-rows", 16, "--part-size", "20kB", *more)
    return jobs.command("encode", home / "big.jsonl", output, *flags)


# Splits of 8 kB in the child process too, where there is no monkeypatch.
SMALL_SPLITS_PROGRAM = (
    "from embedcli.readers import preview; preview.JSONL_SPLIT_BYTES = 8000; from embedcli.cli import main; main()"
)


def with_small_splits(command: list[str]) -> list[str]:
    return [command[0], "-c", SMALL_SPLITS_PROGRAM, *command[3:]]


def find_workers(pid: int) -> list[int]:
    """Find the worker processes of a run: those of its children that are spawned Python processes."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return [pid for pid in found if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def run_big(home: Path, output: str, *more: object) -> jobs.Ended:
    """Run `big_command` in this process to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "JSONL_SPLIT_BYTES", 8000)
        return jobs.run(*big_command(home, output, *more)[3:])


@pytest.fixture(scope="module")
def whole_output(home: Path) -> dict[str, bytes]:
    assert run_big(home, f"{home}/whole/").code == 0
    return read_output(f"{home}/whole/")


def count_staged(output: str) -> int:
    return len(list(Path(output, "_parts").glob("part-*"))) + len(list(Path(output, "_parts").glob("share-*")))


def finished_chunks(output: str) -> set[str]:
    """Find the finished chunks: part files, and those in the records of completed partitions."""
    stage = f"{output}_parts"
    records, _ = partitions.read_records(stage)
    recorded = {Path(part.path).name for record in records.values() for part in record.parts}
    return recorded | {path.name for path in Path(stage).glob("part-*")}


@pytest.mark.parametrize(
    ("staged_files", "again"),
    [(3, ["--workers", 2]), (9, []), (6, ["--shard", "1/1"])],
    ids=["processes", "local", "shard"],
)
def test_a_killed_run_leaves_no_process_and_is_resumed_by_any_runner(
    home: Path, tmp_path: Path, whole_output: dict[str, bytes], staged_files: int, again: list[object]
) -> None:
    output = f"{tmp_path}/out/"
    process = subprocess.Popen(with_small_splits(big_command(home, output, "--workers", 2)), stderr=subprocess.DEVNULL)
    jobs.wait_for(lambda: count_staged(output) >= staged_files, process)
    workers = find_workers(process.pid)
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until, "workers outlive their parent"
        time.sleep(0.02)
    done = run_big(home, output, *again)
    assert done.code == 0, done.err
    assert read_output(output) == whole_output


def test_a_worker_that_is_killed_is_replaced(home: Path, tmp_path: Path, whole_output: dict[str, bytes]) -> None:
    output = f"{tmp_path}/out/"
    process = subprocess.Popen(
        with_small_splits(big_command(home, output, "--workers", 2)), stderr=subprocess.PIPE, text=True
    )
    jobs.wait_for(lambda: count_staged(output) >= 5, process)  # type: ignore[arg-type]
    os.kill(find_workers(process.pid)[0], signal.SIGKILL)
    stderr = process.communicate()[1]
    assert process.returncode == 0, stderr
    assert "died (signal SIGKILL)" in stderr
    assert read_output(output) == whole_output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_stop_all_workers_and_keep_finished_chunks(
    home: Path, tmp_path: Path, whole_output: dict[str, bytes], number: int, code: int
) -> None:
    output = f"{tmp_path}/out/"
    process = subprocess.Popen(
        with_small_splits(big_command(home, output, "--workers", 2)), stderr=subprocess.PIPE, text=True
    )
    jobs.wait_for(lambda: count_staged(output) >= 5, process)  # type: ignore[arg-type]
    process.send_signal(number)
    stderr = process.communicate()[1]
    assert process.returncode == code, stderr
    assert len(finished_chunks(output)) >= 5
    assert run_big(home, output).code == 0
    assert read_output(output) == whole_output


@pytest.mark.usefixtures("small_splits")
def test_max_seconds_stops_workers(home: Path, tmp_path: Path) -> None:
    output = f"{tmp_path}/out/"
    early = encode(home, output, "--workers", 2, "--max-seconds", 0.001, "--part-size", "4000")
    assert early.code == 75, early.err
    assert encode(home, output, "--part-size", "4000").code == 3


# Workers that fail


class Faulty:
    """Loads the word vectors, and fails to tokenize the first `times` times, counted over all processes."""

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


@pytest.mark.usefixtures("small_splits")
def test_an_unexpected_error_is_retried_once(home: Path, tmp_path: Path) -> None:
    outcome, lines = faulty_run(home, tmp_path, 1, ZeroDivisionError("odd"))
    assert outcome.exit_code == 0
    assert any(re.fullmatch(r"odd; partition \d+ is encoded by another worker", line) for line in lines)


@pytest.mark.usefixtures("small_splits")
def test_a_repeated_error_is_raised_with_the_traceback_of_the_worker(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError, match="odd") as caught:
        faulty_run(home, tmp_path, 99, ZeroDivisionError("odd"))
    assert isinstance(caught.value.__cause__, multiprocess.WorkerTracebackError)
    assert "in faulty" in str(caught.value.__cause__)


@pytest.mark.usefixtures("small_splits")
def test_an_error_for_the_user_ends_the_run_at_once(home: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such thing") as caught:
        faulty_run(home, tmp_path, 99, UsageError("no such thing", "try another"))
    assert caught.value.hint == "try another"
    assert len((tmp_path / "note").read_bytes()) <= 2


class Imported:
    """Loads the word vectors, and fails with the names of the libraries that its process has imported by then."""

    def __call__(self, job: Job, notify: Any) -> Any:
        from embedcli import encoders

        encoder = encoders.load_encoder(job)

        def report_imports(texts: Any) -> Any:
            raise UsageError(" ".join({"pandas", "torch", "scipy", "openvino", "numpy"} & set(sys.modules)), "")

        encoder.tokenize = report_imports  # type: ignore[method-assign]
        return encoder


@pytest.mark.usefixtures("small_splits")
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


def test_devices_are_assigned_in_turn() -> None:
    assert worker.assign_devices(Job((), "", device="cuda:0, cuda:1")) == ["cuda:0", "cuda:1"]
    assert worker.assign_devices(Job((), "", device="cuda:0,cuda:1", workers=5))[2:] == ["cuda:0", "cuda:1", "cuda:0"]
    assert worker.assign_devices(Job((), "", workers=2)) == ["auto", "auto"]
    assert multiprocess.worker_job(Job((), "", threads=3), "cpu", 2).threads == 3


def test_workers_share_what_a_server_allows() -> None:
    job = Job((), "", rpm=100, tpm=10_001, max_concurrency=3)
    shared = multiprocess.worker_job(job, "cpu", 4)
    assert (shared.rpm, shared.tpm, shared.max_concurrency) == (25, 2500, 1)
    alone = multiprocess.worker_job(Job((), ""), "cpu", 4)
    assert (alone.rpm, alone.tpm, alone.max_concurrency) == (None, None, None)


@pytest.mark.usefixtures("small_splits")
def test_the_report_covers_all_workers(home: Path, tmp_path: Path) -> None:
    encode(home, f"{tmp_path}/out.parquet", "--workers", 2, "--report", tmp_path / "run.json")
    report = json.loads((tmp_path / "run.json").read_text())
    assert (report["rows"]["rows"], report["rows"]["this_run"], report["rows"]["rejects"]) == (900, 900, 3)
    assert report["counters"]["fed_tokens"] == report["rows"]["tokens"]
    busy = report["timeline"]["busy"]
    for name in ("read", "tokenize", "forward"):  # the parent writes too, and counts for itself
        assert report["stage_seconds"][name] > 0
        assert sum(busy[name]) * report["timeline"]["seconds"] * 2 == pytest.approx(
            report["stage_seconds"][name], rel=0.5
        )


@pytest.mark.usefixtures("small_splits")
def test_stored_precision_has_one_set_of_ranges(home: Path, tmp_path: Path) -> None:
    columns = []
    for runner in (encode_locally, encode_by_processes, encode_by_shards):
        output = f"{tmp_path}/{runner.__name__}.parquet"
        assert runner(home, output, "--precision", "int8").code == 3
        columns.append(pq.read_table(output).column("embedding"))
    assert columns[0] == columns[1] == columns[2]


def test_a_layout_is_restored_from_the_staging_folder(tmp_path: Path) -> None:
    columns = core_types.InputColumns(
        "t", None, "id", pa.string(), {"a": pa.int64(), "b": pa.string()}, has_source_column=True
    )
    layout = OutputLayout(columns, (VectorField("dense", 8, "binary"),), True)
    space = {"dim": 8, "precision": "binary"}
    vector_space.write_vector_space(str(tmp_path), layout, space)
    restored, restored_space = vector_space.read_vector_space(str(tmp_path))
    assert restored.schema() == layout.schema()
    assert (restored.bytes_per_row, restored_space) == (layout.bytes_per_row, space)
    with pytest.raises(OutputError, match="precision"):
        vector_space.write_vector_space(str(tmp_path), layout, {"dim": 8, "precision": "int8"})


def test_a_folder_output_is_resumed_with_another_engine(tmp_path: Path) -> None:
    source, command = jobs.write_jsonl(tmp_path / "in.jsonl", jobs.rows(60)), ("-m", models.folder("m3e-base"))
    flags = ("--chunk-rows", 20, "--engine")
    assert jobs.run("encode", source, f"{tmp_path}/out/", *command, "--stop-after", 20, *flags, "openvino").code == 75
    done = jobs.run("encode", source, f"{tmp_path}/out/", *command, *flags, "torch")
    assert done.code == 0, done.err
    assert jobs.run("verify", f"{tmp_path}/out/", source, "--all").code == 0
