"""How long planning takes and how much memory: 10,000 Parquet files, a sparse JSONL of 10 GB, or a real one of 2 GB.

    python scripts/plan_bar.py parquet|sparse|lines ids|generated

Prints one line. `generated` also counts where each piece starts, which reads every line of JSONL: not for sparse.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from embedcli import readers
from embedcli.core.job import Job

FILES = 10_000
SPARSE_BYTES = 10_000_000_000
REAL_BYTES = 2_000_000_000
# What fits into a part of 256 MB: 384 numbers of four bytes.
SHARE_ROWS = 166_000


def parquet(folder: Path) -> list[str]:
    """10,000 files of 100 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": [f"r{i}" for i in range(100)], "text": ["some words"] * 100})
    for i in range(FILES):
        path = folder / f"{i:05d}.parquet"
        if not path.exists():
            pq.write_table(table, path)
    return [str(folder)]


def lines(folder: Path, size: int = REAL_BYTES) -> list[str]:
    """Rows of some 500 bytes."""
    block = b"".join(json.dumps({"id": f"r{i}", "text": "word " * 92}).encode() + b"\n" for i in range(1000))
    path = folder / "rows.jsonl"
    with path.open("wb") as file:
        for _ in range(max(1, size // len(block))):
            file.write(block)
    return [str(path)]


def sparse(folder: Path) -> list[str]:
    """1,000 rows of 500 bytes, then a hole as long as 10 GB take."""
    paths = lines(folder, 0)
    with open(paths[0], "r+b") as file:
        file.truncate(SPARSE_BYTES)
    return paths


def main(kind: str, ids: str) -> None:
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        made = MAKERS[kind](Path(folder))
        before = peak()
        begun = time.perf_counter()
        job = Job(tuple(made), "out/", text_column="text", id_column="id")
        plan = readers.plan(job)
        shares = readers.shares(plan, SHARE_ROWS)
        planned = time.perf_counter() - begun
        starts = readers.row_starts(job, plan) if ids == "generated" else []
        counted = time.perf_counter() - begun - planned
    print(
        f"{kind}: {len(plan.pieces)} pieces, {len(shares)} shares in {planned:.1f} s; "
        f"{len(starts)} starts counted in {counted:.1f} s; {peak():.0f} MB at most, {before:.0f} MB before"
    )


MAKERS = {"parquet": parquet, "sparse": sparse, "lines": lines}


def peak() -> float:
    """Largest resident size so far in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main(*sys.argv[1:])
