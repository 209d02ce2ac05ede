"""Chunks as the distinct sequences that an encoder reads, and their vectors back to the rows of the chunk."""

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
    """What the engine needs of a job. `truncate_dim` is followed by renormalising unless `normalize` is False."""

    prompt: str = ""
    batch_tokens: int | None = None
    overflow: Overflow = "truncate"
    split_overlap: int = 0
    truncate_dim: int | None = None
    normalize: bool | None = None
    precision: Precision = "float32"
    reuse_lookup: ReuseLookup | None = None

    @classmethod
    def from_job(cls, job: Job, prompt: str, known: ReuseLookup | None = None) -> EncodingSettings:
        """Those of a job, with the prompt that its encoder resolved."""
        return cls(
            prompt=prompt,
            batch_tokens=job.batch_tokens,
            overflow=job.overflow,
            split_overlap=job.split_overlap,
            truncate_dim=job.truncate_dim,
            normalize=job.normalize,
            precision=job.precision,
            reuse_lookup=known,
        )


@dataclass
class ChunkInProgress:
    """A chunk on its way through the device. `inverse` tells the distinct text of each row (-1: known already).

    It is `whole` when all its distinct texts have come, in `portions`.
    """

    chunk: Chunk
    text_hashes: Any
    reused: ReusedVectors | None
    distinct_index: Int64Array
    portions: list[TokenizedPortion] = field(default_factory=list)
    is_fully_tokenized: bool = False

    @property
    def is_done(self) -> bool:
        """Whether every sequence has its vector, or a reason why not."""
        return self.is_fully_tokenized and not any(portion.pending for portion in self.portions)


@dataclass
class TokenizedPortion:
    """Some distinct texts of a chunk, from number `first` on, as sequences that are tokenized and batched together.

    `reasons` say why a sequence gets no vector; `left` is how many still wait for theirs.
    """

    chunk_in_progress: ChunkInProgress
    first_text: int
    windows: TextWindows
    tokens: Tokens
    vectors: Float32Array
    reject_reasons: dict[int, str]
    pending: int = 0

    def locate_sequence(self, sequence: int) -> str:
        """file:line of the first row that a sequence belongs to."""
        text = self.first_text + int(np.searchsorted(self.windows.text_starts, sequence, side="right")) - 1
        row = int(np.flatnonzero(self.chunk_in_progress.distinct_index == text)[0])
        return f"{self.chunk_in_progress.chunk.input_split.path}:{self.chunk_in_progress.chunk.lines[row]}"


def tokenize_chunk(
    chunk: Chunk, encoder: BaseEncoder, settings: EncodingSettings, meter: MetricsCollector
) -> Iterator[TokenizedPortion]:
    """Hash, look up and deduplicate the rows of a chunk; yield its texts as they are tokenized: a portion or more."""
    hashes = hash_texts(chunk.texts, settings.prompt)
    known = settings.reuse_lookup(chunk, hashes) if settings.reuse_lookup is not None else None
    known_rows = set(known.rows.tolist()) if known is not None else ()
    number: dict[str, int] = {}
    inverse = np.full(len(chunk.texts), -1, np.int64)
    for row, text in enumerate(chunk.texts):
        if row not in known_rows:
            inverse[row] = number.setdefault(text, len(number))
    texts = list(number)
    fresh = int((inverse >= 0).sum())
    meter.reused += len(chunk.texts) - fresh
    meter.duplicates += fresh - len(texts)
    work = ChunkInProgress(chunk, hashes, known, inverse)
    characters = encoder.portion_characters
    for first, stop in group_by_size(map(len, texts), characters) if characters and texts else [(0, len(texts))]:
        made = tokenize_portion(work, first, texts[first:stop], encoder, settings)
        work.portions.append(made)
        work.is_fully_tokenized = stop == len(texts)
        yield made


def tokenize_portion(
    work: ChunkInProgress, first: int, texts: list[str], encoder: BaseEncoder, settings: EncodingSettings
) -> TokenizedPortion:
    """Tokenize texts. InputError at the first that was cut, with --overflow error."""
    windows, tokens = tokenize_with_overflow(texts, encoder, settings)
    reasons = {int(i): encoder.empty_reason for i in np.flatnonzero(tokens.lengths == 0)}
    vectors = np.zeros((len(windows.sequences), encoder.dim), np.float32)
    made = TokenizedPortion(work, first, windows, tokens, vectors, reasons)
    apply_overflow(made, settings)
    made.pending = len(vectors) - len(reasons)
    return made


def tokenize_with_overflow(
    texts: list[str], encoder: TextTokenizer, settings: EncodingSettings
) -> tuple[TextWindows, Tokens]:
    """Texts as sequences and their tokens; long texts as windows if --overflow is split or pool."""
    tokens = encoder.tokenize(texts)
    long = tokens.untruncated_lengths > tokens.lengths
    if settings.overflow not in ("split", "pool") or not long.any():
        return as_single_windows(texts), tokens

    def spans_of(text: str) -> Sequence[tuple[int, int]]:
        spans = encoder.split_into_windows(text, settings.split_overlap)
        if spans is None:
            raise UsageError(
                f"--overflow {settings.overflow} needs a model with a tokenizer of its own",
                "use --overflow truncate, error or reject",
            )
        return spans

    windows = split_into_windows(texts, long, spans_of)
    tokens = encoder.tokenize(windows.sequences)
    if not tokens.lengths.all():
        windows = merge_empty_windows(texts, windows, tokens.lengths)
        tokens = encoder.tokenize(windows.sequences)
    return windows, tokens


def hash_texts(texts: Sequence[str], prompt: str) -> Any:
    """uint8 [n, 16]: BLAKE2b-128 of each text with its prompt, UTF-8."""
    start = blake2b(prompt.encode(), digest_size=16)
    joined = bytearray()
    for text in texts:
        state = start.copy()
        state.update(text.encode())
        joined += state.digest()
    return np.frombuffer(bytes(joined), np.uint8).reshape(len(texts), 16)


def apply_overflow(portion: TokenizedPortion, settings: EncodingSettings) -> None:
    """Apply --overflow error and reject to the texts that were cut."""
    if settings.overflow not in ("error", "reject"):
        return
    lengths = portion.tokens.lengths
    for i in np.flatnonzero(portion.tokens.untruncated_lengths > lengths):
        reason = f"{int(portion.tokens.untruncated_lengths[i])} tokens, and the encoder reads {int(lengths[i])}"
        if settings.overflow == "error":
            raise InputError(
                f"{portion.locate_sequence(int(i))}: the text has {reason}",
                "use --overflow truncate, reject, split or pool, or a larger --max-seq-length",
            )
        portion.reject_reasons[int(i)] = f"too long: {reason}"


def assemble_chunk(work: ChunkInProgress, settings: EncodingSettings) -> EncodedChunk:
    """Scatter the sequences' vectors back to the rows of the chunk, several rows for a text in windows."""
    made = concat_portion_results([compute_portion_result(portion, settings) for portion in work.portions])
    good = np.array([int(text) not in made.rejected_texts for text in work.distinct_index], bool)
    kept = np.flatnonzero(good)
    fresh = work.distinct_index[kept] >= 0
    at, source = map_rows_to_sequences(work.distinct_index[kept][fresh], made.text_starts)
    rows = np.concatenate([kept[~fresh], kept[fresh][at]])
    order = np.argsort(rows, kind="stable")
    known = work.reused or ReusedVectors(
        rows[:0], made.vectors[:0], made.n_tokens[:0], made.is_truncated[:0], made.lost_tokens[:0]
    )
    return EncodedChunk(
        chunk=work.chunk,
        rows=rows[order],
        vectors=np.concatenate([known.vectors, made.vectors[source]])[order],
        n_tokens=np.concatenate([known.n_tokens, made.n_tokens[source]])[order],
        is_truncated=np.concatenate([known.is_truncated, made.is_truncated[source]])[order],
        text_hash=work.text_hashes[rows[order]],
        rejects=tuple(_refused(work, int(row), made.rejected_texts) for row in np.flatnonzero(~good)),
        extra_columns={name: pa.array(values[source]) for name, values in made.columns.items()},
        lost_tokens=int(made.lost_tokens[source].sum() + known.lost_tokens.sum()),
    )


@dataclass(frozen=True)
class PortionResult:
    """Finished vectors, counts and further columns, one per sequence, or one per text when windows were pooled.

    Text t owns `starts[t]` to `starts[t + 1]`; `bad` are the texts that get no vector, with the reason.
    """

    vectors: Float32Array
    n_tokens: Int32Array
    is_truncated: BoolArray
    lost_tokens: Int32Array
    text_starts: Int64Array
    columns: dict[str, NDArray[Any]]
    rejected_texts: dict[int, str]


def compute_portion_result(portion: TokenizedPortion, settings: EncodingSettings) -> PortionResult:
    """Pool the windows if --overflow is pool, then cut and renormalise for --truncate-dim."""
    tokens, windows, vectors = portion.tokens, portion.windows, portion.vectors
    lost = (tokens.untruncated_lengths - tokens.lengths).astype(np.int32)
    counts, starts = tokens.untruncated_lengths, windows.text_starts
    if settings.overflow == "pool" and len(windows.sequences):
        vectors = mean_pool_windows(vectors, tokens.untruncated_lengths, starts, settings.normalize)
        counts, lost = np.add.reduceat(counts, starts[:-1]), np.add.reduceat(lost, starts[:-1])
        starts = np.arange(len(starts))
    vectors = truncate_and_normalize(vectors, settings.truncate_dim, settings.normalize)
    columns = build_window_columns(windows) if settings.overflow == "split" else {}
    bad = collect_rejected_texts(portion)
    if vectors is not portion.vectors or settings.precision == "float16":
        bad = find_unstorable_texts(vectors, starts, settings.precision) | bad
    return PortionResult(vectors, counts, lost > 0, lost, starts, columns, bad)


def concat_portion_results(parts: Sequence[PortionResult]) -> PortionResult:
    """The same for all texts of a chunk, in order."""
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
            before + i: why
            for part, before in zip(parts, texts, strict=False)
            for i, why in part.rejected_texts.items()
        },
    )


def collect_rejected_texts(portion: TokenizedPortion) -> dict[int, str]:
    """The distinct texts that get no vector, with the reason of their first bad sequence."""
    owners = portion.windows.text_indices
    return {int(owners[i]): portion.reject_reasons[i] for i in sorted(portion.reject_reasons, reverse=True)}


def find_unstorable_texts(vectors: Float32Array, starts: Int64Array, precision: Precision) -> dict[int, str]:
    """The distinct texts whose vectors could be used, and cannot any more when they are cut and stored."""
    reason = f"in {vectors.shape[1]} dimensions of {precision} its vector would be zero or not finite"
    texts = np.searchsorted(starts, np.flatnonzero(~is_storable(vectors, precision)), side="right") - 1
    return dict.fromkeys(texts.tolist(), reason)


def build_window_columns(windows: TextWindows) -> dict[str, NDArray[Any]]:
    """`window`, counted from 0 in each text, and the characters it covers."""
    inside = np.arange(len(windows.sequences)) - windows.text_starts[windows.text_indices]
    return {
        "window": inside.astype(np.int32),
        "char_start": windows.character_spans[:, 0],
        "char_end": windows.character_spans[:, 1],
    }


def _refused(work: ChunkInProgress, row: int, bad: dict[int, str]) -> Reject:
    chunk = work.chunk
    reason = bad[int(work.distinct_index[row])]
    return Reject(chunk.input_split.path, chunk.lines[row], reason, scalar_to_python(chunk.ids[row]), chunk.texts[row])
