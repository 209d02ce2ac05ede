"""Addresses of databases: what is one, and what is refused before anything is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedcli.core.errors import UsageError
from embedcli.databases import connect, is_target_address, parse_target
from embedcli.databases.address import EXAMPLES, FILE_SCHEMES, TARGETS
from embedcli.databases.target import import_client


@pytest.mark.parametrize(
    ("text", "scheme", "location"),
    [
        ("sqlite:vectors.db", "sqlite", "vectors.db"),
        ("sqlite:/srv/a b.db", "sqlite", "/srv/a b.db"),
        ("SQLite:vectors.db", "sqlite", "vectors.db"),
        ("lancedb:./lake", "lancedb", "./lake"),
        ("postgresql://me@localhost:5433/db", "postgresql", "postgresql://me@localhost:5433/db"),
        ("postgres://localhost/db?sslkey=/a.key", "postgresql", "postgres://localhost/db?sslkey=/a.key"),
        ("postgresql:///db?host=/run", "postgresql", "postgresql:///db?host=/run"),
    ],
)
def test_addresses_are_parsed(text: str, scheme: str, location: str) -> None:
    address = parse_target(text)
    assert (address.scheme, address.location, address.table) == (scheme, location, "embeddings")
    assert is_target_address(text)
    assert parse_target(text, "docs").table == "docs"


@pytest.mark.parametrize("text", ["elasticsearch://localhost:9200/docs", "opensearch://host", "weaviate:docs"])
def test_databases_without_a_target_are_refused_with_what_else_to_do(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_target(text)
    assert error.value.message == f"{text!r} is not the address of a database that embedcli can load into"
    assert "use one of chroma:, duckdb:," in error.value.hint
    assert error.value.hint.endswith("the guide to databases tells how to send rows to others as JSON")


@pytest.mark.parametrize(
    "text", ["out.parquet", "out/", "s3://bucket/out", "qdrantt://host", "words to look for", "C:\\a"]
)
def test_other_arguments_are_not_addresses(text: str) -> None:
    assert not is_target_address(text)
    with pytest.raises(UsageError, match="is not the address of a database") as error:
        parse_target(text)
    assert all(f"{scheme}:" in error.value.hint for scheme in TARGETS)


def test_a_file_with_such_a_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sqlite:a.parquet").write_text("")
    assert not is_target_address("sqlite:a.parquet")


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:hunter2@host/db",
        "postgresql://me:hunter2/x@host/db",
        "postgresql://me:hun?ter2@host/db",
        "postgresql://me:5hunter2@host/db",
        "postgresql://host/db?password=hunter2",
        "postgresql://host/db?pass%77ord=hunter2",
        "postgresql://host/db?a=b&apikey=hunter2",
        "postgresql:host=/run user=me password=hunter2 dbname=x",
        "postgresql:password = 'hunter2'",
        "postgres:sslpassword=hunter2",
        "host=/run user=me password=hunter2 dbname=x",
        "mysql://me:hunter2@host/db",
        "qdrant://hunter2@host:6333",
        "qdrant://me:hunter2@host:6333/docs",
        "qdrant+https://host/docs?api_key=hunter2",
        "milvus:http://me:hunter2@host:19530",
        "milvus+https://host?token=hunter2",
        "chroma://host:8000/docs?token=hunter2",
        "lancedb:s3://me:hunter2@bucket/lake",
        "lancedb:s3://bucket/lake?secret=hunter2",
    ],
)
def test_a_password_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(UsageError, match="the address has a password") as error:
        parse_target(text)
    assert "hun" not in error.value.message + error.value.hint


@pytest.mark.parametrize(
    ("scheme", "place"), [("postgresql", "PGPASSWORD"), ("qdrant", "QDRANT_API_KEY"), ("milvus", "MILVUS_TOKEN")]
)
def test_the_place_of_a_password_is_named(scheme: str, place: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_target(f"{scheme}://me:hunter2@host")
    assert error.value.hint.endswith(place)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://host:5432/db?user=me@corp",
        "postgresql://postgres:@/postgres?host=/run",
        "postgresql://me@[::1]:5432/db?user=me@corp",
        "postgresql://h1:5432,h2:5433/db?passfile=/a@b",
        "postgresql:host=/run user=me dbname=tokens",
        "sqlite:/srv/passwords/a:b@c.db",
    ],
)
def test_other_addresses_have_no_password(text: str) -> None:
    assert parse_target(text).location


@pytest.mark.parametrize(
    ("text", "form"),
    [
        *((f"{scheme}:", form) for scheme, form in EXAMPLES.items()),
        ("postgresql://", "postgresql://HOST/DATABASE"),
        ("qdrant://", "qdrant://HOST:6333/TABLE"),
    ],
)
def test_an_address_without_a_place_is_refused(text: str, form: str) -> None:
    with pytest.raises(UsageError, match=f"'{text}' names no file or server") as error:
        parse_target(text)
    assert error.value.hint == f"use an address such as {form}"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite::memory:",
        "sqlite:file::memory:?cache=shared",
        "sqlite:file:a?mode=memory",
        "duckdb::memory:",
        "duckdb::memory:docs",
        "lancedb:memory://",
        "lancedb:shared-memory://lake",
    ],
)
def test_a_database_in_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is a database in memory"):
        parse_target(text)


@pytest.mark.parametrize("scheme", sorted(FILE_SCHEMES))
def test_a_file_with_slashes_of_a_server_is_refused(scheme: str) -> None:
    with pytest.raises(UsageError, match="may mean a path from / or from this folder") as error:
        parse_target(f"{scheme}:///srv/a.db")
    assert error.value.hint == f"use {scheme}:/srv/a.db or {scheme}:srv/a.db"


def test_every_database_has_a_form_of_address() -> None:
    assert set(EXAMPLES) == set(TARGETS)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(UsageError, match="'' cannot be the name of a table"):
        parse_target("sqlite:vectors.db", "")


def test_only_some_databases_have_schemas(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'a\.b' cannot be the name"):
        connect(parse_target(f"sqlite:{tmp_path}/vectors.db", "a.b"))


def test_a_client_that_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match="SQLite: needs the package no_such_client") as error:
        import_client("no_such_client", "SQLite", "sqlite")
    assert error.value.hint == "pip install 'embedcli[sqlite]'"


@pytest.mark.parametrize("scheme", ["sqlite", "duckdb", "lancedb"])
def test_reading_creates_nothing(scheme: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such"):
        connect(parse_target(f"{scheme}:{tmp_path}/missing"), read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["sqlite", "duckdb"])
def test_a_file_of_another_kind_is_left_alone(scheme: str, tmp_path: Path) -> None:
    from embedcli.core.errors import EmbedcliError

    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to have a header " * 100)
    with pytest.raises(EmbedcliError, match=r"notes\.txt"):
        connect(parse_target(f"{scheme}:{path}"))
    assert path.read_text().startswith("not a database")
