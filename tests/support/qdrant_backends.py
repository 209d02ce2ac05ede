"""Qdrant for the contract tests: its embedded engine, and its interface in front of the engine of its client."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from database_backend import TABLE, Backend
from qdrant_server import QdrantServer

# As docs/guides/databases.md says: other programs can compute the id of a point.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "embedcli")


class QdrantBackend(Backend):
    packages = ("qdrant_client",)
    module = "embedcli.databases.qdrant"
    kinds = ("dense", "sparse", "multi_vector")
    reserved = ("docs__v1", "docs__v2")
    neighbours = ("{}__v1", "{}__v2")
    has_index = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server = QdrantServer()

    def close(self) -> None:
        self.server.close()

    @property
    def address(self) -> str:
        return self.server.url.replace("http://", "qdrant://")

    def ids(self, table: str = TABLE, column: str = "id") -> list[Any]:
        points, more = self.server.client.scroll(table, limit=10_000, with_payload=True)
        assert more is None
        return [(point.payload or {})[column] for point in points]

    def delete(self, id: str, table: str = TABLE) -> None:
        self.server.client.delete(table, [str(uuid.uuid5(NAMESPACE, id))])

    def change_vector(self, id: str, vector: Sequence[Any], table: str = TABLE) -> None:
        from qdrant_client.models import PointVectors

        points = [PointVectors(id=str(uuid.uuid5(NAMESPACE, id)), vector=list(vector))]
        self.server.client.update_vectors(table, points)

    def repeat(self, id: str, table: str = TABLE) -> None:
        from qdrant_client.models import PointStruct

        client = self.server.client
        (point,) = client.retrieve(table, [str(uuid.uuid5(NAMESPACE, id))], with_vectors=True)
        copy = PointStruct(id=1, vector=point.vector, payload=point.payload)  # type: ignore[arg-type]
        client.upsert(table, [copy])

    def create_foreign_table(self, table: str = TABLE) -> None:
        from qdrant_client.models import Distance, PointStruct, VectorParams

        self.server.client.create_collection(table, VectorParams(size=2, distance=Distance.COSINE))
        self.server.client.upsert(table, [PointStruct(id=1, vector=[1.0, 0.0], payload={"id": "theirs"})])


class QdrantEdgeBackend(Backend):
    packages = ("qdrant_edge",)
    module = "embedcli.databases.qdrant_edge"
    refusal = ": another load is running (process "
    kinds = ("dense", "sparse", "multi_vector")
    neighbours = ("{}-1", "{}-2", "{}-01234567", "{}__new-1")
    has_index = True

    @property
    def root(self) -> Path:
        return self.folder / "edge"

    @property
    def address(self) -> str:
        return f"qdrant-edge:{self.root}"

    @contextmanager
    def open(self, table: str) -> Iterator[Any]:
        from qdrant_edge import EdgeShard

        written = self.root / "embedcli.json"
        tables = json.loads(written.read_bytes())["tables"] if written.exists() else {}
        shard = EdgeShard.load(str(self.root / tables.get(table, {"folder": table})["folder"]))
        yield shard
        shard.close()

    def ids(self, table: str = TABLE, column: str = "id") -> list[Any]:
        from qdrant_edge import ScrollRequest

        with self.open(table) as shard:
            points, more = shard.scroll(ScrollRequest(limit=10_000, with_payload=True))
        assert more is None
        return [point.payload[column] for point in points]

    def delete(self, id: str, table: str = TABLE) -> None:
        from qdrant_edge import UpdateOperation

        with self.open(table) as shard:
            shard.update(UpdateOperation.delete_points([str(uuid.uuid5(NAMESPACE, id))]))

    def change_vector(self, id: str, vector: Sequence[Any], table: str = TABLE) -> None:
        from qdrant_edge import PointVectors, UpdateOperation

        with self.open(table) as shard:
            points = [PointVectors(str(uuid.uuid5(NAMESPACE, id)), list(vector))]
            shard.update(UpdateOperation.update_vectors(points))

    def repeat(self, id: str, table: str = TABLE) -> None:
        from qdrant_edge import Point, UpdateOperation

        with self.open(table) as shard:
            (point,) = shard.retrieve([str(uuid.uuid5(NAMESPACE, id))], with_payload=True, with_vector=True)
            shard.update(UpdateOperation.upsert_points([Point(1, point.vector, point.payload)]))

    def create_foreign_table(self, table: str = TABLE) -> None:
        from qdrant_edge import Distance, EdgeConfig, EdgeShard, EdgeVectorParams, Point, UpdateOperation

        (self.root / table).mkdir(parents=True)
        shard = EdgeShard.create(str(self.root / table), EdgeConfig(EdgeVectorParams(2, Distance.Cosine)))
        shard.update(UpdateOperation.upsert_points([Point(1, [1.0, 0.0], {"id": "theirs"})]))
        shard.close()
