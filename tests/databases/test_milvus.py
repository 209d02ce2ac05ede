"""What only Milvus has: aliases, keys as UUIDs, a limit for dynamic fields, files that are folders."""

from __future__ import annotations

import errno
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embedcli.cli import app
from embedcli.core.errors import OutputError, UsageError
from embedcli.databases import connect, disk_space, parse_target
from embedcli.databases.milvus import server_url
from embedcli.databases.payloads import NAMESPACE
from local_servers import free_port
from milvus_backends import MilvusBackend
from sample_outputs import make_output, sparse_vectors, unit_vectors

IDS = [f"r{i}" for i in range(6)]


@pytest.fixture
def database(tmp_path: Path) -> MilvusBackend:
    return MilvusBackend(tmp_path)


def load(output: Path, database: MilvusBackend, *options: str) -> Any:
    return CliRunner().invoke(app, ["load", str(output), database.address, "--table", "docs", *options])


def verify(output: Path, database: MilvusBackend) -> int:
    command = ["verify", str(output), database.address, "--table", "docs", "--all"]
    return int(CliRunner().invoke(app, command).exit_code)


def test_an_address_names_file_or_server() -> None:
    address = parse_target("milvus://db.example/docs")
    assert (address.table, server_url(address)) == ("docs", "http://db.example:19530")
    assert server_url(parse_target("milvus+https://[::1]:1/docs")) == "https://[::1]:1"
    with pytest.raises(UsageError) as error:
        server_url(parse_target("milvus://db.example/docs?x=1"))
    assert "use milvus://HOST:PORT/COLLECTION" in error.value.hint
    with pytest.raises(UsageError, match="the address has a password"):
        parse_target("milvus://token@db.example/docs")


@pytest.mark.parametrize(
    ("name", "said"), [("vectors", "ends with .db"), ("old.db", "keeps a folder"), ("missing.db", "there is no such")]
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "old.db").write_bytes(b"SQLite format 3\0")
    with pytest.raises(UsageError, match=said):
        connect(parse_target(f"milvus:{tmp_path / name}"), read_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.db"]


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.databases.milvus.TIMEOUT_SECONDS", 1)
    address = f"milvus://127.0.0.1:{free_port()}/docs"
    with pytest.raises(OutputError) as error:
        connect(parse_target(address))
    assert error.value.message.startswith(f"{address}: Fail connecting to server")
    assert "MILVUS_TOKEN" in error.value.hint


def test_a_file_that_is_open_elsewhere_is_named(tmp_path: Path, database: MilvusBackend) -> None:
    import subprocess
    import sys

    output = make_output(tmp_path / "out.parquet", unit_vectors(6, 8), ids=IDS)
    assert load(output, database).exit_code == 0
    command = ["-m", "embedcli", "verify", str(output), database.address, "--table", "docs"]
    with database.connect():
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "another program has opened it, and only one at a time can" in done.stderr
    assert "Traceback" not in done.stderr


# The engine leaves its log open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_disk_that_fills_up_within_a_batch_is_named(
    tmp_path: Path, database: MilvusBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Milvus Lite gives back what it could not finish, so that some megabytes are free again afterwards."""
    flush = pytest.importorskip("milvus_lite.engine.flush")
    output = make_output(tmp_path / "out.parquet", unit_vectors(6, 8), ids=IDS)
    sizes = iter([1 << 40] * 2)  # before the table, before the rows
    monkeypatch.setattr(disk_space, "count_free_bytes", lambda path: next(sizes, 19 << 20))

    def write_data_file(*arguments: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(flush, "write_data_file", write_data_file)
    done = load(output, database)
    assert done.exit_code == 1
    assert "No space left on device; 19.0 MB are left on the disk" in done.stderr
    assert "hint: free some space, and run the same command again" in done.stderr
    monkeypatch.undo()
    assert load(output, database).exit_code == 0
    assert sorted(database.ids()) == sorted(IDS)


def test_a_swap_leaves_one_collection_behind_an_alias(tmp_path: Path, database: MilvusBackend) -> None:
    for seed in range(3):
        output = make_output(tmp_path / "out.parquet", unit_vectors(6, 8, seed=seed), ids=IDS)
        assert load(output, database, "--swap").exit_code == 0
        assert names(database) == 1
    with database.connect() as client:
        for name, properties in (
            ("docs__v8", {"mine": "x"}), ("docs__v9", {"embedcli": json.dumps({"format": 1})}),
        ):  # fmt: skip
            client.create_collection(name, dimension=2, properties=properties)
            client.insert(name, [{"id": 1, "vector": [1.0, 0.0]}])
    assert load(output, database, "--swap").exit_code == 0
    output = make_output(tmp_path / "out.parquet", unit_vectors(6, 8, seed=9), ids=IDS)
    assert load(output, database, "--swap").exit_code == 0
    with database.connect() as client:
        assert "docs__v8" in client.list_collections()
        assert "docs__v9" not in client.list_collections()
    assert names(database) == 2


def names(database: MilvusBackend) -> int:
    with database.connect() as client:
        assert client.list_aliases(client.describe_alias("docs")["collection_name"])["aliases"] == ["docs"]
        return len(client.list_collections())


def test_other_programs_can_compute_the_keys(tmp_path: Path, database: MilvusBackend) -> None:
    ids = ['"] or 1 == 1 or row_key in ["', "ü"]
    output = make_output(tmp_path / "out.parquet", unit_vectors(2, 8), ids=ids, kept={"n": [1, 2]})
    assert load(output, database).exit_code == 0
    with database.connect() as client:
        client.load_collection("docs")
        (row,) = client.get("docs", [str(uuid.uuid5(NAMESPACE, "ü"))], output_fields=["id", "n"])
    assert (row["id"], row["n"]) == ("ü", 2)
    assert verify(output, database) == 0


def test_rows_that_are_too_large_are_rejected(tmp_path: Path, database: MilvusBackend) -> None:
    kept = {"text": ["short", "x" * 70_000, "x" * 50_000]}
    output = make_output(tmp_path / "out.parquet", unit_vectors(3, 20_000), ids=IDS[:3], kept=kept)
    assert load(output, database).exit_code == 3
    assert sorted(database.ids()) == ["r0", "r2"]
    assert verify(output, database) == 0


def test_values_come_back(tmp_path: Path, database: MilvusBackend) -> None:
    random = np.random.default_rng(5).standard_normal(6)
    kept: dict[str, list[Any]] = {
        "ratio": [float("inf"), -float("inf"), float("nan"), *random[3:].tolist()],
        "tags": [["a", None], [], None, ["b"], ["c"], ["d"]],
        "place": [{"city": "Zürich", "zip": 8000}] * 6,
        "big": [2**62 + i for i in range(6)],
    }
    vectors = unit_vectors(6, 8) * np.arange(1, 7, dtype=np.float32)[:, None]
    output = make_output(tmp_path / "out.parquet", vectors, ids=IDS, kept=kept, space={"normalize": False})
    assert load(output, database).exit_code == 0
    assert verify(output, database) == 0
    with database.connect() as client:
        client.load_collection("docs")
        assert len(client.query("docs", filter='place["zip"] == 8000', output_fields=["id"])) == 6


def test_sparse_vectors_are_searched_by_the_dot_product(tmp_path: Path, database: MilvusBackend) -> None:
    from embedcli.databases.record import parse_record

    vectors = sparse_vectors(6, 50)
    output = make_output(tmp_path / "out.parquet", vectors, ids=IDS)
    assert load(output, database, "--index").exit_code == 0
    scores = vectors.to_dense() @ vectors[:1].to_dense()[0]
    with connect(parse_target(database.address, "docs"), read_only=True) as target:
        record = target.read_record("docs")
        assert record is not None
        found = target.find_nearest("docs", parse_record(record, "docs").layout, vectors[:1], 1, ["id", "embedding"])
    assert found.column("id").to_pylist() == [IDS[int(np.argmax(scores))]]
    assert found.column("embedding")[0].as_py()["indices"] == vectors[:1].indices.tolist()
