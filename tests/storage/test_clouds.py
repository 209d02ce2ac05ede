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
    with clouds.run_server(request.param) as made:
        yield made


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, rows.jsonl, and the output of a local run as `whole.parquet`."""
    folder = tmp_path_factory.mktemp("place")
    jobs.word_model(folder)
    jobs.write_jsonl(folder / "rows.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=100)
    assert jobs.run("encode", folder / "rows.jsonl", folder / "whole.parquet", *encode_options(folder)).code == 0
    return folder


def encode_options(workspace: Path) -> list[object]:
    return ["-m", workspace / "words.txt", "--chunk-rows", 20, "-q"]


def encode(cloud: clouds.Cloud, workspace: Path, *arguments: object, **environment: str) -> jobs.Ended:
    return jobs.run_apart(
        "encode", *arguments, *encode_options(workspace), stdin=None, **(cloud.environment | environment)
    )


@pytest.fixture
def cloud_in_process(cloud: clouds.Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[clouds.Cloud]:
    """The cloud as this process finds it."""
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    clear_clients()
    yield cloud
    clear_clients()


def clear_clients() -> None:
    clients._arrow_client.cache_clear()
    clients._fsspec_client.cache_clear()


def is_local_output(data: bytes, workspace: Path) -> bool:
    return data == (workspace / "whole.parquet").read_bytes()


def read_vectors(path: Path) -> pa.Table:
    return pq.read_table(path).select(["id", "embedding"])


# Inputs and outputs


def test_every_format_folders_and_globs_are_read(
    cloud_in_process: clouds.Cloud, workspace: Path, tmp_path: Path
) -> None:
    data = (workspace / "rows.jsonl").read_bytes()
    lines = data.splitlines(keepends=True)
    cloud_in_process.put("in/one.jsonl.gz", gzip.compress(data))
    cloud_in_process.put("in/one.parquet", (workspace / "rows.parquet").read_bytes())
    cloud_in_process.put("in/many/a-2.jsonl", b"".join(lines[:100]))
    cloud_in_process.put("in/many/a-10.jsonl", b"".join(lines[100:]))
    cloud_in_process.put("in/many/_x.jsonl", b"nonsense")
    for number, name in enumerate(["one.jsonl.gz", "one.parquet", "many", "*/a-*.jsonl"]):
        output = tmp_path / f"{number}.parquet"
        result = jobs.run("encode", cloud_in_process.address(f"in/{name}"), output, *encode_options(workspace))
        assert (result.code, result.err) == (0, ""), name
        assert read_vectors(output).equals(read_vectors(workspace / "whole.parquet")), name


@pytest.mark.parametrize("name", ["a b+c%20é.parquet", "folder/"])
def test_an_output_is_what_a_local_run_writes_and_can_be_read_back(
    name: str, cloud_in_process: clouds.Cloud, workspace: Path, tmp_path: Path
) -> None:
    output = cloud_in_process.address(f"out/{name}")
    report = cloud_in_process.address("out/r.json")
    for _ in range(2):
        result = jobs.run("encode", workspace / "rows.jsonl", output, *encode_options(workspace), "--report", report)
        assert (result.code, result.err) == (0, "")
    local = tmp_path / name
    assert jobs.run("encode", workspace / "rows.jsonl", f"{tmp_path}/{name}", *encode_options(workspace)).code == 0
    made = {key.removeprefix(f"out/{name}"): cloud_in_process.get(key) for key in cloud_in_process.names(f"out/{name}")}
    if local.is_dir():
        assert made.keys() == {path.name for path in local.iterdir()}
        assert all(made[path.name] == path.read_bytes() for path in local.glob("*.parquet"))
    else:
        assert made == {"": local.read_bytes()}
    assert json.loads(cloud_in_process.get("out/r.json"))["rows"]["read"] == 240
    assert jobs.run("verify", output, workspace / "rows.jsonl").code == 0


def test_shards_share_the_lock_and_the_last_one_merges(cloud_in_process: clouds.Cloud, workspace: Path) -> None:
    output = cloud_in_process.address("shards/out.parquet")
    with ExitStack() as held:
        held.callback(storage.acquire_lock(storage.join(f"{output}.parts", "_lock"), output, shared=True))
        first = jobs.run("encode", workspace / "rows.jsonl", output, *encode_options(workspace), "--shard", "1/2")
        assert (first.code, storage.exists(output)) == (0, False)
        whole = jobs.run("encode", workspace / "rows.jsonl", output, *encode_options(workspace))
        assert "another embedcli is writing" in whole.err
        assert whole.code == 1
    assert jobs.run("encode", workspace / "rows.jsonl", output, *encode_options(workspace), "--shard", "2/2").code == 0
    assert [name for name in cloud_in_process.names("shards/") if not name.endswith("/")] == ["shards/out.parquet"]
    made = pq.read_table(pa.BufferReader(cloud_in_process.get("shards/out.parquet"))).select(["id", "embedding"])
    assert made.equals(read_vectors(workspace / "whole.parquet"))


def test_an_object_that_changes_is_noticed(cloud_in_process: clouds.Cloud) -> None:
    cloud_in_process.put("change/a", b"one")
    before = storage.file_identity(cloud_in_process.address("change/a"))
    assert before["size"] == 3
    assert storage.file_identity(cloud_in_process.address("change/a")) == before
    cloud_in_process.put("change/a", b"two")
    assert storage.file_identity(cloud_in_process.address("change/a"))["version"] != before["version"]
    assert storage.file_identity(cloud_in_process.address("change/nothing")) == {}


# aiohttp would rather be given a file; the block is at hand.
@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
@pytest.mark.parametrize("size", [0, 1, 20 << 20])
def test_files_of_every_size_arrive_whole(size: int, cloud_in_process: clouds.Cloud) -> None:
    """The largest is uploaded in several requests."""
    data = os.urandom(size)
    with storage.write_atomically(cloud_in_process.address("sizes/a")) as out:
        out.write(data)
    assert cloud_in_process.get("sizes/a") == data
    with storage.open_seekable(cloud_in_process.address("sizes/a")) as source:
        assert source.read() == data


# Kills and leases


def start_and_stop(cloud: clouds.Cloud, workspace: Path, key: str, parts: int) -> subprocess.Popen[bytes]:
    """A command that has written so many parts, and was stopped there (SIGSTOP)."""
    command = jobs.command("encode", workspace / "rows.jsonl", cloud.address(key), *encode_options(workspace))
    process = subprocess.Popen(command, env=os.environ | cloud.environment, stderr=subprocess.PIPE)
    jobs.wait_for(lambda: sum("/part-" in name for name in cloud.names(key.rstrip("/"))) >= parts, process)
    process.send_signal(signal.SIGSTOP)
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def test_killed_and_run_again_gives_the_same(cloud: clouds.Cloud, workspace: Path, tmp_path: Path) -> None:
    """In between a second writer is refused."""
    process = start_and_stop(cloud, workspace, "kill/out.parquet", 3)
    try:
        second = encode(cloud, workspace, workspace / "rows.jsonl", cloud.address("kill/out.parquet"))
    finally:
        kill(process)
    assert second.code == 1
    assert f"another embedcli is writing {cloud.address('kill/out.parquet')}" in second.err
    assert "kill/out.parquet" not in cloud.names("kill/")
    result = encode(
        cloud, workspace, workspace / "rows.jsonl", cloud.address("kill/out.parquet"), "--report", tmp_path / "r"
    )
    assert (result.code, result.err) == (0, "")
    assert json.loads((tmp_path / "r").read_text())["rows"]["resumed"] >= 60
    assert is_local_output(cloud.get("kill/out.parquet"), workspace)
    assert [key for key in cloud.names("kill/") if "parts" in key or "_lock" in key] == []


def test_a_lease_of_another_machine_holds_while_it_is_fresh(
    cloud_in_process: clouds.Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_lock, "SETTLE_SECONDS", 0.0)
    cloud_in_process.put("lease/a", json.dumps({"token": "theirs", "host": "elsewhere", "pid": 1}).encode())
    with pytest.raises(OutputError, match="another embedcli is writing"):
        storage.acquire_lock(cloud_in_process.address("lease/a"), cloud_in_process.address("o"))
    monkeypatch.setattr(lease_lock, "LEASE_SECONDS", -1.0)
    storage.acquire_lock(cloud_in_process.address("lease/a"), cloud_in_process.address("o"))()
    assert json.loads(cloud_in_process.get("lease/a")) == {}


# Faults


def test_what_is_not_there(cloud_in_process: clouds.Cloud, workspace: Path, tmp_path: Path) -> None:
    store = {"az": "container", "gs": "bucket"}[cloud_in_process.scheme]
    rows, out = workspace / "rows.jsonl", tmp_path / "out.parquet"
    result = jobs.run("encode", cloud_in_process.address("nothing.jsonl"), out, *encode_options(workspace))
    assert (result.code, "no such file" in result.err) == (2, True), result.err
    for given in ("rows.jsonl", "folder/*.jsonl"):
        result = jobs.run("encode", f"{cloud_in_process.scheme}://none/{given}", out, *encode_options(workspace))
        assert (result.code, f"there is no {store}" in result.err) == (2, True), result.err
    for given in ("out.parquet", "out/"):
        result = jobs.run("encode", rows, f"{cloud_in_process.scheme}://none/{given}", *encode_options(workspace))
        assert (result.code, f"there is no such {store}" in result.err) == (1, True), result.err
    assert jobs.left_in(tmp_path) == []


def test_an_unreachable_server_is_reported_quickly(cloud: clouds.Cloud, workspace: Path) -> None:
    started_at = time.monotonic()
    result = encode(cloud, workspace, cloud.address("a.jsonl"), "-", **cloud.unreachable)
    assert (result.code, "cannot be reached" in result.err) == (1, True), result.err
    assert time.monotonic() - started_at < PATIENCE


def test_wrong_credentials_are_reported_and_not_shown(cloud: clouds.Cloud, workspace: Path) -> None:
    started_at = time.monotonic()
    for environment, secret in cloud.wrong:
        result = encode(cloud, workspace, workspace / "rows.jsonl", cloud.address("o.npy"), "-v", **environment)
        assert (result.code, "access is denied" in result.err or "credentials" in result.err) == (1, True), result.err
        assert secret not in result.err
    assert time.monotonic() - started_at < PATIENCE


# The Hugging Face Hub


@pytest.fixture(scope="module")
def hub(workspace: Path) -> Iterator[hub_server.Hub]:
    lines = (workspace / "rows.jsonl").read_bytes().splitlines(keepends=True)
    rows = {
        "rows.jsonl": b"".join(lines),
        "deep/rows.parquet": (workspace / "rows.parquet").read_bytes(),
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
    name: str, hub: hub_server.Hub, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(hub, monkeypatch)
    result = jobs.run("encode", f"hf://datasets/me/open/{name}", tmp_path / "o.parquet", *encode_options(workspace))
    assert (result.code, result.err) == (0, "")
    assert read_vectors(tmp_path / "o.parquet").equals(read_vectors(workspace / "whole.parquet"))


def use_hub(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find the hub: its client reads the environment only once, when it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address = f"http://{hub.address}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    clear_clients()


def encode_from_hub(hub: hub_server.Hub, workspace: Path, address: str, **environment: str) -> jobs.Ended:
    return jobs.run_apart(
        "encode", address, "-", *encode_options(workspace), stdin=None, **(hub.environment | environment)
    )


def test_a_command_finds_the_hub_by_its_environment(hub: hub_server.Hub, workspace: Path) -> None:
    result = encode_from_hub(hub, workspace, "hf://datasets/me/open/deep/rows.parquet", HF_TOKEN=hub_server.TOKEN)
    assert (result.code, len(result.out.splitlines()), result.err) == (0, 240, "")
    result = encode_from_hub(hub, workspace, "hf://datasets/me/nothing/rows.jsonl")
    assert (result.code, "hint: check the name, and log in" in result.err) == (1, True), result.err


@pytest.mark.parametrize(
    ("name", "token", "code", "message"),
    [
        ("datasets/me/gated/rows.jsonl", "", 1, "the repository is gated"),
        ("datasets/me/gated/rows.jsonl", hub_server.TOKEN, 1, "the repository is gated"),
        ("datasets/me/nothing/rows.jsonl", hub_server.TOKEN, 1, "there is no such repository or revision"),
        ("datasets/me/open@v9/rows.jsonl", "", 1, "there is no such repository or revision"),
        ("datasets/me/open/rows.jsonl", "hf_wr0ng", 1, "access is denied"),
        ("datasets/me/open/nothing.jsonl", "", 2, "no such file or folder"),
        ("datasets/me/open/*.csv", "", 2, "no file matches"),
        ("datasets/me", "", 2, "the repository is missing"),
    ],
)
def test_what_the_hub_refuses(
    name: str,
    token: str,
    code: int,
    message: str,
    hub: hub_server.Hub,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_hub(hub, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", token)
    result = jobs.run("encode", f"hf://{name}", "-", *encode_options(workspace))
    assert (result.code, message in result.err) == (code, True), result.err
    assert "hint: " in result.err
    assert not token or token not in result.err


def test_an_unreachable_hub_is_reported_quickly(hub: hub_server.Hub, workspace: Path) -> None:
    started_at = time.monotonic()
    result = encode_from_hub(hub, workspace, "hf://datasets/me/open/rows.jsonl", HF_ENDPOINT="http://127.0.0.1:9")
    assert (result.code, "cannot be reached" in result.err) == (1, True), result.err
    assert time.monotonic() - started_at < PATIENCE
