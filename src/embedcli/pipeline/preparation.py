"""Before the encoder: deduplicate and tokenize a chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.batching import group_by_size
from embedcli.core.encoder import BaseEncoder, TextTokenizer, Tokens
from embedcli.core.errors import InputError, UsageError
from embedcli.core.job import Job
from embedcli.core.row_vectors import DenseBuffer, HeadsBuffer, MultiVectorBuffer, SparseBuffer, VectorBuffer
from embedcli.core.types import Chunk, Overflow, Precision, ReusedVectors, VectorKind
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.windows import (
    TextWindows,
    as_single_windows,
    merge_empty_windows,
    split_into_windows,
)

if TYPE_CHECKING:
    from embedcli.core.types import Int64Array

ReuseLookup = Callable[[Chunk, Any], ReusedVectors]


@dataclass(frozen=True)
class EncodingSettings:
    """What the pipeline needs of a job.

    After `truncate_dim` vectors are normalised unless `normalize` is False; if the dimension was saved with the model
    (`is_saved_truncation`), they are normalised only if `normalize` is True, as in sentence-transformers. Of sparse
    vectors at most `top_k_terms` entries of at least `min_weight` are kept.
    """

    prompt: str = ""
    batch_tokens: int | None = None
    overflow: Overflow = "truncate"
    split_overlap: int = 0
    truncate_dim: int | None = None
    is_saved_truncation: bool = False
    normalize: bool | None = None
    precision: Precision = "float32"
    top_k_terms: int | None = None
    min_weight: float | None = None
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
            top_k_terms=job.top_k_terms,
            min_weight=job.min_weight,
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
        vectors: The vectors of its sequences; filled as batches are collected.
        reject_reasons: Why a sequence gets no vector, by its number.
        pending: How many sequences still wait for their vector.
        pending_per_text: int64 [texts]; how many sequences of each text still wait.
    """

    chunk_in_progress: ChunkInProgress
    first_text: int
    windows: TextWindows
    tokens: Tokens
    vectors: VectorBuffer
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
        texts.sort()
        # Each text once; np.unique would import numpy.ma, which takes as long as a short job's tokenizing.
        texts = texts[np.diff(texts, prepend=-1) != 0]
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
    count = len(windows.sequences)
    portion = TokenizedPortion(progress, first, windows, tokens, make_buffer(count, encoder, settings), reasons)
    apply_overflow(portion, settings)
    portion.pending = count - len(reasons)
    return portion


def make_buffer(count: int, encoder: BaseEncoder, settings: EncodingSettings) -> VectorBuffer:
    """An empty buffer for the vectors of `count` sequences, of the encoder's kind or heads."""
    if encoder.heads:
        sizes = {head: int(space["dim"]) for head, space in encoder.heads.items()}
        return HeadsBuffer({head: _make_buffer_of_kind(count, head, dim, settings) for head, dim in sizes.items()})
    return _make_buffer_of_kind(count, encoder.kind, encoder.dim, settings)


def _make_buffer_of_kind(count: int, kind: VectorKind, dim: int, settings: EncodingSettings) -> VectorBuffer:
    if kind == "sparse":
        return SparseBuffer(count, dim, settings.top_k_terms, settings.min_weight)
    if kind == "multi_vector":
        return MultiVectorBuffer(count, dim)
    return DenseBuffer(count, dim)


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
