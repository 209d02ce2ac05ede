"""Jobs that an earlier version began and did not finish: how they were begun, packed, and are finished now."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golden_cases import SHARDED, Command, encode, run_command
from golden_inputs import change_rows, rows, set_times, write_inputs, write_jsonl
from snapshot import describe_files

INPUTS = ("words.txt", "in.jsonl", "more.jsonl", "several.jsonl", "unnamed.jsonl", "bad.jsonl", "many.jsonl")
REPORT = "report.json"
PARTS_BEFORE_KILL = 5
# `part-00000-001.parquet`, now `part-00000_00001.parquet`.
EARLIER_NAME = re.compile(r"(part-\d{5})-(\d{3})(?=\.)")


@dataclass(frozen=True)
class Staged:
    """A job in three steps: what was done before, the command that is stopped by `stop`, and the one that finishes.

    `stop` is flags, or None for a process that is killed. Most have rows that are rejected.
    """

    name: str
    job: str
    stop: str | None
    finish: str = ""
    before: tuple[Command | Callable[[], object], ...] = ()

    @property
    def is_sharded(self) -> bool:
        return self.finish.startswith("--shard")

    @property
    def last(self) -> Command:
        return encode(f"{self.job} {self.finish} --report {REPORT}")


def change_several() -> None:
    change_rows("several.jsonl")


FOUR = "several.jsonl bad.jsonl more.jsonl in.jsonl"
UPDATE = "several.jsonl bad.jsonl {} --text-column text --id-column id --chunk-rows 8 --keep n"
STAGED = [
    Staged(
        "parquet",
        f"{FOUR} out.parquet --chunk-rows 8 --keep n --keep meta --overflow split --max-seq-length 4",
        "--stop-after 70",
    ),
    Staged("npy-int8", f"{FOUR} out.npy --chunk-rows 8 --precision int8", "--stop-after 40"),
    Staged("row-numbers", "unnamed.jsonl several.jsonl out.jsonl --text-column text --chunk-rows 3", "--stop-after 20"),
    Staged("folder", f"{FOUR} out/ --chunk-rows 7 --part-size 800 --keep n", "--stop-after 75"),
    Staged("shards-folder", SHARDED.format("bad.jsonl out/ --keep lang"), "--shard 1/2", "--shard 2/2"),
    Staged("shards-parquet", SHARDED.format("bad.jsonl out.parquet"), "--shard 2/2", "--shard 1/2"),
    Staged(
        "update-parquet",
        UPDATE.format("out.parquet"),
        "--update --stop-after 30",
        "--update",
        (encode(UPDATE.format("out.parquet")), change_several),
    ),
    Staged(
        "update-folder",
        UPDATE.format("out/"),
        "--update --stop-after 30",
        "--update",
        (encode(UPDATE.format("out/")), change_several),
    ),
    Staged("killed", "many.jsonl out.parquet --chunk-rows 4 --normalize", None),
]


def prepare(staged: Staged, folder: Path) -> None:
    """Write the inputs into a new folder, and run what comes before."""
    folder.mkdir()
    write_inputs(folder)
    write_jsonl(folder / "many.jsonl", rows(600))
    set_times(folder)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        elif path.relative_to(folder).as_posix() not in INPUTS:
            path.unlink()
    with chdir(folder):
        for step in staged.before:
            if isinstance(step, Command):
                run_command(step)
            else:
                step()


def run_whole(staged: Staged, folder: Path) -> None:
    """Run a job without a stop, in a new folder; with all shards one after the other, if it has any."""
    prepare(staged, folder)
    with chdir(folder):
        if staged.is_sharded:
            run_command(encode(f"{staged.job} {staged.stop}"))
        ended = run_command(staged.last)
        assert ended.exit_code in (0, 3), ended.stderr


def describe_finished(folder: Path) -> dict[str, Any]:
    """All outputs in the folder of a finished job; the report is not one. Rejects are described without `raw`.

    Earlier versions wrote only the text of the rows that the encoder rejects, and named the further files of a
    partition otherwise.
    """
    found = describe_files(folder, folder.parent / "nothing")
    found = {name: one for name, one in found.items() if name not in (*INPUTS, REPORT)}
    found = json.loads(EARLIER_NAME.sub(r"\1_00\2", json.dumps(found)))
    found = dict(sorted(found.items(), key=lambda item: Path(item[0])))
    for name, one in found.items():
        if name.endswith("rejects.jsonl"):
            rejects = map(json.loads, one["content"])
            found[name] = {"content": [{key: row[key] for key in row if key != "raw"} for row in rejects]}
    return found


def begin(staged: Staged, folder: Path, archives: Path) -> None:
    """Begin a job in a new folder, stop it, and pack the folder."""
    prepare(staged, folder)
    with chdir(folder):
        if staged.stop is None:
            kill_between_chunks(encode(staged.job))
        else:
            ended = run_command(encode(f"{staged.job} {staged.stop}"))
            assert ended.exit_code in ((0, 3) if staged.is_sharded else (75,)), ended
    archives.mkdir(exist_ok=True)
    pack(folder, archives / f"{staged.name}.tar.gz")


def kill_between_chunks(command: Command) -> None:
    """Run a command, and kill it when it has written a few part files."""
    process = subprocess.Popen([sys.executable, "-m", "embedcli", *command.arguments])
    until = time.monotonic() + 60
    while len(list(Path("out.parquet.parts").glob("part-*"))) < PARTS_BEFORE_KILL:
        assert process.poll() is None, "the process ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def pack(folder: Path, archive: Path) -> None:
    """Pack a folder, with the times of its files and nothing of the machine."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with gzip.GzipFile(archive, "wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(folder, ".", filter=anonymous)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a folder. Sizes and times of the inputs are those that the staging folder stores."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
