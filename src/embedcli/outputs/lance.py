"""Write and open Lance datasets, the folders that LanceDB reads."""

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
    """Whether a path is named like a Lance dataset."""
    return path.rstrip("/").lower().endswith(LANCE_ENDING)


def require_lance() -> None:
    """Raise UsageError if the library is not installed."""
    if find_spec("lance") is None:
        raise UsageError("Lance datasets require pylance", "pip install 'embedcli[lance]'")


def write_lance_dataset(tables: Iterable[pa.Table], folder: str, schema: pa.Schema) -> int:
    """Write a new dataset, holding a few tables in memory at a time.

    Args:
        tables: The rows, in order.
        folder: Path of the new dataset.
        schema: Schema of the dataset.

    Returns:
        The number of rows written.

    Raises:
        OSError: The dataset cannot be written. Errors raised by `tables` pass through unchanged.
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
        dataset = library.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), folder, mode="create")
    except Exception:
        # Lance wraps errors of the iterator in its own; raise the original.
        if failed:
            raise failed[0] from None
        raise
    return int(dataset.count_rows())


def open_lance_dataset(path: str) -> Any:
    """Open the dataset at `path`. Raises InputError if it cannot be read."""
    require_lance()
    try:
        return import_module("lance").dataset(path.rstrip("/"))
    except (ValueError, OSError) as error:
        reason = first_line(error)
        raise InputError(
            f"{storage.format_location(path)}: not a readable Lance dataset: {reason}", "encode the rows again"
        ) from None
