"""Chroma for the contract tests: a folder, and the server that its package brings."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from database_backend import TABLE, Backend
from local_servers import free_port, start_server, stop_server


class BaseChromaBackend(Backend):
    packages = ("chromadb",)
    module = "embedcli.databases.chroma"
    has_index = True
    can_swap = False
    reserved = ("ab", "_docs", "docs_")

    @abstractmethod
    def make_client(self) -> Any:
        """Return a client of its own."""

    @contextmanager
    def connect(self) -> Iterator[Any]:
        client = self.make_client()
        yield client
        client.close()
        for part in (client, client._admin_client):
            if hasattr(part._server, "_session"):
                part._server._session.close()

    @contextmanager
    def open(self, table: str) -> Iterator[Any]:
        with self.connect() as client:
            yield client.get_collection(table, embedding_function=None)

    def ids(self, table: str = TABLE, column: str = "id") -> list[Any]:
        with self.open(table) as collection:
            return [row[column] for row in collection.get(include=["metadatas"])["metadatas"]]

    def delete(self, id: str, table: str = TABLE) -> None:
        with self.open(table) as collection:
            collection.delete(ids=[id])

    def change_vector(self, id: str, vector: Sequence[Any], table: str = TABLE) -> None:
        with self.open(table) as collection:
            collection.update(ids=[id], embeddings=[list(vector)])

    def repeat(self, id: str, table: str = TABLE) -> None:
        with self.open(table) as collection:
            found = collection.get(ids=[id], include=["metadatas", "embeddings"])
            collection.add(ids=["1"], embeddings=found["embeddings"], metadatas=found["metadatas"])

    def create_foreign_table(self, table: str = TABLE) -> None:
        with self.connect() as client:
            collection = client.create_collection(table, embedding_function=None)
            collection.add(ids=["1"], embeddings=[[1.0, 0.0]], metadatas=[{"id": "theirs"}])


class ChromaBackend(BaseChromaBackend):
    refusal = ": another load is running (process "

    @property
    def address(self) -> str:
        return f"chroma:{self.folder / 'chroma'}"

    def make_client(self) -> Any:
        import chromadb
        from chromadb.config import Settings

        return chromadb.PersistentClient(str(self.folder / "chroma"), settings=Settings(anonymized_telemetry=False))


class ChromaServerBackend(BaseChromaBackend):
    """A server of its own, by `chroma run`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        program = str(Path(sys.executable).with_name("chroma"))
        where = ["--path", str(folder / "server"), "--host", "127.0.0.1", "--port", str(self.port)]
        self.server = start_server([program, "run", *where], self.port)

    def close(self) -> None:
        stop_server(self.server)

    @property
    def address(self) -> str:
        return f"chroma://127.0.0.1:{self.port}"

    def make_client(self) -> Any:
        import chromadb
        from chromadb.config import Settings

        return chromadb.HttpClient(host="127.0.0.1", port=self.port, settings=Settings(anonymized_telemetry=False))
