"""The words of the program: Job, Piece, Chunk, Encoded, Part, Outcome and the error family.

Imports nothing of ours, and pyarrow and numpy only for the type checker, so that `--help` stays fast.

    EmbedcliError(message, hint)      exit 1
      UsageError                      exit 2   a flag, a column or a path that cannot be right
        ResumeError                   exit 2   the output belongs to another job
      InputError                      exit 1   the input cannot be read (says file:line)
      ModelError                      exit 1   the encoder cannot be loaded or run
      OutputError                     exit 1   the output cannot be written
      TooManyRejects                  exit 1   more bad rows than the user allows
    OutOfMemory                       internal: a batch did not fit; the engine halves it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Float32Array = NDArray[np.float32]
    Int32Array = NDArray[np.int32]
    Int64Array = NDArray[np.int64]
    BoolArray = NDArray[np.bool_]

InputFormat = Literal["jsonl", "csv", "tsv", "parquet"]
OutputFormat = Literal["parquet", "npy", "jsonl", "arrow", "lance"]
Role = Literal["query", "document", "none"]
Overflow = Literal["truncate", "error", "reject", "split", "pool"]
Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
InferenceEngine = Literal["auto", "torch", "openvino"]

DEFAULT_MODEL = "all-MiniLM-L6-v2"
# In a folder output: what says that it is finished, where it is staged, and the names of its files, whatever their
# format. What else lies there is somebody else's.
MANIFEST_FILE = "_manifest.json"
STAGING_FOLDER = "_parts"
PART_FILE_PATTERN = r"part-\d{5,}(-\d{3,})?\.(parquet|npy|ids\.parquet|jsonl|jsonl\.space\.json|arrow)\Z"
# Rows per chunk when nobody says otherwise; the runner takes a size that suits the device (see `runners`).
DEFAULT_CHUNK_ROWS = 1024
# A chunk closes early at this many bytes of text, so that rows of 10 MB do not fill the memory.
MAX_CHUNK_TEXT_BYTES = 32 << 20


@dataclass(frozen=True)
class InputSplit:
    """The address of some rows: cheap to send, and the same whatever the runner.

    `unit` says what `start` and `stop` count: "bytes" (JSONL: the lines that begin in the range),
    "rows" (Parquet: whole row groups), or "all" (a stream that can only be read from its beginning).
    """

    index: int
    path: str
    start: int = 0
    stop: int | None = None
    unit: Literal["bytes", "rows", "all"] = "all"


@dataclass(frozen=True)
class Partition:
    """Successive pieces: what one worker takes at a time, and what one file (or a few) of a folder output holds.

    The shares of a plan are the same whatever the runner, the number of workers or shards.
    """

    index: int
    splits: tuple[InputSplit, ...]


@dataclass(frozen=True)
class Reject:
    """A row that got no vector, and why. `line` counts from 1 (for Parquet: the row, from 1)."""

    source: str
    line: int
    reason: str
    id: Any = None
    raw: str = ""

    @property
    def kind(self) -> str:
        """The kind of reason, to count by: reasons are written as `KIND` or `KIND: DETAIL`."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class InputColumns:
    """How rows are read, decided once per job by `sources.plan` and the same for all its pieces.

    `id_type` and `keep_types` are Arrow types; `id_column` None means generated int64 row numbers, which count
    every row, good or bad, from 0. With `source_column` the kept columns end with `source`, the input's name.
    `json_columns` are kept columns whose values are stored as JSON text, for they have no type of their own.
    `notes` are sentences for the user: what was guessed.
    """

    text_column: str | None
    template: str | None
    id_column: str | None
    id_type: pa.DataType
    kept_types: Mapping[str, pa.DataType]
    has_source_column: bool = False
    notes: tuple[str, ...] = ()
    json_columns: frozenset[str] = frozenset()


@dataclass(frozen=True)
class InputPlan:
    """What `sources.plan` found out before any model is loaded.

    `pieces[i].index` is i, and the pieces cover every row of the inputs once, in order. `total_bytes` are those
    of the files (None with stdin), `total_rows` is known for Parquet only; `piece_rows` is about how many rows each
    piece has. `seen` is size and time of each local input before anything of it was read.
    """

    splits: tuple[InputSplit, ...]
    columns: InputColumns
    formats: Mapping[str, InputFormat]
    total_bytes: int | None
    total_rows: int | None
    rows_per_split: Sequence[int] = ()
    file_stats: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """Rows in input order, columnar. The sorting window, the part file and the resume step.

    `ids` and `texts` have one entry per good row; `kept` is a table with the kept columns of the same rows.
    `lines[i]` is where row i stands in its source (from 1). `read` counts good rows and rejects;
    `done_bytes` is how many bytes of the inputs this reading has consumed so far, for the progress bar.
    The last chunk of a piece has `last`; a piece without rows has one, empty chunk.
    """

    input_split: InputSplit
    index_in_split: int
    ids: pa.Array
    texts: Sequence[str]
    kept_columns: pa.Table
    lines: Sequence[int]
    rejects: tuple[Reject, ...] = ()
    rows_read: int = 0
    bytes_read: int = 0
    is_last: bool = False

    @property
    def key(self) -> tuple[int, int]:
        return self.input_split.index, self.index_in_split


@dataclass(frozen=True)
class EncodedChunk:
    """What the engine makes of a chunk: one entry per output row.

    `rows[i]` is the chunk row that output row i belongs to: ascending, repeated for windows, absent for rejects.
    `vectors` is float32 [n, dim]; `text_hash` uint8 [n, 16]; `extra` holds further columns (window offsets).
    `lost_tokens` is how many tokens of the rows' texts the encoder never read.
    """

    chunk: Chunk
    rows: Int64Array
    vectors: Float32Array
    n_tokens: Int32Array
    is_truncated: BoolArray
    text_hash: NDArray[np.uint8]
    rejects: tuple[Reject, ...] = ()
    extra_columns: Mapping[str, pa.Array] = field(default_factory=dict)
    lost_tokens: int = 0

    @property
    def embedded_rows(self) -> int:
        """How many rows of the chunk have vectors: fewer than output rows where texts became windows."""
        return int((self.rows[1:] != self.rows[:-1]).sum()) + min(1, len(self.rows))


@dataclass(frozen=True)
class ReusedVectors:
    """Vectors that need no forward pass: `rows` of the chunk (ascending), float32 [n, dim], and their counts."""

    rows: Int64Array
    vectors: Float32Array
    n_tokens: Int32Array
    is_truncated: BoolArray
    lost_tokens: Int32Array


@dataclass(frozen=True)
class PartFile:
    """A finished part file: `path`, its rows in and out, and the hash of the ids and texts it was made from."""

    key: tuple[int, int]
    path: str
    rows: int
    read: int
    rejects: int
    source_hash: str
    stats: Mapping[str, Any] = field(default_factory=dict)


class RunObserver:
    """Who follows a run: gets sentences for people, and is told when work begins and how far it is.

    A follower inherits from it, and what it has no use for does nothing.
    """

    def notify(self, text: str) -> None:
        """One sentence for stderr."""

    def on_start(self, plan: InputPlan, meter: Any) -> None:
        """The encoder is loaded; rows start to flow and `meter` to count."""

    def on_progress(self, rows: int, bytes_read: int) -> None:
        """`rows` rows in all are on disk, `done_bytes` of the inputs are read."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended: the exit code, why, and its numbers; `totals` covers resumed parts too.

    `usage` is what the encoder says this run has cost: `tokens` and `requests`, where it counts them.
    """

    exit_code: int
    reason: str
    totals: Mapping[str, int]
    vector_space: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    resumed_rows: int = 0
    damaged_parts: int = 0
    changes: Mapping[str, int] | None = None
    usage: Mapping[str, Any] | None = None
