"""Addresses of databases: which one is meant, and the class that talks to it."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

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
# Schemes whose servers have a table in their address, as in qdrant://HOST:PORT/TABLE.
SCHEMES_WITH_TABLE = frozenset({"chroma", "milvus", "qdrant", "redis"})
DEFAULT_TABLE = "embeddings"
# Names that need no quotes anywhere; behind a point the table of a PostgreSQL schema.
TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,49}(\.[A-Za-z_][A-Za-z0-9_]{0,49})?")
# Parameters of addresses that hold secrets themselves, rather than the name of a file.
SECRET_PARAMETER = re.compile(r"(^|&)\w*(password|passwd|token|secret|api_?key)=", re.IGNORECASE)
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
    if scheme not in TARGETS:
        raise UsageError(
            f"{storage.format_location(text)}: is not the address of a database",
            f"use one of {', '.join(f'{name}:' for name in sorted(TARGETS))}, as in sqlite:vectors.db",
        )
    rest = text[len(found[0]) :] if found else ""
    if not rest.strip("/"):
        raise UsageError(f"{text}: names no file or server", f"use an address such as {scheme}:NAME")
    if rest.startswith("//"):
        check_no_password(text)
        rest = text
    has_table = scheme in SCHEMES_WITH_TABLE and rest == text
    named = urlsplit(text).path.strip("/") if has_table else ""
    if table and named and table != named:
        raise UsageError(f"--table {table}: the address names the table {named!r}", "leave out one of them")
    name = table or named or DEFAULT_TABLE
    if not TABLE_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a table",
            "use at most 50 letters, digits and underscores, with a letter first",
        )
    return TargetAddress(scheme, rest, name)


def check_no_password(text: str) -> None:
    """Raise UsageError for an address with a password: other programs on the machine could read it."""
    try:
        parts = urlsplit(text)
        has_password = bool(parts.password) or SECRET_PARAMETER.search(parts.query) is not None
    except ValueError:
        raise UsageError("the address of the database is malformed", "check its brackets and slashes") from None
    if has_password:
        raise UsageError(
            f"{parts.scheme}://{parts.hostname or ''}: the address has a password, which other programs on this "
            "machine could read",
            "leave it out, and set the variable or the file that the database's own programs read, such as PGPASSWORD",
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
    return target(address, read_only=read_only)


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
