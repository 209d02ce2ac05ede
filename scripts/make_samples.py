"""Write sample_data/texts.csv and texts.parquet from texts.jsonl, the master."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = Path(__file__).resolve().parent.parent / "sample_data"
COLUMNS = ("id", "title", "text", "lang", "topic")


def main() -> None:
    """The CSV bytes follow from the JSONL; the Parquet bytes also from the version of pyarrow."""
    (FOLDER / "texts.csv").write_bytes(as_csv(rows()))
    (FOLDER / "texts.parquet").write_bytes(as_parquet(rows()))


def rows() -> list[dict[str, str]]:
    with (FOLDER / "texts.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def as_csv(table: list[dict[str, str]]) -> bytes:
    """Commas, quotes and newlines inside a field are quoted; lines end with a plain newline."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue().encode("utf-8")


def as_parquet(table: list[dict[str, str]]) -> bytes:
    """Four row groups, so that reading by row group has something to do."""
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(table, schema), sink, row_group_size=-(-len(table) // 4))
    data: bytes = sink.getvalue().to_pybytes()
    return data


if __name__ == "__main__":
    main()
