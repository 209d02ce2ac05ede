"""The base class of databases that outputs are loaded into, and what a table of vectors looks like.

How to add a database:

1. Write one module with a subclass of `DatabaseTarget`, and name it in `TARGETS` in `address.py`. Import the client
   inside functions through `import_client`, so that a missing one becomes a one-line hint, and add it as an extra to
   pyproject.toml, pinned in constraints.txt.
2. Set the class attributes to what the database holds. They are checked before the first row is sent; what a row may
   still violate (`stores_nul`, `longest_id_bytes`, ...) sends that row to the rejects.
3. Implement the abstract methods. Tables arrive in the types that `stored_type` promised, with unique keys, so a
   method never converts an input type or looks for duplicates.
4. Add a `Backend` to tests/support/backends.py: tests/databases/test_target_contract.py then runs against it.

What the loader relies on:

- A method that writes rows returns after the database has made them durable. A process may be killed at any moment:
  what was sent is found again by `read_digests`, so there is no state beside the table that could disagree with it.
- `upsert_rows` of the same rows twice leaves one of each. `insert_rows` gets keys that were not there when the run
  began, and may be faster; if another program has written one of them meanwhile, it must behave like an upsert.
- A table and its record (`create_table`) appear together or not at all, and the record can be replaced later.
- `replace_table` shows readers the old rows or the new ones, never both and never none.
- Only one load at a time writes to a table in files: where the database does not see to that itself, the target holds a
  lock while it is connected, unless `read_only`; see `locks.py`. On a server, a load notices at its end, by the record,
  that another one has begun.
- A request that the database refuses because it is busy raises `TargetBusyError`; the loader waits and repeats it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from embedcli.core.errors import OutputError, UsageError

if TYPE_CHECKING:
    from types import TracebackType

    from embedcli.core.types import Precision, VectorKind
    from embedcli.databases.address import TargetAddress
    from embedcli.outputs.vector_columns import StoredVectors

Distance = Literal["cosine", "dot", "hamming"]

# What is added to the name of a table while --swap fills it.
SWAP_SUFFIX = "__new"
SWAP_HINT = "use --swap to replace all rows at once, or another --table"
# Where there is no --swap.
NO_SWAP_HINT = "load into another --table, and delete this one when nothing searches it any more"
VECTOR_COLUMN = "embedding"
# A digest of everything that is stored of a row: a row is sent again if it differs.
DIGEST_COLUMN = "row_digest"
DIGEST_BYTES = 16
# Marks columns of JSON text in a schema.
JSON_FIELD = {b"embedcli": b"json"}
# The column that encode adds where it reads several inputs: the name of the input of each row.
SOURCE_COLUMN = "source"
# Marks this column in a schema; another one of the name was kept from the input.
SOURCE_FIELD = {b"embedcli": b"source"}


class TargetBusyError(OutputError):
    """The database asks to slow down, or is not available for the moment: the request may be repeated."""


@dataclass(frozen=True)
class TableLayout:
    """The columns of a table of vectors.

    Attributes:
        key: Names of the columns that identify a row: the id, and `window` where a text has several vectors.
        schema: All columns in their stored types: the key, `embedding`, kept columns, and `row_digest`, binary(16).
        kind: The kind of the vectors.
        precision: Number format of the vectors as they are stored in the database: float32, float16 or ubinary.
        dim: Dimensions of a vector before it is packed into bits.
        normalizes: Whether vectors are normalized before they are sent.
        has_unit_vectors: Whether all vectors have length 1, up to the rounding of their number format.
    """

    key: tuple[str, ...]
    schema: pa.Schema
    kind: VectorKind
    precision: Precision
    dim: int
    normalizes: bool = False
    has_unit_vectors: bool = False

    @property
    def distance(self) -> Distance:
        """How vectors are compared: sparse encoders are trained for the dot product, most dense ones for the cosine.

        Vectors of tokens are compared by the dot product too, of which MaxSim takes the largest for each of a query.
        """
        if self.precision == "ubinary":
            return "hamming"
        return "cosine" if self.kind == "dense" else "dot"

    @property
    def plain_columns(self) -> list[pa.Field]:
        """All columns but the vectors."""
        return [field for field in self.schema if field.name != VECTOR_COLUMN]

    @property
    def kept_columns(self) -> list[str]:
        """All columns but the key, the vectors and the digest."""
        return [name for name in self.schema.names if name not in (*self.key, VECTOR_COLUMN, DIGEST_COLUMN)]

    @property
    def digest_columns(self) -> list[pa.Field]:
        """The key and the digest, which `DatabaseTarget.read_digests` reads."""
        return [field for field in self.schema if field.name in (*self.key, DIGEST_COLUMN)]


class DatabaseTarget(ABC):
    """A connection to a database. Use it as a context manager.

    Attributes:
        title: Name of the database, for messages.
        extra: The extra of embedcli that installs its client.
        precisions: For each precision of outputs that it holds, the precision in which it stores the vectors. An output
            of another precision is refused; int8 and uint8 outputs count as float32, as which they are read.
        kinds: The kinds of vectors that it holds.
        batch_bytes: Size of a batch of rows in bytes, about.
        parallel_requests: How many batches may be sent at the same time; `insert_rows` and `upsert_rows` are then
            called by several threads.
        has_index: Whether `build_index` builds one.
        index_moves_with_table: Whether `replace_table` keeps the index.
        keeps_lengths: Whether dense vectors may have any length; otherwise they are normalized before they are sent.
        can_swap: Whether there is `replace_table`.
        keeps_keys_unique: Whether a load cannot write two rows of the same key; otherwise there is `delete_repeats`.
        has_exact_floats: Whether a float64 comes back as it was; otherwise its last bit may differ.
        has_exact_vectors: Whether vectors come back as they were; otherwise their numbers may be rounded.
        stores_nul: Whether texts may have NUL characters.
        has_schemas: Whether the name of a table may be `SCHEMA.TABLE`.
        has_case_sensitive_columns: Whether `Id` and `id` may be two columns.
        stores_empty_ids: Whether an id may be the empty text.
        stores_repeated_map_keys: Whether a map may have a key twice.
        longest_id_bytes: The longest id in UTF-8; None without a limit.
        longest_name_bytes: The longest name of a table or column in UTF-8.
        largest_row_bytes: The largest row; None without a limit.
        largest_payload_bytes: The largest row without its vector; None without a limit.
        forbidden_characters: Characters that the name of a column may not have.
        reserved_columns: Names in lower case that no column may have.
        reserved_tables: A regular expression of names that no table may have, whatever their case: the database does
            not allow them, or its target uses them itself.
        max_dimensions: The largest dimension by stored precision; without an entry there is no limit.
        spare_disk_bytes: Free space that a batch needs on the disk of a database in files, beside that for its rows.
        notes: What a user should know about the connection; shown before a load.
        address: Where the database is; set by `connect`.
    """

    title: ClassVar[str]
    extra: ClassVar[str]
    precisions: ClassVar[Mapping[str, Precision]] = {"float32": "float32"}
    kinds: ClassVar[frozenset[VectorKind]] = frozenset({"dense"})
    batch_bytes: ClassVar[int] = 8 << 20
    parallel_requests: ClassVar[int] = 1
    has_index: ClassVar[bool] = False
    index_moves_with_table: ClassVar[bool] = True
    keeps_lengths: ClassVar[bool] = True
    can_swap: ClassVar[bool] = True
    keeps_keys_unique: ClassVar[bool] = True
    has_exact_floats: ClassVar[bool] = True
    has_exact_vectors: ClassVar[bool] = True
    stores_nul: ClassVar[bool] = True
    has_schemas: ClassVar[bool] = False
    has_case_sensitive_columns: ClassVar[bool] = True
    stores_empty_ids: ClassVar[bool] = True
    stores_repeated_map_keys: ClassVar[bool] = True
    longest_id_bytes: ClassVar[int | None] = None
    longest_name_bytes: ClassVar[int] = 255
    largest_row_bytes: ClassVar[int | None] = None
    largest_payload_bytes: ClassVar[int | None] = None
    forbidden_characters: ClassVar[str] = ""
    reserved_columns: ClassVar[frozenset[str]] = frozenset()
    reserved_tables: ClassVar[str] = ""
    max_dimensions: ClassVar[Mapping[str, int]] = {}
    spare_disk_bytes: ClassVar[int] = 4 << 20
    notes: Sequence[str] = ()
    address: TargetAddress

    @abstractmethod
    def __init__(self, address: TargetAddress, *, read_only: bool = False) -> None:
        """Connect.

        Args:
            address: Where the database is.
            read_only: Nothing will be written: a database that does not exist is not created.

        Raises:
            UsageError: The client is not installed, or the database to be read does not exist.
            OutputError: The database cannot be reached or refuses the connection.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    # What fits

    def stored_type(self, kind: pa.DataType) -> pa.DataType | None:
        """Return the Arrow type in which values of a kept column are sent; None: as JSON text.

        Args:
            kind: A type without dictionaries, large or view variants; see `columns.plain_type`.

        By default strings, bytes, booleans, integers and floats are sent as they are, times as ISO 8601 text, and
        nested values as JSON. Keys are int64 or string, whatever this method says.
        """
        if pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
            return pa.string()
        if pa.types.is_nested(kind):
            return None
        return pa.string() if kind == pa.uint64() else kind

    # Tables

    @abstractmethod
    def read_record(self, table: str) -> dict[str, Any] | None:
        """Return the record of a table; {} if it has none; None if there is no such table."""

    @abstractmethod
    def write_record(self, table: str, record: Mapping[str, Any]) -> None:
        """Replace the record of a table: a JSON object of about a kilobyte, or 30 for int8 ranges of 1,024 numbers."""

    @abstractmethod
    def create_table(self, table: str, layout: TableLayout, record: Mapping[str, Any]) -> None:
        """Create a table and its record, both or neither."""

    @abstractmethod
    def drop_table(self, table: str) -> None:
        """Remove a table with its record; nothing happens if there is none."""

    @abstractmethod
    def replace_table(self, new: str, old: str, layout: TableLayout) -> None:
        """Give the rows and the record of the table `new` the name `old` in one step; afterwards `new` is gone.

        The table `old` may not exist. If the process is killed, either table is as it was, or the step is complete,
        and a leftover of `new` does no harm.
        """

    def finish_load(self, table: str, layout: TableLayout) -> None:  # noqa: B027  most databases want nothing
        """Do what the database wants after many rows were written, such as collecting statistics."""

    def build_index(self, table: str, layout: TableLayout) -> str:
        """Build the usual index for searches unless there is one, and return its description."""
        raise UsageError(
            f"{self.title}: has no index for vectors; a search compares the query with all rows, exactly",
            "leave out --index",
        )

    # Rows

    @abstractmethod
    def count_rows(self, table: str) -> int:
        """Count the rows, exactly."""

    @abstractmethod
    def upsert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        """Write rows, replacing those with the same keys. On return they are durable.

        Args:
            table: The table.
            layout: Its columns.
            rows: At least one row, with the columns of `layout.schema`.

        Raises:
            TargetBusyError: Nothing was written, or part of it; the batch may be sent again.
            OutputError: The database refuses the rows.
        """

    def insert_rows(self, table: str, layout: TableLayout, rows: pa.Table) -> None:
        """Write rows whose keys were not in the table when the run began; as `upsert_rows`, possibly faster."""
        self.upsert_rows(table, layout, rows)

    @abstractmethod
    def delete_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> None:
        """Delete the rows with these keys: a table of the key columns."""

    def delete_repeats(self, table: str, layout: TableLayout) -> None:
        """Delete all rows but one of each key, in one step."""
        raise NotImplementedError  # `keeps_keys_unique` is true

    @abstractmethod
    def read_digests(self, table: str, layout: TableLayout) -> Iterator[pa.Table]:
        """Yield all rows in any order: the key columns and `row_digest`, in the types of the layout."""

    @abstractmethod
    def read_rows(self, table: str, layout: TableLayout, keys: pa.Table) -> pa.Table:
        """Return the rows with these keys in any order, with the columns and types of `layout.schema`."""

    @abstractmethod
    def find_nearest(
        self, table: str, layout: TableLayout, query: StoredVectors, count: int, columns: Sequence[str]
    ) -> pa.Table:
        """Return the rows nearest to a vector by the distance of the layout, the nearest first.

        Args:
            table: The table.
            layout: Its columns.
            query: One row: float32 [1, dim], uint8 [1, dim / 8] of packed bits, sparse, or vectors of tokens in
                float32, which are compared by MaxSim.
            count: Number of rows.
            columns: The columns to return, in this order.
        """

    @property
    def replacement_hint(self) -> str:
        """What to do about a table whose rows must all be replaced."""
        return SWAP_HINT if self.can_swap else NO_SWAP_HINT

    def __enter__(self) -> DatabaseTarget:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def import_client(module: str, title: str, extra: str) -> Any:
    """Import the client of a database. Raises UsageError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(f"{title}: needs the package {module}", f"pip install 'embedcli[{extra}]'") from None


def same_name_error(title: str, table: str, stored: str) -> UsageError:
    """Return the error for a table whose name differs in its case alone from that of another one, in the database."""
    return UsageError(
        f"{title} table {table}: there is a table {stored}, and {title} cannot tell the two names apart",
        f"use --table {stored}, or a name that differs more",
    )
