"""Milvus for the contract tests: a file of Milvus Lite, and its server."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from database_backend import TABLE, Backend
from embedcli.databases.payloads import NAMESPACE
from local_servers import free_port, start_server, stop_server


class MilvusBackend(Backend):
    packages = ("pymilvus", "milvus_lite")
    module = "embedcli.databases.milvus"
    refusal = "milvus.db: another load is running (process "
    reserved = ("docs__v1", "docs__v2")
    neighbours = ("{}__v1", "{}__v2")
    kinds = ("dense", "sparse")
    has_index = True

    @property
    def place(self) -> str:
        return str(self.folder / "milvus.db")

    @property
    def address(self) -> str:
        return f"milvus:{self.place}"

    @contextmanager
    def connect(self) -> Iterator[Any]:
        from milvus_lite.server_manager import server_manager_instance
        from pymilvus import MilvusClient

        client = MilvusClient(self.place)
        yield client
        client.close()
        server_manager_instance.release_server(self.place)

    def ids(self, table: str = TABLE, column: str = "id") -> list[Any]:
        with self.connect() as client:
            client.load_collection(table)
            return [row[column] for row in client.query(table, filter="", limit=10_000, output_fields=[column])]

    def delete(self, id: str, table: str = TABLE) -> None:
        with self.connect() as client:
            client.load_collection(table)
            client.delete(table, ids=[str(uuid.uuid5(NAMESPACE, id))])

    def change_vector(self, id: str, vector: Sequence[Any], table: str = TABLE) -> None:
        with self.connect() as client:
            client.load_collection(table)
            (row,) = client.get(table, ids=[str(uuid.uuid5(NAMESPACE, id))], output_fields=["*"])
            client.upsert(table, [{**row, "embedding": list(vector)}])

    def repeat(self, id: str, table: str = TABLE) -> None:
        with self.connect() as client:
            client.load_collection(table)
            (row,) = client.get(table, ids=[str(uuid.uuid5(NAMESPACE, id))], output_fields=["*"])
            client.upsert(table, [{**row, "row_key": "1"}])

    def create_foreign_table(self, table: str = TABLE) -> None:
        with self.connect() as client:
            client.create_collection(table, dimension=2, id_type="string", max_length=100)
            client.insert(table, [{"id": "theirs", "vector": [1.0, 0.0]}])


class MilvusServerBackend(MilvusBackend):
    """A server of its own, by `milvus-lite`."""

    refusal = ""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        where = ["--data-dir", str(folder / "server.db"), "--host", "127.0.0.1", "--port", str(self.port)]
        self.server = start_server([sys.executable, "-m", "milvus_lite", "server", *where], self.port)

    def close(self) -> None:
        stop_server(self.server)

    @property
    def place(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"milvus://127.0.0.1:{self.port}"
