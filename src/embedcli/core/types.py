"""The data types that packages exchange: input plan, chunk of rows, encoded chunk, part file, result of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from embedcli.core.progress import ExpectedRows, ProgressCounts

if TYPE_CHECKING:  # numpy and pyarrow would make `embedcli --help` slower
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from embedcli.core.row_vectors import RowVectors

    Float32Array = NDArray[np.float32]
    Int32Array = NDArray[np.int32]
    Int64Array = NDArray[np.int64]
    BoolArray = NDArray[np.bool_]

# "json" is one array of objects, "text" one row per line.
InputFormat = Literal["jsonl", "json", "csv", "tsv", "text", "parquet", "arrow"]
OutputFormat = Literal["parquet", "npy", "jsonl", "arrow", "lance"]
# The kind of text that is encoded (--as): many models use another prompt for queries than for documents.
Role = Literal["query", "document", "none"]
# What to do with a text that is longer than the model reads (--overflow).
Overflow = Literal["truncate", "error", "reject", "split", "pool"]
# Number format of the stored vectors (--precision).
Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]
# What the vectors of a model are: numbers in every dimension, weights of some words of a vocabulary, or a dense vector
# for each token.
VectorKind = Literal["dense", "sparse", "multi_vector"]
# In messages: "has multi-vector vectors".
KIND_ADJECTIVES: dict[VectorKind, str] = {"dense": "dense", "sparse": "sparse", "multi_vector": "multi-vector"}
# Number format of the computation (--dtype).
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
InferenceEngine = Literal["auto", "torch", "openvino"]


@dataclass(frozen=True)
class InputSplit:
    """A range of one input file: a few bytes to send, and the same for every runner.

    Attributes:
        index: The position of the split in `InputPlan.splits`.
        path: The input file.
        start: The first byte or row.
        stop: The byte or row after the last; None for the end of the file.
        unit: What `start` and `stop` count: "bytes" (JSONL and text; the split holds the lines that begin in the
            range), "rows" (Parquet and Arrow; whole row groups or record batches), or "all" (a stream that can only be
            read from its beginning).
        max_rows: Maximum number of rows to read from the range (--limit); None: all.
    """

    index: int
    path: str
    start: int = 0
    stop: int | None = None
    unit: Literal["bytes", "rows", "all"] = "all"
    max_rows: int | None = None


@dataclass(frozen=True)
class Partition:
    """Successive splits: the unit of work of one worker and of the files of a folder output.

    A plan has the same partitions whatever the runner and the number of workers or shards.
    """

    index: int
    splits: tuple[InputSplit, ...]


def reject_kind(reason: str) -> str:
    """The kind of a reject's reason, which is written as `KIND` or `KIND: DETAIL`."""
    return reason.partition(":")[0]


@dataclass(frozen=True)
class Reject:
    """A row that got no vector, with the reason.

    Attributes:
        source: The input, as shown to people: without passwords and signatures.
        line: The line of the row in its file, from 1; in Parquet and Arrow the row, from 1.
        reason: `KIND` or `KIND: DETAIL`.
        id: The id of the row, if it could be read.
        raw: The beginning of the row as it is in the file.
    """

    source: str
    line: int
    reason: str
    id: Any = None
    raw: str = ""

    @property
    def kind(self) -> str:
        """The kind of reason, to count by: reasons are written as `KIND` or `KIND: DETAIL`."""
        return reject_kind(self.reason)


@dataclass(frozen=True)
class InputColumns:
    """The columns that are read, resolved once per job and the same for all its splits.

    Attributes:
        text_column: The column of the texts; None with a template.
        template: The --template that makes one text from several columns.
        id_column: The column of the ids. None to number the rows, good or bad, from 0 as int64.
        id_type: The Arrow type of the ids in the output.
        kept_types: The Arrow type of each kept column in the output, by name.
        has_source_column: Whether the kept columns end with `source`, the name of the input.
        notes: Sentences for the user about what was guessed.
        json_columns: Kept columns whose values are stored as JSON text, because no Arrow type fits all of them.
        partition_types: The type of each column whose values are in the names of folders (`lang=fr`), by name.
    """

    text_column: str | None
    template: str | None
    id_column: str | None
    id_type: pa.DataType
    kept_types: Mapping[str, pa.DataType]
    has_source_column: bool = False
    notes: tuple[str, ...] = ()
    json_columns: frozenset[str] = frozenset()
    partition_types: Mapping[str, pa.DataType] = field(default_factory=dict)


@dataclass(frozen=True)
class InputPlan:
    """Everything about the inputs that is known before a model is loaded.

    Attributes:
        splits: All splits in order; together they hold every row of the inputs once. `splits[i].index` is i.
        columns: The columns to read.
        formats: The format of each input, by path.
        total_bytes: The size of the input files; None if one of them is a stream.
        total_rows: The number of rows; None unless all inputs are Parquet or Arrow files.
        rows_per_split: The rows of each split: exact for Parquet and Arrow files, otherwise estimated.
        encodings: The text encoding of inputs whose byte order mark shows another one than the job's, by path.
        file_stats: `storage.file_state` of each input before its rows were read, by path.
    """

    splits: tuple[InputSplit, ...]
    columns: InputColumns
    formats: Mapping[str, InputFormat]
    total_bytes: int | None
    total_rows: int | None
    rows_per_split: Sequence[int] = ()
    encodings: Mapping[str, str] = field(default_factory=dict)
    file_stats: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Chunk:
    """Rows in input order, as columns: they are encoded together and become one part file.

    A split without rows has one empty chunk.

    Attributes:
        input_split: The split that the rows belong to.
        index_in_split: The position of the chunk in its split, from 0.
        ids: The ids of the accepted rows.
        texts: Their texts.
        kept_columns: A table with their kept columns.
        lines: The line of each of them in its file, from 1.
        rejects: The rows of the chunk that cannot be encoded.
        rows_read: How many rows the chunk covers: accepted rows and rejects.
        bytes_read: Bytes of the inputs read so far, for the progress bar.
        is_last: Whether this is the last chunk of its split.
        repeated_headers: The lines of headers that were skipped between rows up to here, since the last chunk.
        raw_rows: The beginning of each accepted row as it is in its file, for rejects of the encoder; empty for rows
            of no file, whose text is all there is.
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
    repeated_headers: tuple[int, ...] = ()
    raw_rows: Sequence[str] = ()

    @property
    def key(self) -> tuple[int, int]:
        """The number of the split and the position in it: unique in a job."""
        return self.input_split.index, self.index_in_split

    def raw_row(self, row: int) -> str:
        """The beginning of an accepted row as it is in its file; the text of a row of no file."""
        return (self.raw_rows or self.texts)[row]


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk with its vectors. All arrays have n entries, one per output row.

    Attributes:
        chunk: The chunk that was encoded.
        rows: int64 [n], ascending: the row of the chunk that each output row belongs to. Rows that were split into
            windows appear several times, rejected rows not at all.
        vectors: float32 [n, dim], `SparseVectors` or `MultiVectors`, or the `HeadVectors` of several heads.
        n_tokens: int32 [n]: tokens of the whole text before truncation, prompt and special tokens included.
        is_truncated: bool [n]: whether the text was longer than the encoder reads.
        text_hash: uint8 [n, 16]: hash of the text.
        rejects: Rows that the encoder rejected, besides those in `chunk.rejects`.
        extra_columns: Further output columns: the offsets of windows.
        lost_tokens: Tokens of the texts that the encoder did not read.
    """

    chunk: Chunk
    rows: Int64Array
    vectors: RowVectors
    n_tokens: Int32Array
    is_truncated: BoolArray
    text_hash: NDArray[np.uint8]
    rejects: tuple[Reject, ...] = ()
    extra_columns: Mapping[str, pa.Array] = field(default_factory=dict)
    lost_tokens: int = 0

    @property
    def embedded_rows(self) -> int:
        """How many rows of the chunk have vectors: fewer than output rows where texts were split into windows."""
        return int((self.rows[1:] != self.rows[:-1]).sum()) + min(1, len(self.rows))


@dataclass(frozen=True)
class ReusedVectors:
    """Vectors from an earlier output for n rows of a chunk, which need no forward pass.

    Attributes:
        rows: int64 [n], ascending: rows of the chunk.
        vectors: In float32.
        n_tokens: int32 [n]: as in `EncodedChunk`.
        is_truncated: bool [n]: as in `EncodedChunk`.
        lost_tokens: int32 [n]: tokens of each text that the encoder did not read.
    """

    rows: Int64Array
    vectors: RowVectors
    n_tokens: Int32Array
    is_truncated: BoolArray
    lost_tokens: Int32Array


@dataclass(frozen=True)
class PartFile:
    """A chunk's result on disk.

    Attributes:
        key: The key of the chunk.
        path: The file.
        rows: How many rows of the chunk have vectors.
        read: How many rows of the input the chunk covers.
        rejects: How many of them were rejected.
        source_hash: Hash of the ids and texts of the chunk, to notice that the input has changed.
        stats: Counters of the chunk: tokens, truncated rows and others.
    """

    key: tuple[int, int]
    path: str
    rows: int
    read: int
    rejects: int
    source_hash: str
    stats: Mapping[str, Any] = field(default_factory=dict)


class RunObserver:
    """Is notified of the progress of a run. Subclasses override the methods they need; the others do nothing."""

    def notify(self, text: str) -> None:
        """Receive one sentence for people."""

    def on_phase(self, text: str) -> None:
        """Something begins that shows no rows.

        Args:
            text: What, in a few words: "loading the model".
        """

    def on_download(self, done_bytes: int, total_bytes: int | None) -> None:
        """A part of a download has arrived.

        Args:
            done_bytes: Bytes that have arrived.
            total_bytes: All bytes; None if nobody knows.
        """

    def on_start(self, expected: ExpectedRows, metrics: Any) -> None:
        """The encoder is loaded and rows start to flow.

        Args:
            expected: What is known of the rows that will be read.
            metrics: The `pipeline.metrics.MetricsCollector` that will count them.
        """

    def on_progress(self, counts: ProgressCounts) -> None:
        """A batch was computed, or rows of earlier runs were found.

        Called by several threads.

        Args:
            counts: All counts of the run; they change after the call.
        """


# Reasons that are named; the others are only counted.
MAX_SHOWN_REASONS = 4


@dataclass(frozen=True)
class RejectSummary:
    """The rejects of a job, counted by kind.

    Attributes:
        reasons: Rows by kind of reason, the most frequent first.
        first: The place of the first reject: the input and the line.
        path: The file with all of them; None if there is none.
        examples: The whole reason of the first reject of each kind.
        first_places: The place of the first reject of each kind.
    """

    reasons: Mapping[str, int]
    first: str
    path: str | None = None
    examples: Mapping[str, str] = field(default_factory=dict)
    first_places: Mapping[str, str] = field(default_factory=dict)

    def format_reasons(self) -> str:
        """Format the most frequent reasons and the first place: "2 text is empty, 1 bad JSON; first: in.jsonl:3"."""
        shown = list(self.reasons.items())[:MAX_SHOWN_REASONS]
        others = sum(self.reasons.values()) - sum(rows for _, rows in shown)
        texts = [f"{rows:,} {reason}" for reason, rows in shown] + ([f"{others:,} for other reasons"] if others else [])
        return f"{', '.join(texts)}; first: {self.first}"


@dataclass(frozen=True)
class RunResult:
    """The end of a run.

    Attributes:
        exit_code: The exit code of the process.
        reason: Why the run ended.
        totals: Rows, rejects and tokens of the whole job, earlier runs of it included.
        vector_space: The vector space metadata of the output.
        files: The published files.
        resumed_rows: Rows that earlier runs of the job had finished.
        lost_rows: Rows that a stopped run computed in chunks that it did not finish.
        damaged_parts: Part files of earlier runs that were damaged and made again.
        changes: With --update: how many rows are new, changed, unchanged and removed.
        usage: Requests and tokens of this run as the encoder counts them; None where nothing is billed.
        reject_summary: The rejects of the whole job; None without any, and while the output is not published.
        duplicate_ids: How many ids more than one row has; None where that was not counted.
    """

    exit_code: int
    reason: str
    totals: Mapping[str, int]
    vector_space: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    resumed_rows: int = 0
    lost_rows: int = 0
    damaged_parts: int = 0
    changes: Mapping[str, int] | None = None
    usage: Mapping[str, Any] | None = None
    reject_summary: RejectSummary | None = None
    duplicate_ids: int | None = None
