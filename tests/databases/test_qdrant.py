"""What only Qdrant has: aliases, ids made from keys, a key for the server, vectors whose lengths it would change."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from embedcli.cli import app
from embedcli.core.errors import OutputError, UsageError
from embedcli.databases import connect, parse_target
from embedcli.databases.qdrant import server_url
from qdrant_backends import NAMESPACE, QdrantBackend, QdrantEdgeBackend
from sample_outputs import make_output, sparse_vectors, unit_vectors

KINDS = {"qdrant": QdrantBackend, "qdrant-edge": QdrantEdgeBackend}
IDS = [f"r{i}" for i in range(20)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QdrantBackend]:
    made = QdrantBackend(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=sorted(KINDS))
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = KINDS[request.param](tmp_path)
    yield made
    made.close()


def run(*args: object) -> Any:
    return CliRunner().invoke(app, list(map(str, args)))


def load(output: Path, database: Any, *options: str) -> Any:
    return run("load", output, database.address, "--table", "docs", *options)


def verify(output: Path, database: Any) -> int:
    return int(run("verify", output, database.address, "--table", "docs", "--all").exit_code)


# Addresses


def test_an_address_names_server_and_collection() -> None:
    address = parse_target("qdrant://db.example:7000/docs")
    assert (address.scheme, address.table, server_url(address)) == ("qdrant", "docs", "http://db.example:7000")
    address = parse_target("qdrant+https://db.example", "docs")
    assert (address.scheme, address.table, server_url(address)) == ("qdrant", "docs", "https://db.example:6333")
    assert server_url(parse_target("qdrant://[::1]:1/docs")) == "http://[::1]:1"
    assert parse_target("qdrant://localhost/").table == "embeddings"


@pytest.mark.parametrize("text", ["qdrant://host/a/b", "qdrant://host/my-docs", "qdrant://host/1st"])
def test_a_collection_has_a_plain_name(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a table"):
        parse_target(text)


def test_two_names_of_a_collection_are_refused() -> None:
    with pytest.raises(UsageError, match="the address names the table 'docs'"):
        parse_target("qdrant://host/docs", "other")
    assert parse_target("qdrant://host/docs", "docs").table == "docs"


@pytest.mark.parametrize("text", ["qdrant:folder", "qdrant://host/docs?x=1", "qdrant://host/docs#x"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as error:
        connect(parse_target(text))
    assert "use qdrant://HOST:PORT/COLLECTION" in error.value.hint


def test_a_server_that_does_not_answer_is_named(server: QdrantBackend) -> None:
    address = server.address
    server.close()
    with pytest.raises(OutputError, match="no usable answer") as error:
        connect(parse_target(address))
    assert address in error.value.message


# The server


def test_the_key_comes_from_the_environment(
    tmp_path: Path, server: QdrantBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=IDS)
    server.server.key = "hunter2"
    done = load(output, server)
    assert done.exit_code == 1
    assert "QDRANT_API_KEY" in done.stderr
    monkeypatch.setenv("QDRANT_API_KEY", "wrong")
    assert load(output, server).exit_code == 1
    monkeypatch.setenv("QDRANT_API_KEY", "hunter2")
    done = load(output, server)
    assert done.exit_code == 0
    assert "hunter2" not in done.stderr
    assert sorted(server.ids()) == sorted(IDS)


def test_a_key_that_travels_unencrypted_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "hunter2")
    monkeypatch.setattr("qdrant_client.QdrantClient.get_aliases", lambda client: None)
    for address, count in (("qdrant://h.example", 1), ("qdrant+https://h.example", 0), ("qdrant://127.0.0.1", 0)):
        with connect(parse_target(address)) as target:
            assert len(target.notes) == count


def test_a_busy_server_is_asked_again(tmp_path: Path, server: QdrantBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedcli.databases.sending.FIRST_DELAY_SECONDS", 0.01)
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=IDS)
    answer = server.server.answer

    def refuse_the_first_rows(method: str, path: str, body: bytes) -> tuple[int, Any]:
        if method == "PUT" and path.endswith("/points") and not server.server.busy:
            server.server.busy = 1
            monkeypatch.setattr(server.server, "answer", answer)
            return 503, "overloaded"
        return answer(method, path, body)

    monkeypatch.setattr(server.server, "answer", refuse_the_first_rows)
    done = load(output, server)
    assert done.exit_code == 0, done.stderr
    assert (server.server.busy, verify(output, server)) == (0, 0)


def test_a_swap_leaves_one_collection_behind_an_alias(tmp_path: Path, server: QdrantBackend) -> None:
    client = server.server.client
    for seed in range(3):
        output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8, seed=seed), ids=IDS)
        assert load(output, server, "--swap").exit_code == 0
        (alias,) = client.get_aliases().aliases
        (collection,) = client.get_collections().collections
        assert (alias.alias_name, alias.collection_name) == ("docs", collection.name)
    # A collection that a killed swap has left behind is removed by the next one; a collection of others stays.
    from qdrant_client.models import Distance, PointStruct, VectorParams

    left = {"embedcli": json.dumps({"format": 1})}
    client.create_collection("docs__v9", VectorParams(size=8, distance=Distance.DOT), metadata=left)
    client.create_collection("docs__v8", VectorParams(size=8, distance=Distance.DOT), metadata={"mine": "x"})
    client.create_collection("docs__v7", VectorParams(size=8, distance=Distance.DOT), metadata=left)
    for name in ("docs__v8", "docs__v9"):
        client.upsert(name, [PointStruct(id=1, vector=[0.0] * 8)])
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8, seed=9), ids=IDS)
    assert load(output, server, "--swap").exit_code == 0
    names = {collection.name for collection in client.get_collections().collections}
    assert names == {"docs__v7", "docs__v8", client.get_aliases().aliases[0].collection_name}
    assert verify(output, server) == 0


def test_metadata_of_others_stays(tmp_path: Path, server: QdrantBackend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=IDS)
    load(output, server)
    server.server.client.update_collection("docs", metadata={"owner": "me"})
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8, seed=1), ids=IDS)
    assert load(output, server).exit_code == 0
    metadata = server.server.client.get_collection("docs").config.metadata
    assert metadata is not None
    assert metadata["owner"] == "me"
    assert json.loads(metadata["embedcli"])["load"]["rows"] == 20


# Points


def test_other_programs_can_compute_the_ids(tmp_path: Path, server: QdrantBackend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(2, 8), ids=["a b", "ü"], kept={"n": [1, 2]})
    load(output, server)
    (point,) = server.server.client.retrieve("docs", [str(uuid.uuid5(NAMESPACE, "ü"))], with_payload=True)
    assert point.payload is not None
    assert (point.payload["id"], point.payload["n"]) == ("ü", 2)


def test_vectors_of_other_lengths_are_normalized(tmp_path: Path, database: Any) -> None:
    vectors = unit_vectors(20, 8) * np.arange(0, 20, dtype=np.float32)[:, None]
    output = make_output(tmp_path / "out.parquet", vectors, ids=IDS, space={"normalize": False})
    assert load(output, database).exit_code == 0
    assert verify(output, database) == 0
    found = read(database, IDS)
    assert np.allclose(np.linalg.norm(found, axis=1), [0] + [1] * 19, atol=1e-6)


def test_normalized_vectors_stay_what_they_are(tmp_path: Path, database: Any) -> None:
    for precision in ("float32", "float16"):
        vectors = unit_vectors(20, 100, seed=3)
        output = make_output(tmp_path / "out.parquet", vectors, ids=IDS, stored_as=precision)
        assert load(output, database, "--swap").exit_code == 0
        assert np.array_equal(read(database, IDS), vectors.astype(precision))


def read(database: Any, ids: list[str]) -> Any:
    import pyarrow as pa

    from embedcli.databases.record import parse_record

    with connect(parse_target(database.address, "docs"), read_only=True) as target:
        record = target.read_record("docs")
        assert record is not None
        layout = parse_record(record, "docs").layout
        rows = target.read_rows("docs", layout, pa.table({"id": ids})).sort_by("id")
    order = np.argsort(np.argsort(ids))
    return np.array(rows.column("embedding").to_pylist())[order]


def test_payloads_keep_numbers_and_lists(tmp_path: Path, database: Any) -> None:
    random = np.random.default_rng(5).standard_normal(20)
    kept: dict[str, list[Any]] = {
        "ratio": [float("inf"), -float("inf"), float("nan"), *random[3:].tolist()],
        "small": random.astype(np.float32).tolist(),
        "tags": [["a", "b"]] * 19 + [None],
        "place": [{"city": "Zürich", "zip": 8000}] * 20,
        "big": [2**62 + i for i in range(20)],
        "a.b[0]": IDS,
    }
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=IDS, kept=kept)
    assert load(output, database).exit_code == 0
    assert verify(output, database) == 0
    assert "nothing to do" in load(output, database).stderr


def test_an_id_column_with_a_point_in_its_name(tmp_path: Path, database: Any) -> None:
    import pyarrow.parquet as pq

    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=IDS)
    table = pq.read_table(output)
    names = ["a.id" if name == "id" else name for name in table.column_names]
    pq.write_table(table.rename_columns(names).replace_schema_metadata(table.schema.metadata), output)
    done = load(output, database)
    assert done.exit_code == 0, done.stderr
    assert verify(output, database) == 0
    assert sorted(database.ids(column="a.id")) == sorted(IDS)


def test_points_of_others_are_named(tmp_path: Path, server: QdrantBackend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=IDS)
    from qdrant_client.models import PointStruct

    load(output, server)
    server.server.client.upsert("docs", [PointStruct(id=1, vector=[0.0] * 8)])
    done = load(output, server)
    assert done.exit_code == 1
    assert "a row whose 'id' is missing" in done.stderr
    assert load(output, server, "--swap").exit_code == 0


def test_sparse_vectors_are_searched_by_the_dot_product(tmp_path: Path, database: Any) -> None:
    vectors = sparse_vectors(20, 50)
    output = make_output(tmp_path / "out.parquet", vectors, ids=IDS)
    assert load(output, database).exit_code == 0
    from embedcli.databases.record import parse_record

    scores = vectors.to_dense() @ vectors[:1].to_dense()[0]
    with connect(parse_target(database.address, "docs"), read_only=True) as target:
        record = target.read_record("docs")
        assert record is not None
        layout = parse_record(record, "docs").layout
        found = target.find_nearest("docs", layout, vectors[:1], 3, ["id", "embedding"])
    assert found.column("id").to_pylist() == [IDS[i] for i in np.argsort(-scores)[:3]]
    assert found.column("embedding")[0].as_py()["indices"] == vectors[:1].indices.tolist()


# The folder


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    database = QdrantEdgeBackend(tmp_path)
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=IDS)
    with connect(parse_target(database.address, "docs")):
        done = load(output, database)
    assert done.exit_code != 0
    assert f"{database.root}: another load is running (process {os.getpid()})" in done.stderr
    assert "hint: run the same command again when it has finished" in done.stderr
    assert load(output, database).exit_code == 0


def test_few_vectors_have_no_index_and_a_reason(tmp_path: Path) -> None:
    database = QdrantEdgeBackend(tmp_path)
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=IDS)
    done = load(output, database, "--index")
    assert done.exit_code == 0
    assert "none yet: vectors of less than 10 MB are compared with a query one by one" in done.stderr


def test_a_shard_that_is_in_use_is_named(tmp_path: Path) -> None:
    database = QdrantEdgeBackend(tmp_path)
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=IDS)
    assert load(output, database).exit_code == 0
    with database.open("docs"):
        done = load(output, database)
    assert done.exit_code == 1
    assert "another program has opened it, and only one at a time can" in done.stderr


def test_a_folder_of_others_is_left_alone(tmp_path: Path) -> None:
    database = QdrantEdgeBackend(tmp_path)
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=IDS)
    database.root.mkdir()
    outside = "../precious-01234567"
    for text in (
        "[]",
        "{",
        json.dumps({"tables": {"docs": {"folder": outside, "record": {}}}, "unused": []}),
        json.dumps({"tables": {}, "unused": [outside]}),
    ):
        (database.root / "embedcli.json").write_text(text)
        done = load(output, database, "--swap")
        assert done.exit_code == 2
        assert "was not written by `embedcli load`" in done.stderr


def test_a_swap_leaves_one_folder_and_those_of_others(tmp_path: Path) -> None:
    database = QdrantEdgeBackend(tmp_path)
    others = {"docs-1", "docs-01234567", "docs__new-1"}
    for name in others:
        (database.root / name).mkdir(parents=True)
        (database.root / name / "notes.txt").write_text("theirs")
    for seed in range(3):
        output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8, seed=seed), ids=IDS)
        assert load(output, database, "--swap").exit_code == 0
        names = {path.name for path in database.root.iterdir()} - {".embedcli-lock", "embedcli.json"}
        tables = json.loads((database.root / "embedcli.json").read_bytes())["tables"]
        assert {entry["folder"] for entry in tables.values()} == names - others
        assert list(tables) == ["docs"]
    assert all((database.root / name / "notes.txt").read_text() == "theirs" for name in others)


def test_a_folder_that_a_load_has_begun_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = QdrantEdgeBackend(tmp_path)
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=IDS)

    def fail(*args: object) -> None:
        raise RuntimeError("no space")

    with monkeypatch.context() as patch:
        patch.setattr("qdrant_edge.EdgeShard.create", fail)
        assert load(output, database, "--swap").exit_code == 1
    (begun,) = (path.name for path in database.root.iterdir() if path.is_dir())
    assert load(output, database, "--swap").exit_code == 0
    (folder,) = (path.name for path in database.root.iterdir() if path.is_dir())
    assert folder != begun
    lists = json.loads((database.root / "embedcli.json").read_bytes())
    assert ([entry["folder"] for entry in lists["tables"].values()], lists["unused"]) == ([folder], [])
