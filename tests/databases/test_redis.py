"""What only Redis has: passwords, servers without vector sets or a log, keys of others beside the table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedcli.core.errors import UsageError
from embedcli.databases import connect, parse_target
from embedcli.databases.redis import parse_address
from loads import check, load, make_backend, names, run
from redis_backend import RedisBackend
from sample_outputs import make_output, unit_vectors


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Any]:
    yield from make_backend("redis", tmp_path)


def test_an_address_names_server_and_table() -> None:
    address = parse_target("rediss://me@db.example:7000/docs")
    parts = parse_address(address)
    assert (address.scheme, address.table, parts.scheme, parts.username, parts.port) == (
        "redis", "docs", "rediss", "me", 7000,
    )  # fmt: skip
    with pytest.raises(UsageError, match="the address has a password"):
        parse_target("redis://me:secret@db.example/docs")
    with pytest.raises(UsageError, match="only a user, a host"):
        connect(parse_target("redis://host/docs?x=1"))


def test_the_password_comes_from_the_environment(
    tmp_path: Path, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=names(20))
    backend.run("CONFIG", "SET", "requirepass", "hunter2")
    done = load(output, backend)
    assert (done.code, "REDISCLI_AUTH" in done.err) == (1, True)
    monkeypatch.setenv("REDISCLI_AUTH", "wrong")
    assert load(output, backend).code == 1
    monkeypatch.setenv("REDISCLI_AUTH", "hunter2")
    done = load(output, backend)
    assert (done.code, "hunter2" in done.err) == (0, False), done.err


def test_a_server_without_a_log_is_noted(tmp_path: Path, backend: RedisBackend) -> None:
    output = make_output(tmp_path / "out.parquet", unit_vectors(20, 8), ids=names(20))
    assert "keeps rows in memory" not in load(output, backend).err
    backend.run("CONFIG", "SET", "appendonly", "no")
    assert "keeps rows in memory until its next snapshot" in load(output, backend).err


def test_rows_survive_a_killed_server(tmp_path: Path, backend: RedisBackend) -> None:
    """With the log that is written every second, which a load waits for."""
    backend.run("CONFIG", "SET", "appendfsync", "everysec")
    output = make_output(tmp_path / "out.parquet", unit_vectors(500, 8), ids=names(500))
    assert load(output, backend).code == 0
    backend.server.kill()
    backend.server.wait()
    backend.client.close()
    again = RedisBackend(backend.folder)
    try:
        assert check(output, again).code == 0
        assert "nothing to do" in load(output, again).err
    finally:
        again.close()


def test_vectors_keep_their_lengths_within_rounding(tmp_path: Path, backend: RedisBackend) -> None:
    vectors = unit_vectors(50, 8) * np.arange(1, 51, dtype=np.float32)[:, None]
    output = make_output(tmp_path / "out.parquet", vectors, ids=names(50), space={"normalize": False})
    assert load(output, backend).code == 0
    assert check(output, backend).code == 0
    backend.change_vector("r7", (vectors[7] * np.float32(1.00001)).tolist())
    assert "1 with other values than the output: r7" in check(output, backend).out


def test_the_attributes_are_the_row(tmp_path: Path, backend: RedisBackend) -> None:
    vectors = unit_vectors(2, 8)
    output = make_output(tmp_path / "out.parquet", vectors, ids=["a", "ü"], kept={"lang": ["en", "fr"]})
    backend.run("SET", "docs:mine", "x")
    assert load(output, backend, "--swap").code == 0
    found = backend.run("VSIM", "docs", "VALUES", 8, *vectors[1].tolist(), "FILTER", '.lang == "fr"')
    assert [key.decode() for key in found] == ["ü"]
    assert json.loads(backend.run("VGETATTR", "docs", "ü")).keys() == {"id", "lang", "row_digest"}
    assert sorted(backend.run("KEYS", "*")) == [b"docs", b"docs:mine", b"embedcli:docs"]


def test_a_server_that_does_not_answer_is_named(backend: RedisBackend) -> None:
    backend.close()
    done = run("search", backend.address, "words")
    assert (done.code, "no usable answer" in done.err) == (1, True)
