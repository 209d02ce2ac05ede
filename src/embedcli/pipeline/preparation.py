"""Before and after the encoder: deduplicate and tokenize a chunk, and turn vectors into its encoded rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli.core.arrow_values import scalar_to_python
from embedcli.core.batching import group_by_size
from embedcli.core.encoder import BaseEncoder, TextTokenizer, Tokens
from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.quantization import is_storable, truncate_and_normalize
from embedcli.core.types import Chunk, EncodedChunk, Overflow, Precision, Reject, ReusedVectors
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.windows import (
    TextWindows,
    as_single_windows,
    map_rows_to_sequences,
    mean_pool_windows,
    merge_empty_windows,
    split_into_windows,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import BoolArray, Float32Array, Int32Array, Int64Array

ReuseLookup = Callable[[Chunk, Any], ReusedVectors]


@dataclass(frozen=True)
class EncodingSettings:
    """What the pipeline needs of a job.

    After `truncate_dim` vectors are normalised unless `normalize` is False; if the dimension was saved with the model
    (`is_saved_truncation`), they are normalised only if `normalize` is True, as in sentence-transformers.
    """

    prompt: str = ""
    batch_tokens: int | None = None
    overflow: Overflow = "truncate"
    split_overlap: int = 0
    truncate_dim: int | None = None
    is_saved_truncation: bool = False
    normalize: bool | None = None
    precision: Precision = "float32"
    reuse_lookup: ReuseLookup | None = None

    @classmethod
    def from_job(
        cls, job: Job, prompt: str, reuse_lookup: ReuseLookup | None = None, *, saved_dim: int | None = None
    ) -> EncodingSettings:
        """The settings of a job, with the prompt that its encoder resolved.

        Without a --truncate-dim, vectors are cut to `saved_dim`, the dimension saved with the model.
        """
        return cls(
            prompt=prompt,
            batch_tokens=job.batch_tokens,
            overflow=job.overflow,
            split_overlap=job.split_overlap,
            truncate_dim=job.truncate_dim or saved_dim,
            is_saved_truncation=job.truncate_dim is None and saved_dim is not None,
            normalize=job.normalize,
            precision=job.precision,
            reuse_lookup=reuse_lookup,
        )


@dataclass
class ChunkInProgress:
    """A chunk that is being encoded.

    Attributes:
        text_hashes: uint8 [rows, 16]; what `hash_texts` returned.
        reused: Rows whose vectors come from a finished output.
        distinct_index: int64 [rows]; the number of each row's distinct text, -1 for reused rows.
        rows_per_text: int64 [distinct texts]; how many rows have each of them.
        portions: Its distinct texts, as far as they are tokenized.
        is_fully_tokenized: Whether all of them are.
    """

    chunk: Chunk
    text_hashes: Any
    reused: ReusedVectors | None
    distinct_index: Int64Array
    rows_per_text: Int64Array
    portions: list[TokenizedPortion] = field(default_factory=list)
    is_fully_tokenized: bool = False

    @property
    def is_done(self) -> bool:
        """Whether every sequence has a vector or a reject reason."""
        return self.is_fully_tokenized and not any(portion.pending for portion in self.portions)

    @property
    def skipped_rows(self) -> int:
        """How many rows need no computation: bad ones, and those whose vectors come from a finished output."""
        return len(self.chunk.rejects) + (len(self.reused.rows) if self.reused is not None else 0)


@dataclass
class TokenizedPortion:
    """Some distinct texts of a chunk, tokenized and batched together.

    Attributes:
        first_text: The number of its first text among the chunk's distinct texts.
        windows: Its texts as sequences.
        tokens: The sequences' tokens.
        vectors: float32 [sequences, dim]; filled as batches are collected.
        reject_reasons: Why a sequence gets no vector, by its number.
        pending: How many sequences still wait for their vector.
        pending_per_text: int64 [texts]; how many sequences of each text still wait.
    """

    chunk_in_progress: ChunkInProgress
    first_text: int
    windows: TextWindows
    tokens: Tokens
    vectors: Float32Array
    reject_reasons: dict[int, str]
    pending: int = 0
    pending_per_text: Int64Array = field(init=False)

    def __post_init__(self) -> None:
        self.pending_per_text = np.diff(self.windows.text_starts)

    def mark_done(self, sequences: Int64Array) -> int:
        """Note that sequences have a vector or a reject reason.

        Args:
            sequences: int64 [n]; the numbers of the sequences, each of which is marked once.

        Returns:
            How many rows of the chunk are done by that, because none of their sequences waits any more.
        """
        texts = np.searchsorted(self.windows.text_starts, sequences, side="right") - 1
        np.subtract.at(self.pending_per_text, texts, 1)
        texts = np.unique(texts)
        finished = texts[self.pending_per_text[texts] == 0]
        return int(self.chunk_in_progress.rows_per_text[self.first_text + finished].sum())

    def count_pending_tokens(self) -> int:
        """How many tokens the encoder has to read."""
        lengths = self.tokens.lengths
        return int(lengths.sum() - sum(int(lengths[i]) for i in self.reject_reasons))

    def count_rows(self) -> int:
        """How many rows of the chunk have a text of this portion."""
        rows_per_text = self.chunk_in_progress.rows_per_text
        return int(rows_per_text[self.first_text : self.first_text + len(self.pending_per_text)].sum())

    def locate_sequence(self, sequence: int) -> str:
        """file:line of the first row that a sequence belongs to."""
        text = self.first_text + int(np.searchsorted(self.windows.text_starts, sequence, side="right")) - 1
        row = int(np.flatnonzero(self.chunk_in_progress.distinct_index == text)[0])
        return f"{self.chunk_in_progress.chunk.input_split.path}:{self.chunk_in_progress.chunk.lines[row]}"


def tokenize_chunk(
    chunk: Chunk, encoder: BaseEncoder, settings: EncodingSettings, metrics: MetricsCollector
) -> Iterator[TokenizedPortion]:
    """Hash, look up and deduplicate the rows of a chunk; yield its distinct texts tokenized, in portions."""
    hashes = hash_texts(chunk.texts, settings.prompt)
    reused = settings.reuse_lookup(chunk, hashes) if settings.reuse_lookup is not None else None
    reused_rows = set(reused.rows.tolist()) if reused is not None else ()
    text_numbers: dict[str, int] = {}
    distinct_index = np.full(len(chunk.texts), -1, np.int64)
    for row, text in enumerate(chunk.texts):
        if row not in reused_rows:
            distinct_index[row] = text_numbers.setdefault(text, len(text_numbers))
    texts = list(text_numbers)
    fresh = int((distinct_index >= 0).sum())
    metrics.reused += len(chunk.texts) - fresh
    metrics.duplicates += fresh - len(texts)
    rows_per_text = np.bincount(distinct_index[distinct_index >= 0], minlength=len(texts))
    progress = ChunkInProgress(chunk, hashes, reused, distinct_index, rows_per_text)
    metrics.progress.tokenized_rows += progress.skipped_rows
    characters = encoder.portion_characters
    for first, stop in group_by_size(map(len, texts), characters) if characters and texts else [(0, len(texts))]:
        portion = tokenize_portion(progress, first, texts[first:stop], encoder, settings)
        progress.portions.append(portion)
        progress.is_fully_tokenized = stop == len(texts)
        metrics.progress.tokenized_rows += portion.count_rows()
        metrics.progress.tokenized_tokens += portion.count_pending_tokens()
        yield portion


def tokenize_portion(
    progress: ChunkInProgress, first: int, texts: list[str], encoder: BaseEncoder, settings: EncodingSettings
) -> TokenizedPortion:
    """Tokenize some texts. Raises InputError at the first truncated one with --overflow error."""
    windows, tokens = tokenize_with_overflow(texts, encoder, settings)
    reasons = {int(i): encoder.empty_reason for i in np.flatnonzero(tokens.lengths == 0)}
    vectors = np.zeros((len(windows.sequences), encoder.dim), np.float32)
    portion = TokenizedPortion(progress, first, windows, tokens, vectors, reasons)
    apply_overflow(portion, settings)
    portion.pending = len(vectors) - len(reasons)
    return portion


def tokenize_with_overflow(
    texts: list[str], encoder: TextTokenizer, settings: EncodingSettings
) -> tuple[TextWindows, Tokens]:
    """Tokenize texts; with --overflow split or pool, long ones as windows."""
    tokens = encoder.tokenize(texts)
    is_long = tokens.untruncated_lengths > tokens.lengths
    if settings.overflow not in ("split", "pool") or not is_long.any():
        return as_single_windows(texts), tokens

    def find_spans(text: str) -> Sequence[tuple[int, int]]:
        spans = encoder.split_into_windows(text, settings.split_overlap)
        if spans is None:
            raise UsageError(
                f"--overflow {settings.overflow} needs a model with a tokenizer of its own",
                "use --overflow truncate, error or reject",
            )
        return spans

    windows = split_into_windows(texts, is_long, find_spans)
    tokens = encoder.tokenize(windows.sequences)
    if not tokens.lengths.all():
        windows = merge_empty_windows(texts, windows, tokens.lengths)
        tokens = encoder.tokenize(windows.sequences)
    return windows, tokens


def hash_texts(texts: Sequence[str], prompt: str) -> Any:
    """Hash each text with its prompt.

    Args:
        texts: The texts of some rows.
        prompt: The prompt before each of them.

    Returns:
        uint8 [texts, 16]: BLAKE2b-128 of prompt and text in UTF-8.
    """
    prompt_state = blake2b(prompt.encode(), digest_size=16)
    digests = bytearray()
    for text in texts:
        state = prompt_state.copy()
        state.update(text.encode())
        digests += state.digest()
    return np.frombuffer(bytes(digests), np.uint8).reshape(len(texts), 16)


def apply_overflow(portion: TokenizedPortion, settings: EncodingSettings) -> None:
    """Apply --overflow error and reject to truncated texts, before they are computed and after a server cut some."""
    if settings.overflow not in ("error", "reject"):
        return
    lengths = portion.tokens.read_lengths
    about = "about " if portion.tokens.is_estimated else ""
    for i in np.flatnonzero(portion.tokens.untruncated_lengths > lengths):
        count = f"{about}{int(portion.tokens.untruncated_lengths[i])}"
        reason = f"{count} tokens, and the encoder reads {int(lengths[i])}"
        if settings.overflow == "error":
            raise InputError(
                f"{portion.locate_sequence(int(i))}: the text has {reason}",
                "use --overflow truncate, reject, split or pool, or a larger --max-seq-length",
            )
        portion.reject_reasons[int(i)] = f"too long: {reason}"


def assemble_chunk(progress: ChunkInProgress, settings: EncodingSettings) -> EncodedChunk:
    """Scatter the sequences' vectors back to the rows of the chunk, several rows for a text in windows."""
    result = concat_portion_results([compute_portion_result(portion, settings) for portion in progress.portions])
    good = np.array([int(text) not in result.rejected_texts for text in progress.distinct_index], bool)
    kept = np.flatnonzero(good)
    fresh = progress.distinct_index[kept] >= 0
    at, source = map_rows_to_sequences(progress.distinct_index[kept][fresh], result.text_starts)
    rows = np.concatenate([kept[~fresh], kept[fresh][at]])
    order = np.argsort(rows, kind="stable")
    reused = progress.reused or ReusedVectors(
        rows[:0], result.vectors[:0], result.n_tokens[:0], result.is_truncated[:0], result.lost_tokens[:0]
    )
    return EncodedChunk(
        chunk=progress.chunk,
        rows=rows[order],
        vectors=np.concatenate([reused.vectors, result.vectors[source]])[order],
        n_tokens=np.concatenate([reused.n_tokens, result.n_tokens[source]])[order],
        is_truncated=np.concatenate([reused.is_truncated, result.is_truncated[source]])[order],
        text_hash=progress.text_hashes[rows[order]],
        rejects=tuple(_make_reject(progress, int(row), result.rejected_texts) for row in np.flatnonzero(~good)),
        extra_columns={name: pa.array(values[source]) for name, values in result.columns.items()},
        lost_tokens=int(result.lost_tokens[source].sum() + reused.lost_tokens.sum()),
    )


@dataclass(frozen=True)
class PortionResult:
    """The finished vectors and columns of a portion, or of all portions of a chunk.

    One per sequence, or one per text where windows were pooled.

    Attributes:
        vectors: float32 [n, stored dim].
        n_tokens: int32 [n]; tokens before truncation.
        is_truncated: bool [n].
        lost_tokens: int32 [n]; tokens cut off.
        text_starts: int64 [texts + 1]; text t has the vectors text_starts[t] to text_starts[t + 1].
        columns: Further columns of the output.
        rejected_texts: Why a text gets no vector, by its number.
    """

    vectors: Float32Array
    n_tokens: Int32Array
    is_truncated: BoolArray
    lost_tokens: Int32Array
    text_starts: Int64Array
    columns: dict[str, NDArray[Any]]
    rejected_texts: dict[int, str]


def compute_portion_result(portion: TokenizedPortion, settings: EncodingSettings) -> PortionResult:
    """Pool the windows with --overflow pool, then apply --truncate-dim and find vectors that cannot be stored."""
    tokens, windows, vectors = portion.tokens, portion.windows, portion.vectors
    lost = (tokens.untruncated_lengths - tokens.read_lengths).astype(np.int32)
    counts, starts = tokens.untruncated_lengths, windows.text_starts
    if settings.overflow == "pool" and len(windows.sequences):
        vectors = mean_pool_windows(vectors, tokens.untruncated_lengths, starts, settings.normalize)
        counts, lost = np.add.reduceat(counts, starts[:-1]), np.add.reduceat(lost, starts[:-1])
        starts = np.arange(len(starts))
    normalize = bool(settings.normalize) if settings.is_saved_truncation else settings.normalize
    vectors = truncate_and_normalize(vectors, settings.truncate_dim, normalize)
    columns = build_window_columns(windows) if settings.overflow == "split" else {}
    rejected = collect_rejected_texts(portion)
    if vectors is not portion.vectors or settings.precision == "float16":
        rejected = find_unstorable_texts(vectors, starts, settings.precision) | rejected
    return PortionResult(vectors, counts, lost > 0, lost, starts, columns, rejected)


def concat_portion_results(parts: Sequence[PortionResult]) -> PortionResult:
    """Concatenate the results of a chunk's portions."""
    if len(parts) == 1:
        return parts[0]
    texts = np.cumsum([0, *(len(part.text_starts) - 1 for part in parts)]).tolist()
    sequences = np.cumsum([0, *(part.text_starts[-1] for part in parts)])
    starts = [part.text_starts[:-1] + before for part, before in zip(parts, sequences, strict=False)]
    return PortionResult(
        vectors=np.concatenate([part.vectors for part in parts]),
        n_tokens=np.concatenate([part.n_tokens for part in parts]),
        is_truncated=np.concatenate([part.is_truncated for part in parts]),
        lost_tokens=np.concatenate([part.lost_tokens for part in parts]),
        text_starts=np.concatenate([*starts, sequences[-1:]]),
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        rejected_texts={
            before + i: reason
            for part, before in zip(parts, texts, strict=False)
            for i, reason in part.rejected_texts.items()
        },
    )


def collect_rejected_texts(portion: TokenizedPortion) -> dict[int, str]:
    """The texts of a portion that get no vector, with the reason of their first rejected sequence."""
    owners = portion.windows.text_indices
    return {int(owners[i]): portion.reject_reasons[i] for i in sorted(portion.reject_reasons, reverse=True)}


def find_unstorable_texts(vectors: Float32Array, starts: Int64Array, precision: Precision) -> dict[int, str]:
    """The texts whose vectors would be zero or not finite as they are stored, with the reason."""
    reason = f"in {vectors.shape[1]} dimensions of {precision} its vector would be zero or not finite"
    texts = np.searchsorted(starts, np.flatnonzero(~is_storable(vectors, precision)), side="right") - 1
    return dict.fromkeys(texts.tolist(), reason)


def build_window_columns(windows: TextWindows) -> dict[str, NDArray[Any]]:
    """The columns of --overflow split: the number of each window in its text, and the characters it covers."""
    window = np.arange(len(windows.sequences)) - windows.text_starts[windows.text_indices]
    return {
        "window": window.astype(np.int32),
        "char_start": windows.character_spans[:, 0],
        "char_end": windows.character_spans[:, 1],
    }


def _make_reject(progress: ChunkInProgress, row: int, rejected_texts: dict[int, str]) -> Reject:
    chunk = progress.chunk
    reason = rejected_texts[int(progress.distinct_index[row])]
    return Reject(chunk.input_split.path, chunk.lines[row], reason, scalar_to_python(chunk.ids[row]), chunk.texts[row])
