"""Redis 8: a vector set, whose elements have their row as JSON attributes.

The vector set of the table `docs` is the key `docs`, its record the key `embedcli:docs`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa

from embedcli.core.errors import OutputError, UsageError, first_line
from embedcli.databases.address import is_loopback
from embedcli.databases.payloads import (
    dense_column,
    dense_rows,
    join_vectors,
    make_keys,
    make_payloads,
    payloads_to_table,
    stored_payload_type,
)
from embedcli.databases.target import VECTOR_COLUMN, DatabaseTarget, TableLayout, TargetBusyError, import_client

if TYPE_CHECKING:
    from embedcli.core.types import Precision
    from embedcli.databases.address import TargetAddress
    from embedcli.outputs.vector_columns import StoredVectors

# What redis-cli reads.
PASSWORD_VARIABLE = "REDISCLI_AUTH"
DEFAULT_PORT = 6379
TIMEOUT_SECONDS = 120
RECORD_PREFIX = "embedcli:"
# Elements that are read by a request, and that are written by one, during which the server does nothing else.
REQUEST_ROWS = 2_000
WRITE_ROWS = 200
# The defaults of vector sets.
HNSW_NEIGHBOURS = 16


class RedisTarget(DatabaseTarget):
    """A Redis server.

    Vectors are stored as float32 numbers, not rounded to 8 bits as by default. The server scales them to length 1 and
    keeps their lengths, so that they come back within rounding.
    """

    title: ClassVar[str] = "Redis"
    extra: ClassVar[str] = "redis"
    precisions: ClassVar[Mapping[str, Precision]] = {"float32": "float32", "float16": "float32"}
    has_index: ClassVar[bool] = True
    has_exact_vectors: ClassVar[bool] = False

    def __init__(self, address: TargetAddress, *, read_only: bool = False) -> None:
        client = import_client("redis", self.title, self.extra)
        self._errors = client.exceptions
        self._address = address
        parts = parse_address(address)
        password = os.environ.get(PASSWORD_VARIABLE) or None
        host, is_encrypted = str(parts.hostname), parts.scheme == "rediss"
        self.notes: list[str] = []
        if password and not is_encrypted and not is_loopback(host):
            self.notes.append(f"the password travels unencrypted to {host}: use rediss:// where you can")
        self._db = client.Redis(
            host=host,
            port=parts.port or DEFAULT_PORT,
            username=unquote(parts.username) if parts.username else None,
            password=password,
            ssl=is_encrypted,
            socket_timeout=TIMEOUT_SECONDS,
        )
        try:
            self._check_server(read_only)
        except BaseException:
            self._db.close()
            raise

    def _check_server(self, read_only: bool) -> None:
        with self._translate_errors():
            version = str(self._db.info("server")["redis_version"])
            if int(version.split(".", maxsplit=1)[0]) < 8:
                raise UsageError(
                    f"{self._address}: the server runs Redis {version}, which has no vector sets",
                    "install Redis 8 or later on the server",
                )
            self._has_log = bool(self._db.info("persistence").get("aof_enabled"))
        if not (read_only or self._has_log):
            self.notes.append(
                "the server keeps rows in memory until its next snapshot; if it ends before, run the same command again"
            )

    def close(self) -> None:
        self._db.close()

    def stored_type(self, kind: pa.DataType) -> pa.DataType | None:
        return stored_payload_type(kind)

    # Tables

    def read_record(self, table: str) -> dict[str, Any] | None:
        with self._translate_errors():
            text = self._db.get(RECORD_PREFIX + table)
            if text is not None:
                record: dict[str, Any] = json.loads(text)
                return record
            return {} if self._db.exists(table) else None

    def write_record(self, table: str, record: Mapping[str, Any]) -> None:
        with self._translate_errors():
            self._db.set(RECORD_PREFIX + table, json.dumps(record))
            self._wait_for_log()

    def _wait_for_log(self) -> None:
        """Wait until everything so far is in the server's log on disk: it is written in the order of the requests."""
        if self._has_log and not self._db.execute_command("WAITAOF", 1, 0, TIMEOUT_SECONDS * 500)[0]:
            raise TargetBusyError(f"{self._address}: the server has not written its log in time", "run again later")

    def create_table(self, table: str, layout: TableLayout, record: Mapping[str, Any]) -> None:
        # A vector set without elements does not exist: the record alone is an empty table.
        with self._translate_errors():
            if not self._db.set(RECORD_PREFIX + table, json.dumps(record), nx=True):
                raise OutputError(f"{self._address}: the table {table} exists", "run the same command again")

    def drop_table(self, table: str) -> None:
        with self._translate_errors():
            self._db.delete(table, RECORD_PREFIX + table)

    def replace_table(self, new: str, old: str, layout: TableLayout) -> None:
        with self._translate_errors():
            with self._db.pipeline(transaction=True) as steps:
                if self._db.exists(new):
                    steps.rename(new, old)
                else:
                    steps.delete(old)
                steps.rename(RECORD_PREFIX + new, RECORD_PREFIX + old)
                steps.execute()
            self._wait_for_log()

    def build_index(self, table: str, layout: TableLayout) -> str:
        return f"hnsw (m = {HNSW_NEIGHBOURS}), which the server keeps by itself"

    # Rows

    def count_rows(self, table: str) -> int:
        with self._translate_errors():
            return int(self._db.execute_command("VCARD", table))

    def upsert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        vectors = dense_rows(rows.column(VECTOR_COLUMN)).astype("<f4", copy=False)
        payloads = make_payloads(rows, layout)
        commands = [
            ("VADD", table, "FP32", vector.tobytes(), key, "NOQUANT", "SETATTR", json.dumps(payload))
            for key, vector, payload in zip(make_keys(rows, layout), vectors, payloads, strict=True)
        ]
        for start in range(0, len(commands), WRITE_ROWS):
            self._write(table, commands[start : start + WRITE_ROWS])

    def _write(self, table: str, commands: Sequence[tuple[Any, ...]]) -> None:
        """Run commands if the table has its record: those that add rows would create what another load has replaced."""
        record = RECORD_PREFIX + table
        with self._translate_errors(), self._db.pipeline(transaction=True) as steps:
            steps.watch(record)
            if not steps.exists(record):
                raise OutputError(f"{self._address}: the table {table} is gone", "run the same command again")
            steps.multi()
            for command in commands:
                steps.execute_command(*command)
            try:
                steps.execute()
            except self._errors.WatchError:
                raise OutputError(
                    f"{self._address}: another load has begun to write to {table}", "run the same command again"
                ) from None

    def delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        self._run([("VREM", table, key) for key in make_keys(keys, layout)])

    def _run(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run commands, many in a request, and return their answers. Raises the first error among them."""
        answers: list[Any] = []
        with self._translate_errors():
            for start in range(0, len(commands), REQUEST_ROWS):
                with self._db.pipeline(transaction=False) as request:
                    for command in commands[start : start + REQUEST_ROWS]:
                        request.execute_command(*command)
                    answers += request.execute()
        return answers

    def read_digests(self, table: str, layout: TableLayout) -> Iterator[pa.Table]:
        fields = layout.digest_columns
        with self._translate_errors():
            # More than there are: all of them.
            keys = self._db.execute_command("VRANDMEMBER", table, self.count_rows(table) + 1) or []
        for start in range(0, len(keys), REQUEST_ROWS):
            attributes = self._run([("VGETATTR", table, key) for key in keys[start : start + REQUEST_ROWS]])
            yield payloads_to_table([json.loads(text or b"{}") for text in attributes], fields)

    def read_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> pa.Table:
        return self._read(table, layout, make_keys(keys, layout), layout.schema.names)

    def _read(self, table: str, layout: TableLayout, keys: Sequence[Any], columns: Sequence[str]) -> pa.Table:
        """Return the named columns of elements; those that do not exist are left out."""
        attributes = self._run([("VGETATTR", table, key) for key in keys])
        is_there = [text is not None for text in attributes]
        payloads = [json.loads(text) for text in attributes if text is not None]
        rows = payloads_to_table(payloads, [layout.schema.field(name) for name in columns if name != VECTOR_COLUMN])
        if VECTOR_COLUMN not in columns:
            return rows
        stored = self._run([("VEMB", table, key, "RAW") for key, there in zip(keys, is_there, strict=True) if there])
        vectors = [np.frombuffer(blob, "<f4") * np.float32(length) for _, blob, length, *_ in stored]
        return join_vectors(rows, dense_column(vectors, layout), layout, columns)

    def find_nearest(
        self, table: str, layout: TableLayout, query: StoredVectors, count: int, columns: Sequence[str]
    ) -> pa.Table:
        blob = np.asarray(query, "<f4").tobytes()
        with self._translate_errors():
            keys = self._db.execute_command("VSIM", table, "FP32", blob, "COUNT", count) or []
        return self._read(table, layout, keys, columns)

    # Errors

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        errors = self._errors
        try:
            yield
        except errors.AuthenticationError as error:
            raise OutputError(
                f"{self._address}: {first_line(error)}", f"put the password into the variable {PASSWORD_VARIABLE}"
            ) from None
        except (errors.BusyLoadingError, errors.ConnectionError, errors.TimeoutError) as error:
            raise TargetBusyError(
                f"{self._address}: no usable answer: {first_line(error)}", "check the address and the server"
            ) from None
        except errors.RedisError as error:
            raise OutputError(f"{self._address}: {first_line(error)}", "see the log of the server") from None


def parse_address(address: TargetAddress) -> Any:
    """Return the parts of the address. Raises UsageError if there is no server in it, or something else."""
    parts = urlsplit(address.location)
    if not parts.hostname or parts.query or parts.fragment:
        raise UsageError(
            f"{address}: only a user, a host, a port and a table can be given", "use redis://HOST:PORT/TABLE"
        )
    return parts
