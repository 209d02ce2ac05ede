"""Write search results to a file or stdout, as JSON lines or Parquet."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import storage
from embedcli.core.errors import OutputError, UsageError
from embedcli.core.terminal import escape_json_line
from embedcli.outputs.jsonl_vectors import json_values_to_column

ROW_GROUP_ROWS = 10_000
TIME_TYPES = (date, datetime, time, timedelta)


def write_rows(rows: Iterator[dict[str, Any]], path: str) -> None:
    """Write rows as Parquet if `path` ends in .parquet or .pq, else as JSON lines. Files are written atomically.

    Args:
        rows: Rows with the same keys.
        path: File to write; `-` is stdout.

    Raises:
        UsageError: A later row does not fit the Parquet schema inferred from the first rows.
    """
    if path.endswith((".parquet", ".pq")):
        _write_parquet(rows, path)
        return
    lines = (orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    if path == "-":
        out = getattr(sys.stdout, "buffer", None)
        if out is None:
            raise OutputError("stdout is closed or not binary", "use --to-file FILE")
        out.writelines(map(escape_json_line, lines))
        return
    with storage.replace_file_atomically(path) as temporary, open(temporary, "wb") as out:
        out.writelines(lines)


def _write_parquet(rows: Iterator[dict[str, Any]], path: str) -> None:
    batch = list(islice(rows, ROW_GROUP_ROWS))
    batch = _times_to_text(batch, _find_mixed_columns(batch))
    first = pa.table({name: json_values_to_column([row[name] for row in batch]) for name in batch[0]} if batch else {})
    text_columns = {field.name for field in first.schema if pa.types.is_string(field.type)}
    with storage.replace_file_atomically(path) as temporary, pq.ParquetWriter(temporary, first.schema) as writer:
        writer.write_table(first)
        while batch := list(islice(rows, ROW_GROUP_ROWS)):
            try:
                writer.write_table(pa.Table.from_pylist(_times_to_text(batch, text_columns), schema=first.schema))
            except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise UsageError(
                    f"{path}: a later row has a value of a different type: {error}", "use a name that ends in .jsonl"
                ) from None


def _find_mixed_columns(rows: list[dict[str, Any]]) -> set[str]:
    """Return the columns that hold both times and strings (times outside the range of Python are strings)."""
    return {
        name
        for name in (rows[0] if rows else ())
        if {str, *TIME_TYPES} >= {type(row[name]) for row in rows} - {type(None)}
        and any(type(row[name]) is str for row in rows)
    }


def _times_to_text(rows: list[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    """Convert the times in some columns to ISO text."""
    return [{name: _to_iso_text(value) if name in names else value for name, value in row.items()} for row in rows]


def _to_iso_text(value: Any) -> Any:
    if type(value) is timedelta:
        return str(value)
    return value.isoformat() if type(value) in TIME_TYPES else value
