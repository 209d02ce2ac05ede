"""Lance datasets, the folders that LanceDB reads: written whole, opened for reading. Only this module knows lance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pyarrow as pa

from embedcli import storage
from embedcli.core.errors import InputError, UsageError, first_line

LANCE_ENDING = ".lance"


def is_lance(path: str) -> bool:
    """Whether a path is that of a Lance dataset, by its name."""
    return path.rstrip("/").lower().endswith(LANCE_ENDING)


def require_lance() -> None:
    """UsageError if the library is missing."""
    if find_spec("lance") is None:
        raise UsageError("Lance datasets need pylance", "pip install 'embedcli[lance]'")


def write_lance_dataset(tables: Iterable[pa.Table], folder: str, schema: pa.Schema) -> int:
    """A new dataset at `folder` with the rows of `tables`; how many there are. Raises OSError.

    Memory holds a few tables at a time, whatever the number of rows.
    """
    library: Any = import_module("lance")
    failed: list[BaseException] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for table in tables:
                yield from table.cast(schema).to_batches()
        except BaseException as error:
            failed.append(error)
            raise

    try:
        made = library.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), folder, mode="create")
    except Exception:
        # What the rows' own source raised comes back as itself, not as the writer's retelling of it.
        if failed:
            raise failed[0] from None
        raise
    return int(made.count_rows())


def open_lance_dataset(path: str) -> Any:
    """The dataset at `path`. InputError if it cannot be read."""
    require_lance()
    try:
        return import_module("lance").dataset(path.rstrip("/"))
    except (ValueError, OSError) as error:
        reason = first_line(error)
        raise InputError(
            f"{storage.format_location(path)}: is no Lance dataset: {reason}", "make the output again"
        ) from None
