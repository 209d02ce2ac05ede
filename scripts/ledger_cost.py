"""What the safety of the parts costs: seconds per part to write it, and to find it sound when a run goes on.

    python scripts/ledger_cost.py [--parts 100] [--rows 1024] [--dim 384] [--rows-per-second 80]

Vectors are random and texts are made up; no model is loaded. With --rows-per-second, how fast the encoder is, both
costs are also given as a share of the time that it takes to encode the rows.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from embedcli import checkpoint, readers
from embedcli.core.job import Job
from embedcli.core.types import Chunk, Encoded
from embedcli.outputs import target as output_target
from embedcli.outputs.schema import Layout


def main() -> int:
    """Write the parts, find them again, print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=100)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rows-per-second", type=float)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        home = Path(folder)
        job = Job((str(home / "in.jsonl"),), str(home / "out.parquet"), chunk_rows=options.rows)
        write_rows(home / "in.jsonl", options.parts * options.rows)
        plan = readers.plan(job)
        layout = Layout(plan.columns, options.dim, "float32")
        reading = spent(lambda: sum(1 for _ in readers.read(job, plan, plan.pieces)))
        chunks = list(readers.read(job, plan, plan.pieces))
        encoded = list(made(chunks, options.dim))
        writing = spent(lambda: write(job, encoded, layout))
        finding = spent(lambda: find(job, chunks))
    parts = len(chunks)
    costs = {"write a part": writing, "find a part sound": finding, "read its rows again": reading}
    print(f"{parts} parts of up to {options.rows:,} rows, {options.dim} float32 dimensions each")
    for name, seconds in costs.items():
        share = ""
        if options.rows_per_second:
            encoding = options.parts * options.rows / options.rows_per_second
            share = f", {seconds / encoding:.2%} of encoding at {options.rows_per_second:,.0f} rows/s"
        print(f"{name:<20} {1000 * seconds / parts:6.1f} ms{share}")
    return 0


def write_rows(path: Path, count: int) -> None:
    """Rows of 20 to 120 words."""
    chance = random.Random(1)
    words = [f"word{i}" for i in range(5000)]
    with path.open("w") as out:
        for i in range(count):
            text = " ".join(chance.choices(words, k=chance.randint(20, 120)))
            out.write(json.dumps({"id": f"row-{i}", "text": text}) + "\n")


def made(chunks: list[Chunk], dim: int) -> Iterator[Encoded]:
    """Chunks with vectors, as an encoder would give them back."""
    chance = np.random.default_rng(1)
    for chunk in chunks:
        rows = len(chunk.texts)
        yield Encoded(
            chunk,
            np.arange(rows),
            chance.standard_normal((rows, dim), np.float32),
            np.full(rows, 90, np.int32),
            np.zeros(rows, bool),
            chance.integers(0, 256, (rows, 16), np.uint8),
        )


def write(job: Job, encoded: list[Encoded], layout: Layout) -> None:
    ledger = opened(job)
    for one in encoded:
        ledger.add(one, layout)
    ledger.release()


def find(job: Job, chunks: list[Chunk]) -> None:
    ledger = opened(job)
    missing = list(ledger.missing(chunks))
    ledger.release()
    if missing or ledger.damaged:
        raise SystemExit(f"{len(missing)} parts were not found again")


def opened(job: Job) -> checkpoint.Ledger:
    ledger = checkpoint.Ledger(output_target.target(job.output, None))
    ledger.acquire()
    ledger.begin({"job": 1}, overwrite=False)
    return ledger


def spent(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())
