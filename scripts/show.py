"""Show the first rows of a Parquet output beside the texts they were made from: show.py OUT.parquet IN.jsonl."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

ROWS = 5


def main(output: str, source: str) -> None:
    table = pq.read_table(output).slice(0, ROWS)
    with Path(source).open(encoding="utf-8") as lines:
        texts = {row["id"]: row["text"] for row in map(json.loads, islice(lines, 2 * ROWS))}
    print(f"\nThe first {table.num_rows} rows of {output}:\n")
    print(f"{'id':<6} {'embedding':<42} {'tokens':>6}  text")
    for row in table.to_pylist():
        print(f"{row['id']:<6} {start(row['embedding']):<42} {row['n_tokens']:>6}  {texts.get(row['id'], '')[:40]!r}")


def start(vector: list[float]) -> str:
    """The first three values and the length of the vector."""
    values = np.array(vector, dtype=np.float32)
    return f"[{', '.join(f'{value:+.4f}' for value in values[:3])}, ... {len(values)} values]"


if __name__ == "__main__":
    main(*sys.argv[1:])
