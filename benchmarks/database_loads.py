"""How fast is `embedcli load` beside the database's own bulk path, and what is left after three kills?

    python benchmarks/database_loads.py ADDRESS [--rows N] [--pair-rows N] [--rounds N] [--json FILE]

ADDRESS is that of `embedcli load`, of a database whose tables `embedcli_benchmark` and `embedcli_baseline` may be
replaced. Exits with 1 if rows are missing or wrong after the kills, or if a second run takes longer than
SECOND_RUN_SECONDS.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer

from command_line import JsonPath, Rounds, make_app, publish
from embedcli import __version__
from embedcli.benchmark.machine import describe_machine
from embedcli.benchmark.results import round_floats
from embedcli.benchmark.text_tables import format_machine
from embedcli.cli.console import print_note
from embedcli.core.errors import EmbedcliError
from embedcli.core.types import InputColumns
from embedcli.databases import connect, parse_target
from embedcli.databases.verify import TableVerifier
from embedcli.outputs import writers
from embedcli.outputs.dataset import open_dataset
from embedcli.outputs.schema import OutputLayout, VectorField

TABLE, BASELINE_TABLE = "embedcli_benchmark", "embedcli_baseline"
BASELINE = Path(__file__).parent / "programs" / "bulk_load.py"
DIMENSIONS = 384
BLOCK_ROWS = 10_000
KILLS = 3
SAMPLED_ROWS = 10_000
SECOND_RUN_SECONDS = 5.0


def main(
    address: Annotated[str, typer.Argument(help="Database, such as lancedb:DIR.")],
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows that are loaded with kills.")] = 1_000_000,
    pair_rows: Annotated[int, typer.Option("--pair-rows", min=1, help="Rows of the paired runs.")] = 250_000,
    rounds: Rounds = 3,
    json: JsonPath = None,
) -> None:
    """Load random vectors with kills, check what arrived, and compare the speed with the fastest path by hand."""
    figures = measure(address, rows, pair_rows, rounds, print_note)
    publish(figures, format_table(figures), json)
    kills = figures["kills"]
    if not kills["is_complete"]:
        raise EmbedcliError("the table differs from the output", "this is a defect: please report the table")
    if kills["second_run_seconds"] > SECOND_RUN_SECONDS:
        raise EmbedcliError("the second run took too long", "run again on an idle machine")


def measure(address: str, rows: int, pair_rows: int, rounds: int, notify: Callable[[str], None]) -> dict[str, Any]:
    """Measure paired runs and a load with kills.

    Args:
        address: The database.
        rows: Rows that are loaded with kills.
        pair_rows: Rows of the paired runs.
        rounds: Number of pairs.
        notify: Receives one line of progress at a time.

    Returns:
        The figures that `--json` writes.
    """
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="embedcli-loads-") as name:
        folder = Path(name)
        pairs = measure_pairs(write_output(folder / "pairs.parquet", pair_rows), address, pair_rows, rounds, notify)
        (folder / "pairs.parquet").unlink()
        kills = measure_kills(write_output(folder / "rows.parquet", rows), address, rows, notify)
    return {"embedcli": __version__, "machine": machine, "database": address.partition(":")[0], **pairs, "kills": kills}


def measure_pairs(output: Path, address: str, rows: int, rounds: int, notify: Callable[[str], None]) -> dict[str, Any]:
    """Load with embedcli and by hand in turn, in a random order; whole processes."""
    order, pairs = random.Random(0), []
    for _ in range(rounds):
        seconds = {}
        for name in order.sample(["embedcli", "by hand"], 2):
            drop_tables(address)
            is_own = name == "embedcli"
            command = load_command(output, address) if is_own else [str(BASELINE), str(output), address, BASELINE_TABLE]
            seconds[name] = run_timed(command)
        pairs.append(seconds)
        notify(f"{rows:,} rows: embedcli {seconds['embedcli']:.1f} s, by hand {seconds['by hand']:.1f} s")
    drop_tables(address)
    ratios = [pair["by hand"] / pair["embedcli"] for pair in pairs]
    return {
        "pair_rows": rows,
        "pairs": round_floats(pairs),
        "speed_ratio": round_floats(median(ratios)),
        "speed_ratios": round_floats(ratios),
    }


def measure_kills(output: Path, address: str, rows: int, notify: Callable[[str], None]) -> dict[str, Any]:
    """Load with kills, let it finish, load again, and compare the table with the output."""
    command = [sys.executable, *load_command(output, address)]
    killed_after: list[int] = []
    for _ in range(KILLS):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for_rows(process, address, (len(killed_after) + 1) * rows // (KILLS + 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_after.append(count_rows(address))
        notify(f"killed with {killed_after[-1]:,} rows in the table")
    finish_seconds = run_timed(command[1:])
    second_run_seconds = run_timed(command[1:])
    with connect(parse_target(address, TABLE), read_only=True) as database:
        checks = TableVerifier(open_dataset(str(output)), database, TABLE, SAMPLED_ROWS, 0).run()
    drop_tables(address)
    return {
        "rows": rows,
        "rows_at_kills": killed_after,
        "finish_seconds": round_floats(finish_seconds),
        "second_run_seconds": round_floats(second_run_seconds),
        "is_complete": all(check.passed for check in checks),
        "checks": {check.name: check.detail for check in checks},
    }


def wait_for_rows(process: subprocess.Popen[bytes], address: str, rows: int) -> None:
    """Wait until a load has brought this many rows; for a database of one process, as long as they may take."""
    while process.poll() is None:
        time.sleep(1)
        try:
            if count_rows(address) >= rows:
                return
        except EmbedcliError:
            # No database yet, or one that only one process may open.
            continue


def count_rows(address: str) -> int:
    """The rows in the table; 0 if there is none yet."""
    with connect(parse_target(address, TABLE), read_only=True) as database:
        return 0 if database.read_record(TABLE) is None else database.count_rows(TABLE)


def load_command(output: Path, address: str) -> list[str]:
    return ["-m", "embedcli", "load", str(output), address, "--table", TABLE, "--quiet"]


def run_timed(arguments: list[str]) -> float:
    """Run a Python process to its end. Returns its seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True)
    return time.perf_counter() - start


def drop_tables(address: str) -> None:
    with connect(parse_target(address, TABLE)) as database:
        for table in (TABLE, BASELINE_TABLE):
            database.drop_table(table)


def write_output(path: Path, rows: int) -> Path:
    """Write an output of random unit vectors with ids of texts, the same on every call."""
    layout = OutputLayout(
        InputColumns("text", None, "id", pa.string(), {}), (VectorField("dense", DIMENSIONS, "float32"),)
    )
    space = {"model": "random", "fingerprint": "0" * 64, "dim": DIMENSIONS, "precision": "float32", "normalize": True}
    job = {"job": {}, "source_hash": "0", "read": rows, "rows": rows}
    metadata = {writers.SPACE_METADATA_KEY: space, writers.JOB_METADATA_KEY: job}
    chance = np.random.default_rng(0)

    def tables() -> Any:
        for start in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - start)
            numbers = chance.standard_normal((count, DIMENSIONS), np.float32)
            numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
            vectors = pa.FixedSizeListArray.from_arrays(
                pa.array(numbers.reshape(-1)), type=layout.schema().field("embedding").type
            )
            ids = pa.array([f"row-{start + i:09d}" for i in range(count)])
            hashes = pa.array([chance.bytes(16) for _ in range(count)], pa.binary(16))
            tokens, cut = pa.array([8] * count, pa.int32()), pa.array([False] * count)
            yield pa.Table.from_arrays([ids, vectors, tokens, cut, hashes], schema=layout.schema())

    writers.write_parquet(tables(), str(path), layout, metadata, rows)
    return path


def format_table(figures: Mapping[str, Any]) -> str:
    """The figures as text."""
    kills = figures["kills"]
    ratios = ", ".join(f"{ratio:.2f}" for ratio in figures["speed_ratios"])
    return "\n".join(
        [
            *format_machine(figures["machine"]),
            "",
            f"{figures['database']}: {figures['speed_ratio']:.2f} times as fast as by hand (median; {ratios}), "
            f"{figures['pair_rows']:,} rows, whole processes",
            f"{kills['rows']:,} rows with kills at {', '.join(f'{rows:,}' for rows in kills['rows_at_kills'])}: "
            f"finished in {kills['finish_seconds']:.1f} s, second run {kills['second_run_seconds']:.1f} s",
            *(f"{name:<7} {detail}" for name, detail in kills["checks"].items()),
        ]
    )


app = make_app(main)

if __name__ == "__main__":
    app()
