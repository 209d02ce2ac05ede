"""What is measured: embedcli with some flags, or another library, each encoding the same rows in its own process."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedcli.benchmark.timed_process import Finished, run
from embedcli.core.errors import ModelError

if TYPE_CHECKING:
    from embedcli.core.types import Floats, Rows

PROGRAMS = Path(__file__).parent / "programs"
# embedcli ends with 3 when some rows were rejected: those of the others are compared all the same.
FINE = (0, 3)


class Failed(Exception):
    """A measured process did not end well; the message is its last line."""


@dataclass(frozen=True)
class Lap:
    """One run: seconds of the whole process, of its processors, and of encoding alone (no start, no loading).

    `others_share` is what other programs took of the processors meanwhile. `report` is what embedcli's own run report
    said; empty for others.
    """

    seconds: float
    cpu_seconds: float
    encode_seconds: float
    peak_mb: float
    others_share: float | None = None
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The vectors of a run, float32 [n, dim], and the row number of each; token counts of whole texts if known."""

    rows: Rows
    vectors: Floats
    n_tokens: Rows | None = None


class Contender(Protocol):
    """Encodes the rows of a JSONL file with the columns `id` (its row number) and `text`."""

    @property
    def name(self) -> str: ...

    def lap(self, rows: Path, folder: Path) -> Lap:
        """Run once; the results stay in `folder`. Raises Failed."""

    def result(self, folder: Path) -> Result:
        """What the last run left in `folder`."""


@dataclass(frozen=True)
class Ours:
    """`embedcli encode` with `arguments` of the user."""

    name: str
    arguments: tuple[str, ...]
    output: str = "out.parquet"

    def lap(self, rows: Path, folder: Path) -> Lap:
        report = folder / "report.json"
        command = [sys.executable, "-m", "embedcli", "encode", str(rows), f"{folder}/{self.output}", "--overwrite"]
        columns = ["--text-column", "text", "--id-column", "id", "--progress", "none", "--report", str(report)]
        done = ended_well(run([*command, *columns, *self.arguments], folder / "stderr.txt"))
        told = json.loads(report.read_text("utf-8"))
        return Lap(done.seconds, done.cpu_seconds, told["forward_seconds"], done.peak_mb, done.others_share, told)

    def result(self, folder: Path) -> Result:
        import numpy as np
        import pyarrow.parquet as pq

        table = pq.read_table(folder / self.output, columns=["id", "embedding", "n_tokens"]).combine_chunks()
        column = table["embedding"].combine_chunks()
        vectors = np.asarray(column.flatten(), np.float32).reshape(len(table), -1)
        return Result(table["id"].to_numpy(), vectors, table["n_tokens"].to_numpy().astype(np.int64))


@dataclass(frozen=True)
class Peer:
    """Another library through `programs/peer.py`, told `settings`, run by the interpreter `python`."""

    name: str
    settings: Mapping[str, Any]
    python: str = sys.executable

    def lap(self, rows: Path, folder: Path) -> Lap:
        done, facts = self._run(rows, folder, self.settings)
        (seconds,) = facts["encode_seconds"].values()
        return Lap(done.seconds, done.cpu_seconds, seconds, done.peak_mb, done.others_share)

    def result(self, folder: Path) -> Result:
        import numpy as np

        vectors = np.load(folder / "vectors.npy")
        return Result(np.arange(len(vectors)), vectors)

    def batch_seconds(self, rows: Path, folder: Path, sizes: tuple[int, ...]) -> dict[int, float]:
        """Encoding seconds by batch size, all in one process. Raises Failed."""
        _, facts = self._run(rows, folder, {**self.settings, "batch_sizes": sizes})
        return {int(size): seconds for size, seconds in facts["encode_seconds"].items()}

    def _run(self, rows: Path, folder: Path, settings: Mapping[str, Any]) -> tuple[Finished, dict[str, Any]]:
        paths = {"rows": str(rows), "vectors": str(folder / "vectors.npy"), "facts": str(folder / "facts.json")}
        (folder / "settings.json").write_text(json.dumps({**settings, **paths}), "utf-8")
        command = [self.python, str(PROGRAMS / "peer.py"), str(folder / "settings.json")]
        done = ended_well(run(command, folder / "stderr.txt"))
        return done, json.loads((folder / "facts.json").read_text("utf-8"))


def sure(own: Ours, rows: Path, folder: Path) -> Lap:
    """A run of ours, which has to go well. Raises ModelError."""
    try:
        return own.lap(rows, folder)
    except Failed as error:
        raise ModelError(f"embedcli failed: {error}", "try `embedcli encode` with the same flags") from error


def ended_well(done: Finished) -> Finished:
    """The process as it is, or Failed with its last line."""
    if done.code not in FINE:
        raise Failed(done.last_words)
    return done
