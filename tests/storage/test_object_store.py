"""Addresses: a real S3 server and web servers of this machine, real commands and kills; secrets stay secret."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import jobs
import s3_server
import web_server
from embedcli import storage
from embedcli.core.errors import InputError, OutputError, UsageError
from embedcli.storage import clients, lease_lock, object_store, url_redaction
from embedcli.storage.local import LockHeld
from embedcli.storage.ranged_file import MAX_WINDOW_BYTES, MIN_WINDOW_BYTES, RangedFile

ROWS = jobs.rows(240)


@pytest.fixture(scope="module")
def store() -> Iterator[s3_server.Store]:
    with s3_server.run_server() as made:
        yield made


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, store: s3_server.Store) -> Path:
    """A folder with a model, rows.jsonl and the output of a local run, `whole.parquet`; the rows in the store too."""
    folder = tmp_path_factory.mktemp("place")
    jobs.word_model(folder)
    data = jobs.write_jsonl(folder / "rows.jsonl", ROWS).read_bytes()
    store.put("in/rows.jsonl", data)
    store.put("in/rows.jsonl.gz", gzip.compress(data))
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, folder / "rows.parquet", row_group_size=100)
    pa.csv.write_csv(table, folder / "rows.csv")
    for name in ("rows.parquet", "rows.csv"):
        store.put(f"in/{name}", (folder / name).read_bytes())
    assert jobs.run("encode", folder / "rows.jsonl", folder / "whole.parquet", *encode_options(folder)).code == 0
    return folder


@pytest.fixture
def s3(store: s3_server.Store, monkeypatch: pytest.MonkeyPatch) -> s3_server.Store:
    """The store, set up for this process. Leases do not pause here: only tests of several processes have a rival."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lease_lock, "SETTLE_SECONDS", 0.0)
    clients._arrow_client.cache_clear()
    return store


def encode_options(workspace: Path) -> list[object]:
    return ["-m", workspace / "words.txt", "--chunk-rows", 20, "-q"]


def read_table(data: bytes) -> Any:
    return pq.read_table(pa.BufferReader(data)).replace_schema_metadata(None)


# Inputs and outputs


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet"])
def test_every_format_is_read_as_from_a_file(name: str, s3: s3_server.Store, workspace: Path, tmp_path: Path) -> None:
    result = jobs.run("encode", f"s3://data/in/{name}", tmp_path / "out.parquet", *encode_options(workspace))
    assert (result.code, result.err) == (0, "")
    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(workspace / "whole.parquet"))


def test_one_run_writes_what_a_local_run_writes_and_leaves_nothing_else(
    store: s3_server.Store, workspace: Path
) -> None:
    job = ("encode", "s3://data/in/rows.jsonl", "s3://data/one/out.parquet", *encode_options(workspace))
    result = jobs.run_apart(*job, "--report", "s3://data/one/r.json", stdin=None, **store.environment)
    assert (result.code, result.err) == (0, "")
    assert store.get("one/out.parquet") == (workspace / "whole.parquet").read_bytes()
    assert store.names("one/") == ["one/out.parquet", "one/r.json"]
    assert json.loads(store.get("one/r.json"))["files"] == ["s3://data/one/out.parquet"]


@pytest.mark.parametrize("name", ["out.npy", "out.jsonl", "out.arrow", "folder/"])
def test_every_output_can_be_read_back_and_searched(name: str, s3: s3_server.Store, workspace: Path) -> None:
    output = f"s3://data/kinds/{name}"
    assert (
        jobs.run("encode", "s3://data/in/rows.jsonl", output, *encode_options(workspace), "--part-size", 4000).code == 0
    )
    assert [key for key in s3.names("kinds/") if "part" in key.split("/")[1] or "_lock" in key] == []
    verified = jobs.run("verify", output, "s3://data/in/rows.jsonl")
    assert verified.code == 0, verified.out
    found = jobs.run("search", output, ROWS[7]["text"], "-m", workspace / "words.txt", "-k", 1, "--json")
    assert found.code == 0
    assert "1.0" in found.out


def test_folders_and_globs(s3: s3_server.Store) -> None:
    for name in [
        "g/a-10.jsonl",
        "g/a-2.jsonl",
        "g/_x.jsonl",
        "g/.y.jsonl",
        "g/z.txt",
        "g/deep/b.jsonl",
        "g/deep/er/c.csv",
    ]:
        s3.put(name, b'{"text": "a"}\n')
    expected = {
        "s3://data/g": ["a-2.jsonl", "a-10.jsonl", "deep/b.jsonl", "deep/er/c.csv"],
        "s3://data/g/": ["a-2.jsonl", "a-10.jsonl", "deep/b.jsonl", "deep/er/c.csv"],
        "s3://data/g/*.jsonl": ["a-2.jsonl", "a-10.jsonl"],
        "s3://data/g/a-[0-9].jsonl": ["a-2.jsonl"],
        "s3://data/g/?-10.*": ["a-10.jsonl"],
        "s3://data/g/**/*.jsonl": ["a-2.jsonl", "a-10.jsonl", "deep/b.jsonl"],
        "s3://data/g/*/*": ["deep/b.jsonl"],
        "s3://data/*/deep/**": ["deep/b.jsonl", "deep/er/c.csv"],
    }
    for given, names in expected.items():
        assert storage.expand_inputs([given]) == tuple(f"s3://data/g/{name}" for name in names), given
    twice = storage.list_input_files(["s3://data/g/a-2.jsonl", "s3://data/g/*.jsonl"])
    assert twice.paths == ["s3://data/g/a-2.jsonl", "s3://data/g/a-10.jsonl"]
    assert "s3://data/g/a-2.jsonl is named twice: it is read once." in twice.notes


def test_files_are_opened_ahead_and_the_rest_is_closed(
    s3: s3_server.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = [s3.put(f"ahead/{number}.jsonl", b"%d" % number) for number in range(40)]
    opened: dict[str, RangedFile] = {}
    real = object_store.RemoteFileSystem.open_prefetched
    monkeypatch.setattr(
        object_store.RemoteFileSystem, "open_prefetched", lambda self, path: opened.setdefault(path, real(self, path))
    )
    prefetched = storage.PrefetchedFiles()
    items = prefetched.iterate([str(tmp_path), "-", *paths], lambda path: path)
    assert [next(items), next(items), next(items)] == [str(tmp_path), "-", paths[0]]
    with storage.open_input(paths[0], prefetched=prefetched) as source:
        assert source.read() == b"0"
        assert opened[paths[0]]._windows  # its bytes were there before it was asked for
    assert prefetched.take(paths[0]) is None
    with storage.open_input(paths[1]) as source:  # opened without `prefetched`: it shares nothing
        assert source.read() == b"1"
    assert next(items) == paths[1]
    items.close()
    assert prefetched.take(paths[2]) is None
    assert paths[-1] not in opened
    for thread in threading.enumerate():
        if thread.name.startswith("opening"):
            thread.join(60)
    assert opened
    assert all(file.closed for file in opened.values())


def test_update_and_reuse_take_vectors_from_the_store(s3: s3_server.Store, workspace: Path, tmp_path: Path) -> None:
    output = "s3://data/update/out.parquet"
    assert jobs.run("encode", "s3://data/in/rows.jsonl", output, *encode_options(workspace)).code == 0
    more = jobs.write_jsonl(tmp_path / "rows.jsonl", [*ROWS, {"id": "new", "text": "word1", "n": -1}])
    result = jobs.run("encode", more, output, *encode_options(workspace), "--update", "--report", tmp_path / "r.json")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "r.json").read_text())["changes"] == {
        "added": 1,
        "changed": 0,
        "reused": 240,
        "removed": 0,
    }
    assert jobs.run("encode", more, tmp_path / "out.npy", *encode_options(workspace), "--reuse", output).code == 0


def test_a_finished_output_is_left_as_it_is_and_a_changed_job_is_refused(s3: s3_server.Store, workspace: Path) -> None:
    output = "s3://data/again/out.parquet"
    for _ in range(2):
        result = jobs.run("encode", "s3://data/in/rows.jsonl", output, *encode_options(workspace))
        assert result.code == 0, result.err
    assert jobs.run("encode", "s3://data/in/rows.jsonl", output, *encode_options(workspace), "--keep", "n").code == 2
    assert (
        jobs.run(
            "encode", "s3://data/in/rows.jsonl", output, *encode_options(workspace), "--keep", "n", "--overwrite"
        ).code
        == 0
    )
    assert "n" in read_table(s3.get("again/out.parquet")).column_names


def test_rejects_lie_beside_the_output(s3: s3_server.Store, workspace: Path) -> None:
    s3.put("bad/in.jsonl", b'{"id": "a", "text": "word1"}\nnonsense\n')
    assert (
        jobs.run("encode", "s3://data/bad/in.jsonl", "s3://data/bad/out.parquet", *encode_options(workspace)).code == 3
    )
    assert json.loads(s3.get("bad/out.parquet.rejects.jsonl"))["source"] == "s3://data/bad/in.jsonl"


# Kills


def start_and_stop(store: s3_server.Store, workspace: Path, output: str, parts: int) -> subprocess.Popen[bytes]:
    """A command that has written so many parts, and was stopped there (SIGSTOP)."""
    command = jobs.command("encode", "s3://data/in/rows.jsonl", f"s3://{output}", *encode_options(workspace))
    process = subprocess.Popen(command, env=os.environ | store.environment, stderr=subprocess.PIPE)
    folder = output.rstrip("/").partition("/")[2]
    jobs.wait_for(lambda: sum("/part-" in name for name in list_all_objects(store, output, folder)) >= parts, process)
    process.send_signal(signal.SIGSTOP)
    return process


def try_remove_bucket(store: s3_server.Store, bucket: str) -> bool:
    """Whether a bucket is gone now: what a stopped command had sent may land in it while it is emptied."""
    try:
        store.fs.delete_dir(bucket)
    except OSError as error:
        if "BucketNotEmpty" not in str(error):
            raise
        return False
    return True


def list_all_objects(store: s3_server.Store, output: str, folder: str) -> list[str]:
    import pyarrow.fs as pafs

    bucket = output.partition("/")[0]
    found = store.fs.get_file_info(pafs.FileSelector(bucket, recursive=True, allow_not_found=True))
    return [info.path for info in found if info.path.startswith(f"{bucket}/{folder}")]


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


@pytest.mark.parametrize(("name", "parts"), [("out.parquet", 1), ("out.parquet", 7), ("folder/", 4)])
def test_killed_and_run_again_gives_the_same(name: str, parts: int, s3: s3_server.Store, workspace: Path) -> None:
    output = f"data/kill{parts}/{name}"
    kill(start_and_stop(s3, workspace, output, parts))
    assert f"kill{parts}/{name}" not in s3.names(f"kill{parts}/")
    report = workspace / f"kill{parts}.json"
    result = jobs.run(
        "encode", "s3://data/in/rows.jsonl", f"s3://{output}", *encode_options(workspace), "--report", report
    )
    assert (result.code, result.err) == (0, "")
    assert json.loads(report.read_text())["rows"]["resumed"] >= 20 * parts
    left = s3.names(f"kill{parts}/")
    data = next(key for key in left if key.endswith(".parquet"))
    assert read_table(s3.get(data)).equals(read_table((workspace / "whole.parquet").read_bytes()))
    assert [key for key in left if "parts" in key or "_lock" in key] == []


def test_a_damaged_part_is_noticed_and_made_again(s3: s3_server.Store, workspace: Path, tmp_path: Path) -> None:
    output = "s3://data/damage/out.parquet"
    assert (
        jobs.run("encode", "s3://data/in/rows.jsonl", output, *encode_options(workspace), "--stop-after", 60).code == 75
    )
    part = s3.names("damage/out.parquet.parts/part-")[0]
    s3.put(part, s3.get(part)[:-3] + b"xxx")
    result = jobs.run(
        "encode", "s3://data/in/rows.jsonl", output, *encode_options(workspace), "--report", tmp_path / "r"
    )
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "r").read_text())["damaged_parts"] == 1
    assert s3.get("damage/out.parquet") == (workspace / "whole.parquet").read_bytes()


def test_a_second_writer_is_refused_until_the_first_is_dead(s3: s3_server.Store, workspace: Path) -> None:
    first = start_and_stop(s3, workspace, "data/two/out.parquet", 1)
    job = ("encode", "s3://data/in/rows.jsonl", "s3://data/two/out.parquet", *encode_options(workspace))
    try:
        second = jobs.run(*job)
    finally:
        kill(first)
    assert second.code == 1
    assert "another embedcli is writing s3://data/two/out.parquet" in second.err
    assert jobs.run(*job).code == 0


def test_a_bucket_that_vanishes_is_reported(store: s3_server.Store, workspace: Path) -> None:
    store.fs.create_dir("vanishing")
    process = start_and_stop(store, workspace, "vanishing/out.parquet", 2)
    try:
        jobs.wait_for(lambda: try_remove_bucket(store, "vanishing"), process)
        process.send_signal(signal.SIGCONT)
        error = process.communicate(timeout=jobs.PATIENCE)[1].decode()
    finally:
        kill(process)
    assert process.returncode == 1, error
    assert "error: s3://vanishing/" in error
    assert "there is no such bucket" in error


# Leases


def put_lease(store: s3_server.Store, key: str, host: str, pid: int) -> str:
    return store.put(key, json.dumps({"token": "theirs", "host": host, "pid": pid}).encode())


def test_a_living_lease_holds_and_a_dead_one_does_not(s3: s3_server.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_lock, "SETTLE_SECONDS", 0.0)
    with pytest.raises(OutputError, match="another embedcli is writing s3://data/o"):
        storage.acquire_lock(put_lease(s3, "lease/a", "elsewhere", 1), "s3://data/o")
    with pytest.raises(OutputError):
        storage.acquire_lock(put_lease(s3, "lease/b", lease_lock.host_identity(), os.getpid()), "s3://data/o")
    ended = subprocess.Popen(["true"])
    ended.wait()
    storage.acquire_lock(put_lease(s3, "lease/c", lease_lock.host_identity(), ended.pid), "s3://data/o")()
    monkeypatch.setattr(lease_lock, "LEASE_SECONDS", -1.0)
    give_back = storage.acquire_lock("s3://data/lease/a", "s3://data/o")
    assert json.loads(s3.get("lease/a"))["token"] != "theirs"
    give_back()
    assert json.loads(s3.get("lease/a")) == {}


class InMemoryStore:
    """A store in which another's lease may land between writing and looking."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.intruder: bytes | None = None

    def read_with_age(self, path: str) -> tuple[bytes, float] | None:
        return (self.held[path], 0.0) if path in self.held else None

    def write_object(self, path: str, data: bytes) -> None:
        self.held[path] = self.intruder or data

    def list_files(self, folder: str) -> list[str]:
        return [path.removeprefix(folder + "/") for path in self.held if path.startswith(folder + "/")]

    def remove(self, path: str) -> None:
        self.held.pop(path, None)


def test_who_finds_anothers_lease_after_writing_has_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_lock, "SETTLE_SECONDS", 0.0)
    memory = InMemoryStore()
    memory.intruder = b'{"token": "theirs", "host": "elsewhere", "pid": 1}'
    with pytest.raises(LockHeld):
        lease_lock.acquire_exclusive(memory, "a")
    assert memory.held["a"] == memory.intruder


def test_a_lease_is_shared_or_held_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_lock, "SETTLE_SECONDS", 0.0)
    memory = InMemoryStore()
    one, two = lease_lock.acquire_shared(memory, "a"), lease_lock.acquire_shared(memory, "a")
    one()
    with pytest.raises(LockHeld):
        lease_lock.acquire_exclusive(memory, "a")
    two()
    assert memory.held == {}
    alone = lease_lock.acquire_exclusive(memory, "a")
    with pytest.raises(LockHeld):
        lease_lock.acquire_shared(memory, "a")
    alone()
    lease_lock.acquire_shared(memory, "a")()


@pytest.mark.parametrize("mine", ["a", "a.shared/1"])
def test_who_comes_between_writing_and_looking_is_seen(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other has looked before we wrote, and goes on: we must not."""
    monkeypatch.setattr(lease_lock, "SETTLE_SECONDS", 0.0)
    memory, (take, other) = (
        InMemoryStore(),
        (lease_lock.acquire_exclusive, "a.shared/1") if mine == "a" else (lease_lock.acquire_shared, "a"),
    )

    def write_object(path: str, data: bytes) -> None:
        memory.held.setdefault(other, json.dumps({"token": "theirs", "host": "elsewhere", "pid": 1}).encode())
        memory.held[path] = data

    monkeypatch.setattr(memory, "write_object", write_object)
    with pytest.raises(LockHeld):
        take(memory, "a")
    assert [path for path in memory.held if path != other and lease_lock.is_held(memory, path)] == []


def test_shards_and_whole_runs_keep_each_other_off(s3: s3_server.Store, workspace: Path) -> None:
    output = "s3://data/sharing/out.parquet"
    job = ("encode", "s3://data/in/rows.jsonl", output, *encode_options(workspace))
    give_back = storage.acquire_lock(f"{output}.parts/_lock", output, shared=True)
    refused = jobs.run(*job)
    assert (refused.code, f"another embedcli is writing {output}" in refused.err) == (1, True)
    give_back()
    give_back = storage.acquire_lock(f"{output}.parts/_lock", output)
    refused = jobs.run(*job, "--shard", "1/1")
    assert (refused.code, f"another embedcli is writing {output}" in refused.err) == (1, True)
    give_back()
    result = jobs.run(*job, "--shard", "1/1")
    assert result.code == 0, result.err
    assert s3.names("sharing/") == ["sharing/out.parquet"]


# Faults


def test_what_is_not_there(
    s3: s3_server.Store, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)

    def err(*arguments: object) -> tuple[int, str]:
        result = jobs.run("encode", *arguments, *encode_options(workspace))
        return result.code, result.err

    out = tmp_path / "out.parquet"
    rows = workspace / "rows.jsonl"
    assert err("s3://data/in/nothing.jsonl", out)[0] == 2
    assert "s3://none/rows.jsonl: there is no bucket s3://none" in err("s3://none/rows.jsonl", out)[1]
    code, message = err(rows, "s3://none/out.parquet")
    assert (code, "there is no such bucket" in message) == (1, True)
    assert "did you mean s3://" in err(rows, "s4://data/out.parquet")[1]
    assert "without file://" in err("file:///tmp/a.jsonl", out)[1]
    for address in ("http://127.0.0.1:9/out.parquet", "hf://datasets/a/b/out.parquet"):
        code, message = err(rows, address)
        assert (code, "can be read but not written" in message) == (2, True), message
    assert "pip install 'embedcli[azure]'" in err("az://a/b.jsonl", out)[1]
    assert "credentials in an address are not supported" in err("s3://key:hunter2@data/in/rows.jsonl", out)[1]
    assert "hunter2" not in err("s3://key:hunter2@data/in/rows.jsonl", out)[1]
    assert jobs.left_in(tmp_path) == []


@pytest.mark.usefixtures("s3")
def test_denied_and_unreachable(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server.serve_folder(tmp_path, "denied") as denied:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{denied}")
        clients._arrow_client.cache_clear()
        result = jobs.run("encode", "s3://data/in/rows.jsonl", tmp_path / "o.npy", *encode_options(workspace))
    assert result.code == 1
    assert "access is denied" in result.err
    assert "check AWS_ACCESS_KEY_ID" in result.err
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    clients._arrow_client.cache_clear()
    result = jobs.run("encode", workspace / "rows.jsonl", "s3://data/x/o.npy", *encode_options(workspace))
    assert result.code == 1
    assert "cannot be reached" in result.err
    assert "AWS_ENDPOINT_URL" in result.err


def test_a_server_that_never_answers_is_given_up(s3: s3_server.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "REQUEST_SECONDS", 1)
    monkeypatch.setattr(clients, "ATTEMPTS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(InputError, match="does not respond"):
            storage.open_input("s3://silent/a.jsonl")


def test_a_broken_upload_is_not_visible(s3: s3_server.Store) -> None:
    def interrupted() -> None:
        with storage.write_atomically("s3://data/broken/out.bin") as out:
            out.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert s3.names("broken/") == []


@pytest.mark.parametrize("size", [0, 1, 12 << 20])
def test_files_of_every_size_arrive_whole(size: int, s3: s3_server.Store) -> None:
    """The largest is uploaded in several parts."""
    data = os.urandom(size)
    with storage.write_atomically("s3://data/sizes/a b+c%20é.bin") as out:
        out.write(data[: size // 2])
        out.write(data[size // 2 :])
    assert s3.get("sizes/a b+c%20é.bin") == data
    with storage.open_seekable("s3://data/sizes/a b+c%20é.bin") as source:
        assert source.size() == size
        assert source.read() == data


def test_what_the_store_holds_is_compared(s3: s3_server.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = object_store.RemoteFileSystem._verify_content
    monkeypatch.setattr(
        object_store.RemoteFileSystem, "_verify_content", lambda self, path, _: real(self, path, memoryview(b"other"))
    )
    for data in (b"wrote", b"longer"):
        with pytest.raises(OutputError, match="read-back check failed"):
            storage.write_bytes("s3://data/altered/a", data)


# fsspec


def test_what_fsspec_serves_is_written_and_read_as_well(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's store in memory stands in for Azure's: the same calls, no server."""
    from fsspec.implementations.memory import MemoryFileSystem

    class Azure(MemoryFileSystem):  # type: ignore[misc]
        protocol = "az"
        store: ClassVar[dict[str, Any]] = {}
        pseudo_dirs: ClassVar[list[str]] = [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("az://").strip("/")

    monkeypatch.setattr(clients, "_create_fsspec", lambda *_: Azure())
    monkeypatch.setattr(lease_lock, "SETTLE_SECONDS", 0.0)
    clients._fsspec_client.cache_clear()
    for output in ("az://box/out.parquet", "az://box/folder/"):
        result = jobs.run("encode", workspace / "rows.jsonl", output, *encode_options(workspace), "--stop-after", 60)
        assert result.code == 75, result.err
        assert jobs.run("encode", workspace / "rows.jsonl", output, *encode_options(workspace)).code == 0
        assert jobs.run("verify", output, workspace / "rows.jsonl").code == 0
    assert Azure().cat_file("/box/out.parquet") == (workspace / "whole.parquet").read_bytes()
    assert [
        name for name in Azure.store if "_lock" in name or ("part-0000" in name and "folder/part" not in name)
    ] == []
    assert storage.expand_inputs(["az://box/*.parquet"]) == ("az://box/out.parquet",)
    clients._fsspec_client.cache_clear()


# Ranges


def test_reading_on_takes_few_requests_and_a_look_takes_little() -> None:
    data = os.urandom(40 << 20)
    asked: list[int] = []

    def fetch(start: int, size: int) -> bytes:
        asked.append(size)
        return data[start : start + size]

    file = RangedFile("s3://b/a", len(data), fetch)
    assert file.read(100) == data[:100]
    assert asked == [MIN_WINDOW_BYTES]
    assert b"".join(iter(lambda: file.read(1 << 20), b"")) == data[100:]
    assert len(asked) < 20
    assert max(asked) <= MAX_WINDOW_BYTES
    file.seek(-8, 2)
    assert file.read() == data[-8:]
    assert file.read(1) == b""


def test_a_short_response_is_retried_and_reported_if_it_persists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.storage.ranged_file.PAUSE_SECONDS", 0.0)
    answers = [b"ab", b"abcd"]
    assert RangedFile("s3://b/a", 4, lambda *_: answers.pop(0)).read() == b"abcd"
    with pytest.raises(InputError, match="fewer bytes"):
        RangedFile("s3://b/a", 4, lambda *_: b"ab").read()


# Web servers


@pytest.mark.parametrize("mode", ["parts", "whole", "flaky"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_inputs_from_a_web_server(mode: str, name: str, workspace: Path, tmp_path: Path) -> None:
    with web_server.serve_folder(workspace, mode) as host:
        result = jobs.run("encode", f"http://{host}/{name}", tmp_path / "out.parquet", *encode_options(workspace))
    assert (result.code, result.err) == (0, "")
    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(workspace / "whole.parquet"))


@pytest.mark.parametrize("place_of", ["http://{host}/{name}?token={secret}", "http://me:{secret}@{host}/{name}"])
def test_no_secret_is_shown_or_recorded(place_of: str, workspace: Path, tmp_path: Path) -> None:
    secret, out = web_server.TOKEN, tmp_path / "out"
    out.mkdir()
    (tmp_path / "private.jsonl").write_bytes((workspace / "rows.jsonl").read_bytes() + b"nonsense\n")
    loud = [flag for flag in encode_options(workspace) if flag != "-q"]
    with web_server.serve_folder(tmp_path) as host:
        address = place_of.format(host=host, secret=secret, name="private.jsonl")
        wrong = place_of.format(host=host, secret=secret, name="private-not.jsonl")
        result = [
            jobs.run("encode", address, out / "o.parquet", *loud, "--stop-after", 100, "--report", out / "report.json"),
            jobs.run_apart("encode", address, out / "o.parquet", *loud, "-v"),
            jobs.run("encode", wrong, out / "p.parquet", *loud),
            jobs.run("inspect", address),
        ]
    assert [one.code for one in result] == [75, 3, 2, 0]
    message = "".join(one.err + one.out for one in result)
    written = b"".join(path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file())
    assert secret not in message
    assert secret.encode() not in written
    assert "***" in message
    assert b"***" in written


def test_worker_processes_get_the_secret_of_an_address(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "private.jsonl").write_bytes((workspace / "rows.jsonl").read_bytes())
    with web_server.serve_folder(tmp_path) as host:
        address = f"http://{host}/private.jsonl?token={web_server.TOKEN}"
        result = jobs.run("encode", address, tmp_path / "out.parquet", *encode_options(workspace), "--workers", 2)
    assert (result.code, result.err) == (0, "")
    made = pq.read_table(tmp_path / "out.parquet").select(["id", "embedding"])
    assert made.equals(pq.read_table(workspace / "whole.parquet").select(["id", "embedding"]))


def test_web_servers_list_nothing_and_say_no(workspace: Path, tmp_path: Path) -> None:
    with web_server.serve_folder(workspace) as host:
        with pytest.raises(UsageError, match="web servers cannot list files"):
            storage.expand_inputs([f"http://{host}/*.jsonl"])
        with pytest.raises(UsageError, match="no such file"):
            storage.expand_inputs([f"http://{host}/nothing.jsonl"])
    with web_server.serve_folder(workspace, "denied") as host, pytest.raises(InputError, match="access is denied"):
        storage.expand_inputs([f"http://{host}/rows.jsonl"])
    with pytest.raises(InputError, match="cannot be reached"):
        storage.expand_inputs([f"http://{host}/rows.jsonl"])


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://h/a.jsonl?id=7&token=abc", "http://h/a.jsonl?id=7&token=***"),
        ("https://u:p@h:8/a?X-Amz-Signature=f&x=" + "y" * 30, "https://***@h:8/a?X-Amz-Signature=***&x=***"),
        ("s3://key:secret@b/a?b", "s3://***@b/a?b"),
        ("az://c@account/a", "az://c@account/a"),
        ("a?token=b", "a?token=b"),
    ],
)
def test_a_masked_address_shows_no_secret_and_still_carries_it(address: str, shown: str) -> None:
    masked = storage.mask_secrets(address)
    assert masked == shown
    assert f"{masked}" == shown
    assert json.dumps([masked]) == json.dumps([shown])
    assert storage.mask_secrets(masked) == shown
    assert url_redaction.unmasked(masked) == address
    assert url_redaction.unmasked(pickle.loads(pickle.dumps(masked))) == address  # noqa: S301
    assert url_redaction.mask_secrets_in_text(f"GET '{address}' failed") == (
        f"GET '{shown}' failed" if "://" in address else f"GET '{address}' failed"
    )
    # Nothing is remembered: the shown text alone does not lead back to the secret.
    assert url_redaction.unmasked(str(masked)) == shown


def test_two_addresses_that_look_the_same_keep_their_own_secrets() -> None:
    one, two = (storage.mask_secrets(f"http://h/a.jsonl?token={secret}") for secret in ("first", "second"))
    assert one == two == "http://h/a.jsonl?token=***"
    assert url_redaction.unmasked(one) == "http://h/a.jsonl?token=first"
    assert url_redaction.unmasked(two) == "http://h/a.jsonl?token=second"
