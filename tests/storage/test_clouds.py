"""az://, gs:// and hf:// against servers of this machine that answer: jobs, kills, refusals, faults."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clouds
import hub_server
import jobs
from embedcli import storage
from embedcli.core.errors import OutputError
from embedcli.storage import clients, lease_lock

ROWS = jobs.rows(240)
# What a refusal may take on a busy machine: a minute of silent retries would fail.
PATIENCE = 40.0


@pytest.fixture(scope="module", params=["az", "gs"])
def cloud(request: pytest.FixtureRequest) -> Iterator[clouds.Cloud]:
    with clouds.running(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows.jsonl, and the output of a local run as `whole.parquet`."""
    folder = tmp_path_factory.mktemp("place")
    jobs.word_model(folder)
    jobs.write_jsonl(folder / "rows.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=100)
    assert jobs.run("encode", folder / "rows.jsonl", folder / "whole.parquet", *flags(folder)).code == 0
    return folder


def flags(place: Path) -> list[object]:
    return ["-m", place / "words.txt", "--chunk-rows", 20, "-q"]


def encode(cloud: clouds.Cloud, place: Path, *arguments: object, **environment: str) -> jobs.Ended:
    return jobs.run_apart("encode", *arguments, *flags(place), stdin=None, **(cloud.environment | environment))


@pytest.fixture
def here(cloud: clouds.Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[clouds.Cloud]:
    """The cloud as this process finds it."""
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    forget()
    yield cloud
    forget()


def forget() -> None:
    clients._own.cache_clear()
    clients._fsspec.cache_clear()


def same(data: bytes, place: Path) -> bool:
    return data == (place / "whole.parquet").read_bytes()


def vectors(path: Path) -> pa.Table:
    return pq.read_table(path).select(["id", "embedding"])


# Inputs and outputs


def test_every_format_folders_and_globs_are_read(here: clouds.Cloud, place: Path, tmp_path: Path) -> None:
    data = (place / "rows.jsonl").read_bytes()
    lines = data.splitlines(keepends=True)
    here.put("in/one.jsonl.gz", gzip.compress(data))
    here.put("in/one.parquet", (place / "rows.parquet").read_bytes())
    here.put("in/many/a-2.jsonl", b"".join(lines[:100]))
    here.put("in/many/a-10.jsonl", b"".join(lines[100:]))
    here.put("in/many/_x.jsonl", b"nonsense")
    for number, name in enumerate(["one.jsonl.gz", "one.parquet", "many", "*/a-*.jsonl"]):
        output = tmp_path / f"{number}.parquet"
        done = jobs.run("encode", here.address(f"in/{name}"), output, *flags(place))
        assert (done.code, done.err) == (0, ""), name
        assert vectors(output).equals(vectors(place / "whole.parquet")), name


@pytest.mark.parametrize("name", ["a b+c%20é.parquet", "folder/"])
def test_an_output_is_what_a_local_run_writes_and_can_be_read_back(
    name: str, here: clouds.Cloud, place: Path, tmp_path: Path
) -> None:
    output = here.address(f"out/{name}")
    report = here.address("out/r.json")
    for _ in range(2):
        done = jobs.run("encode", place / "rows.jsonl", output, *flags(place), "--report", report)
        assert (done.code, done.err) == (0, "")
    local = tmp_path / name
    assert jobs.run("encode", place / "rows.jsonl", f"{tmp_path}/{name}", *flags(place)).code == 0
    made = {key.removeprefix(f"out/{name}"): here.get(key) for key in here.names(f"out/{name}")}
    if local.is_dir():
        assert made.keys() == {path.name for path in local.iterdir()}
        assert all(made[path.name] == path.read_bytes() for path in local.glob("*.parquet"))
    else:
        assert made == {"": local.read_bytes()}
    assert json.loads(here.get("out/r.json"))["rows"]["read"] == 240
    assert jobs.run("verify", output, place / "rows.jsonl").code == 0


def test_shards_share_the_lock_and_the_last_one_merges(here: clouds.Cloud, place: Path) -> None:
    output = here.address("shards/out.parquet")
    with ExitStack() as held:
        held.callback(storage.acquire_lock(storage.join(f"{output}.parts", "_lock"), output, shared=True))
        first = jobs.run("encode", place / "rows.jsonl", output, *flags(place), "--shard", "1/2")
        assert (first.code, storage.exists(output)) == (0, False)
        whole = jobs.run("encode", place / "rows.jsonl", output, *flags(place))
        assert "another embedcli is writing" in whole.err
        assert whole.code == 1
    assert jobs.run("encode", place / "rows.jsonl", output, *flags(place), "--shard", "2/2").code == 0
    assert [name for name in here.names("shards/") if not name.endswith("/")] == ["shards/out.parquet"]
    made = pq.read_table(pa.BufferReader(here.get("shards/out.parquet"))).select(["id", "embedding"])
    assert made.equals(vectors(place / "whole.parquet"))


def test_an_object_that_changes_is_noticed(here: clouds.Cloud) -> None:
    here.put("change/a", b"one")
    before = storage.file_identity(here.address("change/a"))
    assert before["size"] == 3
    assert storage.file_identity(here.address("change/a")) == before
    here.put("change/a", b"two")
    assert storage.file_identity(here.address("change/a"))["version"] != before["version"]
    assert storage.file_identity(here.address("change/nothing")) == {}


# aiohttp would rather be given a file; the block is at hand.
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
@pytest.mark.parametrize("size", [0, 1, 20 << 20])
def test_files_of_every_size_arrive_whole(size: int, here: clouds.Cloud) -> None:
    """The largest is uploaded in several requests."""
    data = os.urandom(size)
    with storage.write_atomically(here.address("sizes/a")) as out:
        out.write(data)
    assert here.get("sizes/a") == data
    with storage.open_seekable(here.address("sizes/a")) as source:
        assert source.read() == data


# Kills and leases


def started(cloud: clouds.Cloud, place: Path, key: str, parts: int) -> subprocess.Popen[bytes]:
    """A command that has written so many parts, and was stopped there (SIGSTOP)."""
    command = jobs.command("encode", place / "rows.jsonl", cloud.address(key), *flags(place))
    process = subprocess.Popen(command, env=os.environ | cloud.environment, stderr=subprocess.PIPE)
    jobs.wait_for(lambda: sum("/part-" in name for name in cloud.names(key.rstrip("/"))) >= parts, process)
    process.send_signal(signal.SIGSTOP)
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_killed_and_run_again_gives_the_same(cloud: clouds.Cloud, place: Path, tmp_path: Path) -> None:
    """In between a second writer is refused."""
    process = started(cloud, place, "kill/out.parquet", 3)
    try:
        second = encode(cloud, place, place / "rows.jsonl", cloud.address("kill/out.parquet"))
    finally:
        kill(process)
    assert second.code == 1
    assert f"another embedcli is writing {cloud.address('kill/out.parquet')}" in second.err
    assert "kill/out.parquet" not in cloud.names("kill/")
    done = encode(cloud, place, place / "rows.jsonl", cloud.address("kill/out.parquet"), "--report", tmp_path / "r")
    assert (done.code, done.err) == (0, "")
    assert json.loads((tmp_path / "r").read_text())["rows"]["resumed"] >= 60
    assert same(cloud.get("kill/out.parquet"), place)
    assert [key for key in cloud.names("kill/") if "parts" in key or "_lock" in key] == []


def test_a_lease_of_another_machine_holds_while_it_is_fresh(
    here: clouds.Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_lock, "SETTLE_SECONDS", 0.0)
    here.put("lease/a", json.dumps({"token": "theirs", "host": "elsewhere", "pid": 1}).encode())
    with pytest.raises(OutputError, match="another embedcli is writing"):
        storage.acquire_lock(here.address("lease/a"), here.address("o"))
    monkeypatch.setattr(lease_lock, "LEASE_SECONDS", -1.0)
    storage.acquire_lock(here.address("lease/a"), here.address("o"))()
    assert json.loads(here.get("lease/a")) == {}


# Faults


def test_what_is_not_there(here: clouds.Cloud, place: Path, tmp_path: Path) -> None:
    store = {"az": "container", "gs": "bucket"}[here.scheme]
    rows, out = place / "rows.jsonl", tmp_path / "out.parquet"
    done = jobs.run("encode", here.address("nothing.jsonl"), out, *flags(place))
    assert (done.code, "no such file" in done.err) == (2, True), done.err
    for given in ("rows.jsonl", "folder/*.jsonl"):
        done = jobs.run("encode", f"{here.scheme}://none/{given}", out, *flags(place))
        assert (done.code, f"there is no {store}" in done.err) == (2, True), done.err
    for given in ("out.parquet", "out/"):
        done = jobs.run("encode", rows, f"{here.scheme}://none/{given}", *flags(place))
        assert (done.code, f"there is no such {store}" in done.err) == (1, True), done.err
    assert jobs.left_in(tmp_path) == []


def test_an_unreachable_server_is_told_soon(cloud: clouds.Cloud, place: Path) -> None:
    begun = time.monotonic()
    done = encode(cloud, place, cloud.address("a.jsonl"), "-", **cloud.unreachable)
    assert (done.code, "cannot be reached" in done.err) == (1, True), done.err
    assert time.monotonic() - begun < PATIENCE


def test_wrong_credentials_are_told_and_not_shown(cloud: clouds.Cloud, place: Path) -> None:
    begun = time.monotonic()
    for environment, secret in cloud.wrong:
        done = encode(cloud, place, place / "rows.jsonl", cloud.address("o.npy"), "-v", **environment)
        assert (done.code, "access is denied" in done.err or "credentials" in done.err) == (1, True), done.err
        assert secret not in done.err
    assert time.monotonic() - begun < PATIENCE


# The Hugging Face Hub


@pytest.fixture(scope="module")
def hub(place: Path) -> Iterator[hub_server.Hub]:
    lines = (place / "rows.jsonl").read_bytes().splitlines(keepends=True)
    rows = {
        "rows.jsonl": b"".join(lines),
        "deep/rows.parquet": (place / "rows.parquet").read_bytes(),
        "many/a-2.jsonl": b"".join(lines[:50]),
        "many/a-10.jsonl": b"".join(lines[50:100]),
        "many/a-11.jsonl": b"".join(lines[100:200]),
        "many/a-12.jsonl": b"".join(lines[200:]),
    }
    files = {f"me/open/{name}": data for name, data in rows.items()}
    with hub_server.running(files | {"me/gated/rows.jsonl": b"".join(lines)}, frozenset({"me/gated"})) as made:
        yield made


@pytest.mark.parametrize("name", ["rows.jsonl", "deep/rows.parquet", "many", "many/a-*.jsonl", "**/*.parquet"])
def test_a_data_set_is_read(
    name: str, hub: hub_server.Hub, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(hub, monkeypatch)
    done = jobs.run("encode", f"hf://datasets/me/open/{name}", tmp_path / "o.parquet", *flags(place))
    assert (done.code, done.err) == (0, "")
    assert vectors(tmp_path / "o.parquet").equals(vectors(place / "whole.parquet"))


def use(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find the hub: its client reads the environment only once, when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address = f"http://{hub.address}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    forget()


def from_hub(hub: hub_server.Hub, place: Path, address: str, **environment: str) -> jobs.Ended:
    return jobs.run_apart("encode", address, "-", *flags(place), stdin=None, **(hub.environment | environment))


def test_a_command_finds_the_hub_by_its_environment(hub: hub_server.Hub, place: Path) -> None:
    done = from_hub(hub, place, "hf://datasets/me/open/deep/rows.parquet", HF_TOKEN=hub_server.TOKEN)
    assert (done.code, len(done.out.splitlines()), done.err) == (0, 240, "")
    done = from_hub(hub, place, "hf://datasets/me/nothing/rows.jsonl")
    assert (done.code, "hint: check the name, and log in" in done.err) == (1, True), done.err


@pytest.mark.parametrize(
    ("name", "token", "code", "told"),
    [
        ("datasets/me/gated/rows.jsonl", "", 1, "the repository is gated"),
        ("datasets/me/gated/rows.jsonl", hub_server.TOKEN, 1, "the repository is gated"),
        ("datasets/me/nothing/rows.jsonl", hub_server.TOKEN, 1, "there is no such repository or revision"),
        ("datasets/me/open@v9/rows.jsonl", "", 1, "there is no such repository or revision"),
        ("datasets/me/open/rows.jsonl", "hf_wr0ng", 1, "access is denied"),
        ("datasets/me/open/nothing.jsonl", "", 2, "no such file or folder"),
        ("datasets/me/open/*.csv", "", 2, "no file matches"),
        ("datasets/me", "", 2, "names no repository"),
    ],
)
def test_what_the_hub_refuses(
    name: str, token: str, code: int, told: str, hub: hub_server.Hub, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(hub, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", token)
    done = jobs.run("encode", f"hf://{name}", "-", *flags(place))
    assert (done.code, told in done.err) == (code, True), done.err
    assert "hint: " in done.err
    assert not token or token not in done.err


def test_an_unreachable_hub_is_told_soon(hub: hub_server.Hub, place: Path) -> None:
    begun = time.monotonic()
    done = from_hub(hub, place, "hf://datasets/me/open/rows.jsonl", HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.code, "cannot be reached" in done.err) == (1, True), done.err
    assert time.monotonic() - begun < PATIENCE
