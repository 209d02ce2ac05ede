"""Addresses of databases: which one is meant, and the class that talks to it."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from embedcli import storage
from embedcli.core.errors import UsageError

if TYPE_CHECKING:
    from embedcli.core.types import VectorKind
    from embedcli.databases.target import DatabaseTarget

# The schemes of addresses, and where the class of each is.
TARGETS: dict[str, tuple[str, str]] = {
    "chroma": ("embedcli.databases.chroma", "ChromaTarget"),
    "duckdb": ("embedcli.databases.duckdb", "DuckDBTarget"),
    "lancedb": ("embedcli.databases.lancedb", "LanceDBTarget"),
    "llm": ("embedcli.databases.llm_collections", "LLMTarget"),
    "milvus": ("embedcli.databases.milvus", "MilvusTarget"),
    "postgresql": ("embedcli.databases.postgresql", "PostgreSQLTarget"),
    "qdrant": ("embedcli.databases.qdrant", "QdrantTarget"),
    "qdrant-edge": ("embedcli.databases.qdrant_edge", "QdrantEdgeTarget"),
    "redis": ("embedcli.databases.redis", "RedisTarget"),
    "sqlite": ("embedcli.databases.sqlite", "SQLiteTarget"),
}
# Other names of schemes.
ALIASES: dict[str, str] = {
    "chroma+https": "chroma",
    "milvus+https": "milvus",
    "postgres": "postgresql",
    "qdrant+https": "qdrant",
    "rediss": "redis",
}
# The form of each address, for hints.
EXAMPLES: dict[str, str] = {
    "chroma": "chroma:DIR or chroma://HOST:8000/TABLE",
    "duckdb": "duckdb:FILE",
    "lancedb": "lancedb:DIR",
    "llm": "llm:FILE",
    "milvus": "milvus:FILE.db or milvus://HOST:19530/TABLE",
    "postgresql": "postgresql://HOST/DATABASE",
    "qdrant": "qdrant://HOST:6333/TABLE",
    "qdrant-edge": "qdrant-edge:DIR",
    "redis": "redis://HOST:6379/TABLE",
    "sqlite": "sqlite:FILE",
}
# Schemes whose servers have a table in their address, as in qdrant://HOST:PORT/TABLE.
SCHEMES_WITH_TABLE = frozenset({"chroma", "milvus", "qdrant", "redis"})
SCHEMES_WITHOUT_ACCOUNTS = SCHEMES_WITH_TABLE - {"redis"}
# Schemes that have files or folders only.
FILE_SCHEMES = frozenset({"duckdb", "lancedb", "llm", "qdrant-edge", "sqlite"})
DEFAULT_TABLE = "embeddings"
# Names that need no quotes anywhere; behind a point the table of a PostgreSQL schema.
TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,49}(\.[A-Za-z_][A-Za-z0-9_]{0,49})?")
# Where the password or key of each server is read from; see `check_no_password`.
SECRET_SOURCES: dict[str, str] = {
    "milvus": "put it into the variable MILVUS_TOKEN",
    "postgresql": "put it into ~/.pgpass or the variable PGPASSWORD",
    "qdrant": "put it into the variable QDRANT_API_KEY",
    "redis": "put it into the variable REDISCLI_AUTH",
}
# Parameters that hold secrets themselves, rather than the name of a file; libpq also takes them as words, with spaces
# around the sign.
SECRET_PARAMETER = re.compile(r"(^|[:&?;\s])\w*(password|passwd|token|secret|api_?key)\s*=", re.IGNORECASE)
# `USER:PASSWORD@`, where the password may have a slash; a port, as in `HOST:5432/db?user=a@b`, is none.
PASSWORD_BEFORE_HOST = re.compile(r"//[^@:]*:(?!\d*([/?#,]|$))[^@]+@")
BRACKETED_HOST = re.compile(r"\[[0-9A-Fa-f:.%]*\]")
# Names that databases take for one in memory: that of SQLite and DuckDB, URIs of SQLite, and those of object stores.
IN_MEMORY = re.compile(r":memory:|file::memory:|file:.*[?&]mode=memory|(shared-)?memory://", re.IGNORECASE)
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")


@dataclass(frozen=True)
class TargetAddress:
    """Where a table of vectors is.

    Attributes:
        scheme: The scheme, a key of `TARGETS`.
        location: What is behind the scheme: `FILE` of `sqlite:FILE`; of an address with `//` the whole address.
        table: The table or collection.
    """

    scheme: str
    location: str
    table: str

    def __str__(self) -> str:
        """The address as it is shown: it never has a password."""
        return self.location if "://" in self.location else f"{self.scheme}:{self.location}"

    @property
    def path(self) -> str | None:
        """The file or folder on this machine; None for a server or an object store."""
        return None if "://" in self.location or self.scheme == "postgresql" else self.location

    @property
    def digest(self) -> str:
        """Six hexadecimal digits that tell this place from others; a file has the same by any path."""
        location = self.location if self.path is None else os.path.realpath(self.path)
        return hashlib.sha256(location.encode("utf-8", "surrogateescape")).hexdigest()[:6]


def parse_target(text: str, table: str | None = None) -> TargetAddress:
    """Parse the address of a database.

    Args:
        text: `sqlite:FILE`, `postgresql://HOST/DATABASE`, ...
        table: The table; by default `embeddings`.

    Raises:
        UsageError: The scheme is unknown, the address has a password, or the name of the table is not plain.
    """
    found = SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    scheme = ALIASES.get(scheme, scheme)
    rest = text[len(found[0]) :] if found else ""
    if not os.path.lexists(rest):
        check_no_password(text, scheme if scheme in TARGETS else "")
    if scheme not in TARGETS:
        place = storage.format_location(text)
        targets = f"use one of {', '.join(f'{name}:' for name in sorted(TARGETS))}, as in sqlite:vectors.db"
        if scheme:
            targets += "; the guide to databases tells how to send rows to others as JSON"
        raise UsageError(f"'{place}' is not the address of a database that embedcli can load into", targets)
    if not rest.strip("/"):
        raise UsageError(f"'{text}' names no file or server", f"use an address such as {EXAMPLES[scheme]}")
    if rest.startswith("//"):
        if scheme in FILE_SCHEMES:
            path = rest.strip("/")
            raise UsageError(
                f"'{text}' may mean a path from / or from this folder",
                f"use {scheme}:/{path} or {scheme}:{path}",
            )
        rest = text
    if IN_MEMORY.match(rest):
        raise UsageError(
            f"'{text}' is a database in memory, of which nothing is left when the command ends",
            f"use an address such as {EXAMPLES[scheme]}",
        )
    has_table = scheme in SCHEMES_WITH_TABLE and rest == text
    named = urlsplit(text).path.strip("/") if has_table else ""
    if table and named and table != named:
        raise UsageError(f"--table {table}: the address names the table {named!r}", "leave out one of them")
    name = named or DEFAULT_TABLE if table is None else table
    if not TABLE_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a table",
            "use at most 50 letters, digits and underscores, with a letter first",
        )
    return TargetAddress(scheme, rest, name)


def check_no_password(text: str, scheme: str) -> None:
    """Raise UsageError for an address with a password: other programs on the machine could read it.

    Args:
        text: An address in any form, also with `NAME=VALUE` words as libpq takes them.
        scheme: Its scheme, a key of `TARGETS`; empty if that is unknown.
    """
    try:
        parts = urlsplit(text)
        # A server without accounts: what stands before its name is taken for its key.
        has_password = bool(parts.password) or (scheme in SCHEMES_WITHOUT_ACCOUNTS and bool(parts.username))
    except ValueError:
        raise UsageError("the address of the database is malformed", "check its brackets and slashes") from None
    plain = BRACKETED_HOST.sub("", unquote(text))
    if has_password or SECRET_PARAMETER.search(plain) or PASSWORD_BEFORE_HOST.search(plain):
        raise UsageError(
            f"{scheme or 'target'}: the address has a password, which other programs on this machine could read",
            f"leave it out, and {SECRET_SOURCES[scheme]}" if scheme in SECRET_SOURCES else "leave it out",
        )


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_target_address(text: str) -> bool:
    """Whether an argument is the address of a database rather than a file or a folder."""
    found = SCHEME.match(text)
    return found is not None and found[1].lower() in (*TARGETS, *ALIASES) and not os.path.lexists(text)


def list_schemes(kind: VectorKind) -> list[str]:
    """Return the schemes of the databases that hold vectors of a kind, as in `lancedb:`."""
    return [f"{scheme}:" for scheme in sorted(TARGETS) if kind in find_target(scheme).kinds]


def find_target(scheme: str) -> type[DatabaseTarget]:
    """Return the class that talks to the databases of a scheme."""
    module, name = TARGETS[scheme]
    target: type[DatabaseTarget] = getattr(importlib.import_module(module), name)
    return target


def connect(address: TargetAddress, *, read_only: bool = False) -> DatabaseTarget:
    """Connect to the database of an address; see `DatabaseTarget.__init__` for the errors."""
    target = find_target(address.scheme)
    if "." in address.table and not target.has_schemas:
        raise UsageError(f"{target.title}: {address.table!r} cannot be the name of a table", "leave out the point")
    check_not_reserved(address.table, target)
    database = target(address, read_only=read_only)
    database.address = address
    return database


def check_not_reserved(table: str, target: type[DatabaseTarget]) -> None:
    """Raise UsageError for a name that a load or the database uses for something else."""
    from embedcli.databases.target import SWAP_SUFFIX

    if table.lower().endswith(SWAP_SUFFIX):
        hint = f"use a name that does not end with {SWAP_SUFFIX}: `load --swap` fills tables of such names"
    elif re.fullmatch(target.reserved_tables, table, re.IGNORECASE):
        hint = "use another name: the database does not allow this one, or embedcli uses it itself"
    else:
        return
    raise UsageError(f"{target.title}: {table!r} cannot be the name of a table", hint)
