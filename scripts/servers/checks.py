"""What `embedcli encode` must do with a server: each check raises CheckFailedError, or returns what it saw."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from servers.process import ServerProcess
from servers.table import HUGE_TEXT, LONG_TEXT, MAX_TOKENS, SERVED_NAME, RealServer

SAMPLE = Path(__file__).resolve().parents[2] / "sample_data" / "texts.jsonl"
COPIES = 3
# No tokenizer makes more tokens of so few characters than MAX_TOKENS, in any of the languages of the sample.
MAX_SAMPLE_CHARACTERS = 240
COMPARED_ROWS = 60
RUN_SECONDS = 300
# The same text in another batch differs by rounding only; another implementation of the model by a little more.
MIN_SAME_COSINE = 0.9999
MIN_LOCAL_COSINE = 0.999
SOME_ROWS_REJECTED = 3

Rows = dict[str, str]
Vectors = dict[str, np.ndarray[Any, Any]]


class CheckFailedError(Exception):
    """A server and embedcli together do not do what they must. The message says what."""


@dataclass(frozen=True)
class Trial:
    """A running server and the rows that are sent to it.

    Attributes:
        server: What the server is known to do.
        process: The running server.
        model: The folder of the model that it serves.
        home: A folder for files.
        rows: Texts by id, in the order of the input.
    """

    server: RealServer
    process: ServerProcess
    model: Path
    home: Path
    rows: Rows

    @property
    def input(self) -> Path:
        """The input file."""
        return self.home / "in.jsonl"

    def command(self, output: Path, *options: object) -> list[str]:
        """The command that encodes the rows, in small chunks."""
        hosted = ["-m", f"openai:{SERVED_NAME}", "--base-url", self.process.base_url, "--tokenizer", self.model]
        encode = ["encode", self.input, output, *hosted, "--chunk-rows", 64, "--max-concurrency", 4, *options]
        return [sys.executable, "-m", "embedcli", *map(str, encode), "--id-column", "id", "--text-column", "text"]

    def encode(self, name: str, *options: object) -> Path:
        """Encode the rows and return the output; some rows must be rejected, and nothing else be wrong."""
        output = self.home / name
        finished = subprocess.run(
            self.command(output, *options), timeout=RUN_SECONDS, capture_output=True, text=True, check=False
        )
        require(finished.returncode == SOME_ROWS_REJECTED, f"exit code {finished.returncode}: {finished.stderr}")
        return output


def make_rows() -> Rows:
    """Short and long texts in several languages, an empty text, and two that are too long."""
    samples = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()]
    samples = [row for row in samples if len(row["text"]) <= MAX_SAMPLE_CHARACTERS]
    rows = {f"{row['id']}-{row['lang']}-{copy}": f"{row['text']} {copy}" for copy in range(COPIES) for row in samples}
    ids = list(rows)
    for place, (name, text) in enumerate({"empty": "", "long": LONG_TEXT, "huge": HUGE_TEXT}.items()):
        ids.insert(100 * (place + 1), name)
        rows[name] = text
    return {name: rows[name] for name in ids}


def write_rows(path: Path, rows: Rows) -> None:
    """Write the input file."""
    lines = [json.dumps({"id": name, "text": text}, ensure_ascii=False) for name, text in rows.items()]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def check_rows_and_rejects(trial: Trial) -> str:
    """Every row is embedded, in order, or rejected with the server's own words."""
    output = trial.encode("whole.parquet")
    rejects = read_rejects(output)
    require(list(read_vectors(output)) == [name for name in trial.rows if name not in rejects], "rows are missing")
    require(rejects.keys() == {"empty", *trial.server.refusals}, f"rejected: {sorted(rejects)}")
    for name, words in trial.server.refusals.items():
        require(words in rejects[name], f"the reason for {name} is not the server's: {rejects[name]}")
    reasons = "; ".join(f"{name}: {reason}" for name, reason in rejects.items())
    return f"{len(trial.rows)} rows in, {len(trial.rows) - len(rejects)} embedded, in order; {reasons}"


def check_order(trial: Trial) -> str:
    """Each vector is that of its own text: the server gives the same one when it is asked for this text alone."""
    stored = read_vectors(trial.home / "whole.parquet")
    names = list(stored)[:: max(1, len(stored) // COMPARED_ROWS)]
    alone = np.array([request_alone(trial.process.base_url, trial.rows[name]) for name in names])
    cosines = alone @ np.array([stored[name] for name in names]).T
    require(bool((cosines.argmax(axis=1) == np.arange(len(names))).all()), "vectors belong to other rows")
    lowest = float(cosines.diagonal().min())
    require(lowest >= MIN_SAME_COSINE, f"vectors differ from those of single requests: cosine {lowest:.6f}")
    return f"{len(names)} texts asked alone have the same vectors (lowest cosine {lowest:.6f})"


def check_same_as_local(trial: Trial) -> str:
    """The vectors are those of the same model in embedcli."""
    output = trial.home / "local.parquet"
    command = [sys.executable, "-m", "embedcli", "encode", trial.input, output, "-m", trial.model, "--offline"]
    subprocess.run(list(map(str, command)), timeout=RUN_SECONDS, capture_output=True, check=False)
    local = read_vectors(output)
    otherwise = {name for name in local if set(name.split("-")) & trial.server.languages_read_otherwise}
    same = {name: vector for name, vector in local.items() if name not in otherwise}
    stored = read_vectors(trial.home / "whole.parquet")
    lowest, name = compare(stored, same)
    require(lowest >= MIN_LOCAL_COSINE, f"the vector of {name} differs from the local one: cosine {lowest:.6f}")
    result = f"lowest cosine with the model in embedcli: {lowest:.6f}"
    if not otherwise:
        return result
    lowest, _ = compare(stored, {name: local[name] for name in otherwise})
    return f"{result}; {lowest:.2f} for {', '.join(sorted(trial.server.languages_read_otherwise))}"


def check_cuts(trial: Trial) -> str:
    """With the limit given, long texts are cut before they are sent, and flagged; so no server refuses them."""
    flagged = read_flagged(trial.home / "whole.parquet")
    expected = {"long", "huge"} if trial.server.finds_cuts else set()
    require(flagged == expected, f"flagged as truncated: {sorted(flagged)}")
    limited = trial.encode("limited.parquet", "--max-seq-length", MAX_TOKENS)
    flagged, rejected = read_flagged(limited), set(read_rejects(limited))
    require(flagged == {"long", "huge"}, f"flagged with --max-seq-length {MAX_TOKENS}: {sorted(flagged)}")
    require(rejected == {"empty"}, f"rejected with --max-seq-length {MAX_TOKENS}: {sorted(rejected)}")
    if trial.server.finds_cuts:
        alone = "both texts flagged by the tokens that the server reports"
    elif "long" in trial.server.refusals:
        alone = "refused by the server"
    else:
        alone = "cut by the server and not seen, as documented"
    return f"without a limit {alone}; with --max-seq-length {MAX_TOKENS}: {', '.join(sorted(flagged))} flagged"


def check_verify(trial: Trial) -> str:
    """`verify` accepts the output, and the server's canaries are those recorded."""
    output = trial.home / "whole.parquet"
    command = [sys.executable, "-m", "embedcli", "verify", str(output), str(trial.input)]
    finished = subprocess.run(
        [*command, "--base-url", trial.process.base_url],
        timeout=RUN_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    require(finished.returncode == 0, f"exit code {finished.returncode}: {finished.stdout}{finished.stderr}")
    lines = [line.strip() for line in finished.stdout.splitlines() if "canaries" in line]
    require(bool(lines), f"no canaries are compared: {finished.stdout}")
    return lines[0]


def check_killed_client(trial: Trial) -> str:
    """A run that is killed with SIGKILL is resumed from its checkpoints."""
    output = trial.home / "killed.parquet"
    with start_encoding(trial, output) as run:
        run.kill()
        run.wait()
    parts = count_parts(output)
    report = trial.home / "report.json"
    trial.encode(output.name, "--report", report)
    reused = json.loads(report.read_text("utf-8"))["rows"]["resumed"]
    require(reused > 0, "the second run began from the start")
    return f"killed after {parts} part files; {reused} rows were not sent again; {compare_with_whole(trial, output)}"


def check_killed_server(trial: Trial) -> str:
    """A run goes on when its server is killed with SIGKILL and started again; no row is rejected for it."""
    output = trial.home / "outage.parquet"
    with start_encoding(trial, output) as run:
        trial.process.kill(signal.SIGKILL)
        parts = count_parts(output)
        time.sleep(2)
        require(run.poll() is None, "the run ended while the server was down")
        trial.process.start()
        _, said = run.communicate(timeout=RUN_SECONDS)
    require(run.returncode == SOME_ROWS_REJECTED, f"exit code {run.returncode}: {said}")
    return f"server killed after {parts} part files and started again; {compare_with_whole(trial, output)}"


CHECKS: dict[str, Callable[[Trial], str]] = {
    "rows and rejects": check_rows_and_rejects,
    "order": check_order,
    "same as local": check_same_as_local,
    "cuts": check_cuts,
    "verify": check_verify,
    "client killed": check_killed_client,
    "server killed": check_killed_server,
}


@contextmanager
def start_encoding(trial: Trial, output: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `encode` until it has written a part file, and leave it running; it is killed if a check fails."""
    run = subprocess.Popen(trial.command(output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + RUN_SECONDS
        while count_parts(output) < 2:
            require(run.poll() is None and time.monotonic() < deadline, "the run ended before it could be disturbed")
            time.sleep(0.01)
        yield run
    finally:
        run.kill()
        run.communicate()


def count_parts(output: Path) -> int:
    """The number of checkpoints beside an unfinished output."""
    return len(list(Path(f"{output}.parts").glob("part-*")))


def compare_with_whole(trial: Trial, output: Path) -> str:
    """Require the rows, rejects and vectors of the undisturbed run."""
    whole = trial.home / "whole.parquet"
    require(list(read_vectors(output)) == list(read_vectors(whole)), "rows are missing or in another order")
    require(read_rejects(output).keys() == read_rejects(whole).keys(), f"rejected: {sorted(read_rejects(output))}")
    lowest, name = compare(read_vectors(output), read_vectors(whole))
    require(lowest >= MIN_SAME_COSINE, f"the vector of {name} has changed: cosine {lowest:.6f}")
    return f"same rows and rejects as undisturbed, lowest cosine {lowest:.6f}"


def compare(vectors: Vectors, others: Vectors) -> tuple[float, str]:
    """The lowest cosine of the rows that both have, and its row."""
    return min((float(vectors[name] @ others[name]), name) for name in vectors.keys() & others.keys())


def request_alone(base_url: str, text: str) -> np.ndarray[Any, Any]:
    """Request the vector of one text, without embedcli; float32 [dim] of length 1."""
    body = json.dumps({"model": SERVED_NAME, "input": [text]}).encode()
    request = urllib.request.Request(f"{base_url}/embeddings", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        vector = np.array(json.load(response)["data"][0]["embedding"], np.float32)
    return vector / np.linalg.norm(vector)


def read_vectors(path: Path) -> Vectors:
    """The vectors of an output by id, in its order, each of length 1."""
    table = pq.read_table(path)
    vectors = np.array(table.column("embedding").to_pylist(), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return dict(zip(table.column("id").to_pylist(), vectors, strict=True))


def read_flagged(path: Path) -> set[str]:
    """The ids of the rows that are flagged as truncated."""
    table = pq.read_table(path, columns=["id", "truncated"])
    pairs = zip(table.column("id").to_pylist(), table.column("truncated").to_pylist(), strict=True)
    return {name for name, is_truncated in pairs if is_truncated}


def read_rejects(path: Path) -> dict[str, str]:
    """The reasons of an output's rejects by id."""
    lines = Path(f"{path}.rejects.jsonl").read_text("utf-8").splitlines()
    return {row["id"]: row["reason"] for row in map(json.loads, lines)}


def require(condition: bool, message: str) -> None:
    """Raise CheckFailedError unless the condition holds."""
    if not condition:
        raise CheckFailedError(message)
