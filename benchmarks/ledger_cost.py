"""What do safe part files cost? Seconds per part file to write it, and to verify it when a run resumes.

    python benchmarks/ledger_cost.py [--parts 100] [--rows 1024] [--dim 384] [--rows-per-second 80]

Vectors and texts are random; no model is loaded. With --rows-per-second, the speed of an encoder, the costs are also
printed as a share of the time it takes to encode the rows.
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
from embedcli.core.types import Chunk, EncodedChunk
from embedcli.outputs import target as output_target
from embedcli.outputs.schema import OutputLayout, VectorField


def main() -> int:
    """Write the part files, verify them, print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=100, help="number of part files")
    parser.add_argument("--rows", type=int, default=1024, help="rows per part file")
    parser.add_argument("--dim", type=int, default=384, help="dimensions of a vector")
    parser.add_argument("--rows-per-second", type=float, help="speed of an encoder to compare with")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        job = Job((str(folder / "in.jsonl"),), str(folder / "out.parquet"), chunk_rows=options.rows)
        write_rows(folder / "in.jsonl", options.parts * options.rows)
        plan = readers.plan_inputs(job)
        layout = OutputLayout(plan.columns, (VectorField("dense", options.dim, "float32"),))
        reading = measure_seconds(lambda: sum(1 for _ in readers.read_chunks(job, plan, plan.splits)))
        chunks = list(readers.read_chunks(job, plan, plan.splits))
        encoded = list(add_random_vectors(chunks, options.dim))
        writing = measure_seconds(lambda: write_parts(job, encoded, layout))
        verifying = measure_seconds(lambda: verify_parts(job, chunks))
    parts = len(chunks)
    costs = {"write a part file": writing, "verify a part file": verifying, "read its rows again": reading}
    print(f"{parts} part files of up to {options.rows:,} rows, {options.dim} float32 dimensions each")
    for name, seconds in costs.items():
        share = ""
        if options.rows_per_second:
            encoding = options.parts * options.rows / options.rows_per_second
            share = f", {seconds / encoding:.2%} of encoding at {options.rows_per_second:,.0f} rows/s"
        print(f"{name:<20} {1000 * seconds / parts:6.1f} ms{share}")
    return 0


def write_rows(path: Path, count: int) -> None:
    """Write rows of 20 to 120 words."""
    generator = random.Random(1)
    words = [f"word{i}" for i in range(5000)]
    with path.open("w") as out:
        for i in range(count):
            text = " ".join(generator.choices(words, k=generator.randint(20, 120)))
            out.write(json.dumps({"id": f"row-{i}", "text": text}) + "\n")


def add_random_vectors(chunks: list[Chunk], dim: int) -> Iterator[EncodedChunk]:
    """Yield the chunks with random vectors, as an encoder would return them."""
    generator = np.random.default_rng(1)
    for chunk in chunks:
        rows = len(chunk.texts)
        yield EncodedChunk(
            chunk,
            np.arange(rows),
            generator.standard_normal((rows, dim), np.float32),
            np.full(rows, 90, np.int32),
            np.zeros(rows, bool),
            generator.integers(0, 256, (rows, 16), np.uint8),
        )


def write_parts(job: Job, encoded_chunks: list[EncodedChunk], layout: OutputLayout) -> None:
    ledger = open_ledger(job)
    for encoded in encoded_chunks:
        ledger.add_chunk(encoded, layout)
    ledger.release()


def verify_parts(job: Job, chunks: list[Chunk]) -> None:
    ledger = open_ledger(job)
    missing = list(ledger.skip_finished_chunks(chunks))
    ledger.release()
    if missing or ledger.damaged_parts:
        raise SystemExit(f"{len(missing)} part files are missing, {len(ledger.damaged_parts)} are damaged")


def open_ledger(job: Job) -> checkpoint.Ledger:
    ledger = checkpoint.Ledger(output_target.resolve_target(job.output, None))
    ledger.acquire()
    ledger.begin({"job": 1}, overwrite=False)
    return ledger


def measure_seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
