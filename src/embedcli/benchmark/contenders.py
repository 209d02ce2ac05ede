"""What is measured: embedcli with certain options, or another library, each run in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedcli.benchmark.timed_process import ProcessResult, run_measured
from embedcli.core.errors import ModelError

if TYPE_CHECKING:
    from embedcli.core.row_vectors import EncodedVectors
    from embedcli.core.types import Int64Array

PROGRAMS = Path(__file__).parent / "programs"
# 3 is embedcli's exit code for a run that rejected some rows: the other rows are compared all the same.
SUCCESS_CODES = (0, 3)


class RunFailed(Exception):
    """A measured process failed. The message is its last line."""


@dataclass(frozen=True)
class Timing:
    """What one run took.

    Attributes:
        seconds: Wall-clock seconds of the whole process.
        cpu_seconds: Its seconds of processor time.
        encode_seconds: Wall-clock seconds of encoding alone, without starting and loading.
        peak_mb: Its largest resident size, in 10**6 bytes.
        others_share: The share of the machine's processor time that other programs used meanwhile; None if unknown.
        report: The run report of embedcli; empty for other libraries.
    """

    seconds: float
    cpu_seconds: float
    encode_seconds: float
    peak_mb: float
    others_share: float | None = None
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunVectors:
    """The vectors of a run.

    Attributes:
        rows: int64 [n], the row number of each row that has vectors.
        vectors: float32 [n, dim], or the vectors of each row's tokens.
        n_tokens: int64 [n], the tokens of each whole text; None if unknown.
    """

    rows: Int64Array
    vectors: EncodedVectors
    n_tokens: Int64Array | None = None


class Contender(Protocol):
    """Encodes the rows of a JSONL file with the columns `id` (the row number) and `text`."""

    @property
    def name(self) -> str: ...

    def run(self, rows: Path, folder: Path) -> Timing:
        """Encode the rows once; the vectors stay in `folder`.

        Raises:
            RunFailed: The process failed.
        """

    def load_vectors(self, folder: Path) -> RunVectors:
        """Load the vectors of the last run in `folder`."""


@dataclass(frozen=True)
class EmbedcliRun:
    """`embedcli encode` with `arguments`, started by Python with the words of `program`."""

    name: str
    arguments: tuple[str, ...]
    output: str = "out.parquet"
    program: tuple[str, ...] = ("-m", "embedcli")

    def run(self, rows: Path, folder: Path) -> Timing:
        report_path = folder / "report.json"
        command = [sys.executable, *self.program, "encode", str(rows), f"{folder}/{self.output}", "--overwrite"]
        options = ["--text-column", "text", "--id-column", "id", "--progress", "none", "--report", str(report_path)]
        result = require_success(run_measured([*command, *options, *self.arguments], folder / "stderr.txt"))
        report = json.loads(report_path.read_text("utf-8"))
        return Timing(
            result.seconds,
            result.cpu_seconds,
            report["forward_seconds"],
            result.peak_mb,
            result.others_share,
            report,
        )

    def load_vectors(self, folder: Path) -> RunVectors:
        import numpy as np
        import pyarrow.parquet as pq

        from embedcli.core.multi_vectors import MultiVectors
        from embedcli.core.row_vectors import as_dense
        from embedcli.outputs.schema import decode_metadata
        from embedcli.outputs.vector_columns import open_vector_column

        path = folder / self.output
        table = pq.read_table(path, columns=["id", "embedding", "n_tokens"])
        stored = table["embedding"]
        metadata = decode_metadata(table.schema.metadata)
        column = open_vector_column(table.schema, metadata, str(path), stored.chunks, "embedding")
        found = column.to_vectors(stored)
        vectors = found if isinstance(found, MultiVectors) else np.asarray(as_dense(found), np.float32)
        return RunVectors(table["id"].to_numpy(), vectors, table["n_tokens"].to_numpy().astype(np.int64))


@dataclass(frozen=True)
class PeerLibrary:
    """Another library, through a program that receives `settings`, run by the interpreter `python`."""

    name: str
    settings: Mapping[str, Any]
    python: str = sys.executable

    def run(self, rows: Path, folder: Path) -> Timing:
        result, facts = self._run_program(rows, folder, self.settings)
        (seconds,) = facts["encode_seconds"].values()
        return Timing(result.seconds, result.cpu_seconds, seconds, result.peak_mb, result.others_share)

    def load_vectors(self, folder: Path) -> RunVectors:
        import numpy as np

        from embedcli.core.multi_vectors import MultiVectors
        from embedcli.core.ragged import offsets_of

        stored = np.load(folder / "vectors.npy")
        lengths = json.loads((folder / "facts.json").read_text("utf-8")).get("vectors_per_row")
        vectors = stored if lengths is None else MultiVectors(offsets_of(lengths), stored)
        return RunVectors(np.arange(len(vectors)), vectors)

    def time_batch_sizes(self, rows: Path, folder: Path, sizes: tuple[int, ...]) -> dict[int, float]:
        """Measure the encoding seconds of each batch size, all in one process.

        Raises:
            RunFailed: The process failed.
        """
        _, facts = self._run_program(rows, folder, {**self.settings, "batch_sizes": sizes})
        return {int(size): seconds for size, seconds in facts["encode_seconds"].items()}

    def _run_program(
        self, rows: Path, folder: Path, settings: Mapping[str, Any]
    ) -> tuple[ProcessResult, dict[str, Any]]:
        paths = {"rows": str(rows), "vectors": str(folder / "vectors.npy"), "facts": str(folder / "facts.json")}
        (folder / "settings.json").write_text(json.dumps({**settings, **paths}), "utf-8")
        command = [self.python, str(PROGRAMS / "other_library.py"), str(folder / "settings.json")]
        result = require_success(run_measured(command, folder / "stderr.txt"))
        return result, json.loads((folder / "facts.json").read_text("utf-8"))


def run_embedcli(contender: EmbedcliRun, rows: Path, folder: Path) -> Timing:
    """Run embedcli where nothing can be measured without it.

    Raises:
        ModelError: The process failed.
    """
    try:
        return contender.run(rows, folder)
    except RunFailed as error:
        raise ModelError(f"embedcli failed: {error}", "try `embedcli encode` with the same flags") from error


def require_success(result: ProcessResult) -> ProcessResult:
    """Return the result of a process that succeeded.

    Raises:
        RunFailed: It failed.
    """
    if result.code not in SUCCESS_CODES:
        raise RunFailed(result.last_error_line)
    return result
