"""Result rows to a file or stdout: JSON lines, or Parquet by the file's name."""

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
from embedcli.core.errors import UsageError
from embedcli.outputs.vector_files import json_values_to_column

ROWS_AT_ONCE = 10_000
TIME_TYPES = (date, datetime, time, timedelta)


def write_rows(rows: Iterator[dict[str, Any]], path: str) -> None:
    """Write rows with the same names each; `-` is stdout. A file appears whole or not at all."""
    if path.endswith((".parquet", ".pq")):
        _write_parquet(rows, path)
        return
    lines = (orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    if path == "-":
        sys.stdout.buffer.writelines(lines)
        return
    with storage.replace_file_atomically(path) as temporary, open(temporary, "wb") as out:
        out.writelines(lines)


def _write_parquet(rows: Iterator[dict[str, Any]], path: str) -> None:
    some = list(islice(rows, ROWS_AT_ONCE))
    plain = _in_text(some, _mixed(some))
    first = pa.table({name: json_values_to_column([row[name] for row in plain]) for name in plain[0]} if plain else {})
    texts = {field.name for field in first.schema if pa.types.is_string(field.type)}
    with storage.replace_file_atomically(path) as temporary, pq.ParquetWriter(temporary, first.schema) as writer:
        writer.write_table(first)
        while some := list(islice(rows, ROWS_AT_ONCE)):
            try:
                writer.write_table(pa.Table.from_pylist(_in_text(some, texts), schema=first.schema))
            except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise UsageError(
                    f"{path}: a later value is of another type than those before: {error}", "write JSON lines: .jsonl"
                ) from None


def _mixed(rows: list[dict[str, Any]]) -> set[str]:
    """The columns in which times stand beside the texts of those that Python has no values for."""
    return {
        name
        for name in (rows[0] if rows else ())
        if {str, *TIME_TYPES} >= {type(row[name]) for row in rows} - {type(None)}
        and any(type(row[name]) is str for row in rows)
    }


def _in_text(rows: list[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    """The rows with the times in some columns as ISO text."""
    return [{name: _iso(value) if name in names else value for name, value in row.items()} for row in rows]


def _iso(value: Any) -> Any:
    if type(value) is timedelta:
        return str(value)
    return value.isoformat() if type(value) in TIME_TYPES else value
