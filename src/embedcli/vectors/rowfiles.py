"""Result rows to a file or stdout: JSON lines, or Parquet by the file's name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from embedcli import storage
from embedcli.vectors.files import column_of

ROWS_AT_ONCE = 10_000


def write_rows(rows: Iterator[dict[str, Any]], path: str) -> None:
    """Write rows with the same names each; `-` is stdout. A file appears whole or not at all."""
    if path.endswith((".parquet", ".pq")):
        _write_parquet(rows, path)
        return
    lines = (orjson.dumps(row, default=str, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    if path == "-":
        sys.stdout.buffer.writelines(lines)
        return
    with storage.replacing(path) as temporary, open(temporary, "wb") as out:
        out.writelines(lines)


def _write_parquet(rows: Iterator[dict[str, Any]], path: str) -> None:
    some = list(islice(rows, ROWS_AT_ONCE))
    first = pa.table({name: column_of([row[name] for row in some]) for name in some[0]} if some else {})
    with storage.replacing(path) as temporary, pq.ParquetWriter(temporary, first.schema) as writer:
        writer.write_table(first)
        while some := list(islice(rows, ROWS_AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(some, schema=first.schema))
