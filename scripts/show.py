"""Show the first rows of a Parquet output that kept its texts: show.py OUT.parquet."""

from __future__ import annotations

import sys

import pyarrow.parquet as pq

ROWS = 5


def main(output: str) -> None:
    rows = pq.read_table(output).slice(0, ROWS).to_pylist()
    print(f"The first {len(rows)} rows of {output}:\n")
    print(f"{'id':<6} {'embedding':<42} {'tokens':>6}  text")
    for row in rows:
        print(f"{row['id']:<6} {start(row['embedding']):<42} {row['n_tokens']:>6}  {row['text'][:40]!r}")


def start(vector: list[float]) -> str:
    """The first three values, and how many there are."""
    return f"[{', '.join(f'{value:+.4f}' for value in vector[:3])}, ... {len(vector)} values]"


if __name__ == "__main__":
    main(*sys.argv[1:])
