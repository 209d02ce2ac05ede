"""What only Chroma has: documents, metadata that it merges, no names for ids that are empty."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from chroma_backends import ChromaBackend
from embedcli.cli import app
from embedcli.core.errors import OutputError, UsageError
from embedcli.databases import connect, parse_target
from embedcli.databases.chroma import REQUEST_ROWS, server_arguments
from sample_outputs import make_output, unit_vectors

IDS = [f"r{i}" for i in range(6)]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[ChromaBackend]:
    made = ChromaBackend(tmp_path)
    yield made
    made.close()


def load(output: Path, database: ChromaBackend, *options: str) -> Any:
    command = ["load", str(output), database.address, "--table", "docs", *options]
    return CliRunner().invoke(app, command)


def verify(output: Path, database: ChromaBackend) -> int:
    command = ["verify", str(output), database.address, "--table", "docs", "--all"]
    return int(CliRunner().invoke(app, command).exit_code)


def test_an_address_names_folder_or_server() -> None:
    address = parse_target("chroma:some/folder")
    assert (address.location, address.table) == ("some/folder", "embeddings")
    address = parse_target("chroma+https://db.example/docs")
    assert (address.scheme, address.table) == ("chroma", "docs")
    assert server_arguments(address) == {"host": "db.example", "port": 8000, "ssl": True}
    with pytest.raises(UsageError) as error:
        server_arguments(parse_target("chroma://db.example/docs?x=1"))
    assert "use chroma://HOST:PORT/COLLECTION" in error.value.hint


def test_a_server_that_does_not_answer_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(OutputError, match=f"chroma://127.0.0.1:{port}"):
        connect(parse_target(f"chroma://127.0.0.1:{port}/docs"))


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder of Chroma"):
        connect(parse_target(f"chroma:{tmp_path}"), read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_has_one_writer(tmp_path: Path, database: ChromaBackend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(6, 8), ids=IDS)
    with connect(parse_target(database.address, "docs")):
        done = load(output, database)
        assert f"another load is running (process {os.getpid()})" in done.stderr
        assert "choose another output" not in done.stderr
    assert load(output, database).exit_code == 0


def test_requests_are_short_so_that_a_signal_does_not_wait(
    tmp_path: Path, database: ChromaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chromadb import Collection

    sizes: list[int] = []
    upsert = Collection.upsert

    def count(self: Any, ids: Any, *values: Any, **named: Any) -> None:
        sizes.append(len(ids))
        upsert(self, ids, *values, **named)

    monkeypatch.setattr(Collection, "upsert", count)
    ids = [f"r{i}" for i in range(600)]
    assert load(make_output(tmp_path / "out.parquet", unit_vectors(600, 8), ids=ids), database).exit_code == 0
    assert sum(sizes) == 600
    assert max(sizes) <= REQUEST_ROWS


def test_texts_become_documents(tmp_path: Path, database: ChromaBackend) -> None:
    kept: dict[str, list[Any]] = {"text": ["one", "two", None, "", "five", "six"], "n": [1, None, 3, 4, 5, 6]}
    output = make_output(tmp_path / "out.parquet", unit_vectors(6, 8), ids=IDS, kept=kept)
    assert load(output, database).exit_code == 0
    assert read(database) == {
        "r0": ("one", 1), "r1": ("two", None), "r2": (None, 3), "r3": ("", 4), "r4": ("five", 5), "r5": ("six", 6),
    }  # fmt: skip
    assert verify(output, database) == 0
    # Chroma keeps what a changed row does not mention.
    kept = {"text": [None, "zwei", "three", None, "five", "six"], "n": [None, 2, 3, 4, 5, 6]}
    output = make_output(tmp_path / "out.parquet", unit_vectors(6, 8), ids=IDS, kept=kept)
    assert load(output, database).exit_code == 0
    assert read(database) == {
        "r0": (None, None), "r1": ("zwei", 2), "r2": ("three", 3), "r3": (None, 4), "r4": ("five", 5), "r5": ("six", 6),
    }  # fmt: skip
    assert verify(output, database) == 0


def read(database: ChromaBackend) -> dict[str, tuple[Any, Any]]:
    with database.open("docs") as collection:
        found = collection.get(include=["metadatas", "documents"])
    rows = zip(found["ids"], found["documents"], found["metadatas"], strict=True)
    assert all("text" not in metadata for metadata in found["metadatas"])
    return {id: (document, metadata.get("n")) for id, document, metadata in rows}


def test_numbers_come_back(tmp_path: Path, database: ChromaBackend) -> None:
    random = np.random.default_rng(5).standard_normal(6)
    kept = {
        "ratio": [float("inf"), -float("inf"), float("nan"), *random[3:].tolist()],
        "small": pa_float32(random),
        "big": [2**62 + i for i in range(6)],
    }
    output = make_output(tmp_path / "out.parquet", unit_vectors(6, 8), ids=IDS, kept=kept)
    assert load(output, database).exit_code == 0
    assert verify(output, database) == 0


def pa_float32(values: Any) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.float32())


def test_vectors_of_other_lengths_are_normalized(tmp_path: Path, database: ChromaBackend) -> None:
    vectors = unit_vectors(6, 8) * np.arange(1, 7, dtype=np.float32)[:, None]
    output = make_output(tmp_path / "out.parquet", vectors, ids=IDS, space={"normalize": False})
    assert load(output, database).exit_code == 0
    assert verify(output, database) == 0
    with database.open("docs") as collection:
        found = collection.get(include=["embeddings"])["embeddings"]
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_an_empty_id_is_rejected(tmp_path: Path, database: ChromaBackend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(3, 8), ids=["a", "", "b"])
    assert load(output, database).exit_code == 3
    assert sorted(database.ids()) == ["a", "b"]
    (path,) = tmp_path.glob("out.parquet.load-rejects-chroma-*.jsonl")
    reject = json.loads(path.read_text("utf-8"))
    assert (reject["id"], reject["reason"]) == ("", "id is empty")
    assert verify(output, database) == 0


@pytest.mark.parametrize("name", ["$price", "#tag", "chroma:document"])
def test_columns_that_chroma_does_not_take_are_named(tmp_path: Path, database: ChromaBackend, name: str) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(3, 8), ids=IDS[:3], kept={name: ["x"] * 3})
    done = load(output, database)
    assert done.exit_code == 2
    assert repr(name) in done.stderr


def test_metadata_of_others_stays(tmp_path: Path, database: ChromaBackend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(6, 8), ids=IDS)
    load(output, database)
    with database.open("docs") as collection:
        collection.modify(metadata={**collection.metadata, "owner": "me"})
    output = make_output(tmp_path / "out.parquet", unit_vectors(6, 8, seed=1), ids=IDS)
    assert load(output, database).exit_code == 0
    with database.open("docs") as collection:
        assert collection.metadata["owner"] == "me"
    assert verify(output, database) == 0
