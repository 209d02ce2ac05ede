"""How long does planning take, and how much memory? Many Parquet files, a large sparse JSONL file, or a large real one.

    python benchmarks/plan_cost.py parquet|sparse|lines [--count-rows]

`parquet` are 10,000 files, `sparse` is a JSONL file of 10 GB that is mostly a hole, `lines` one of 2 GB. Prints one
line. --count-rows also counts the rows before each input split, as jobs without an id column do; this reads every line
of JSONL, so it does not suit `sparse`.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from embedcli import readers
from embedcli.core.job import Job

FILES = 10_000
SPARSE_BYTES = 10_000_000_000
REAL_BYTES = 2_000_000_000
# Vectors of 384 float32 dimensions that fit into an output file of 256 MB.
PARTITION_ROWS = 166_000


def main() -> None:
    """Plan the inputs and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=INPUT_WRITERS)
    parser.add_argument("--count-rows", action="store_true", help="also count the rows before each input split")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        inputs = INPUT_WRITERS[options.kind](Path(folder))
        peak_before = measure_peak_mb()
        started = time.perf_counter()
        job = Job(tuple(inputs), "out/", text_column="text", id_column="id")
        plan = readers.plan_inputs(job)
        partitions = readers.group_into_partitions(plan, PARTITION_ROWS)
        planning_seconds = time.perf_counter() - started
        starts = readers.count_split_starts(job, plan) if options.count_rows else []
        counting_seconds = time.perf_counter() - started - planning_seconds
    print(
        f"{options.kind}: {len(plan.splits)} input splits, {len(partitions)} partitions in {planning_seconds:.1f} s; "
        f"rows before {len(starts)} splits counted in {counting_seconds:.1f} s; "
        f"peak memory {measure_peak_mb():.0f} MB, {peak_before:.0f} MB before planning"
    )


def write_parquet_files(folder: Path) -> list[str]:
    """Write 10,000 files of 100 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": [f"r{i}" for i in range(100)], "text": ["some words"] * 100})
    for i in range(FILES):
        pq.write_table(table, folder / f"{i:05d}.parquet")
    return [str(folder)]


def write_lines(folder: Path, size: int = REAL_BYTES) -> list[str]:
    """Write a JSONL file of rows of about 500 bytes, at least 1,000 of them."""
    block = b"".join(json.dumps({"id": f"r{i}", "text": "word " * 92}).encode() + b"\n" for i in range(1000))
    path = folder / "rows.jsonl"
    with path.open("wb") as file:
        for _ in range(max(1, size // len(block))):
            file.write(block)
    return [str(path)]


def write_sparse_lines(folder: Path) -> list[str]:
    """Write a JSONL file of 1,000 rows of 500 bytes, then a hole up to 10 GB."""
    paths = write_lines(folder, 0)
    with open(paths[0], "r+b") as file:
        file.truncate(SPARSE_BYTES)
    return paths


INPUT_WRITERS = {"parquet": write_parquet_files, "sparse": write_sparse_lines, "lines": write_lines}


def measure_peak_mb() -> float:
    """The largest resident size so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
