"""After the encoder: turn the vectors of a chunk's sequences into its encoded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core.arrow_values import scalar_to_python
from embedcli.core.head_vectors import HeadVectors
from embedcli.core.multi_vectors import MultiVectors
from embedcli.core.quantization import is_storable, truncate_and_normalize
from embedcli.core.row_vectors import concat_vectors
from embedcli.core.sparse_vectors import SparseVectors
from embedcli.core.types import EncodedChunk, Precision, Reject, ReusedVectors
from embedcli.pipeline.preparation import ChunkInProgress, EncodingSettings, TokenizedPortion
from embedcli.pipeline.windows import TextWindows, map_rows_to_sequences, mean_pool_windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import BoolArray, Int32Array, Int64Array

TOO_LIGHT_REASON = "no term weighs as much as --min-weight"
TOO_HEAVY_REASON = "a weight of its sparse vector is too large for"
UNSTORABLE_HEAD_REASON = "a vector of one of its heads would be zero or not finite as it is stored"
NO_TOKEN_VECTOR_REASON = "no vector of its tokens is left, or one of them is not finite"


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
        vectors=concat_vectors([reused.vectors, result.vectors[source]])[order],
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
        vectors: [n, stored dim].
        n_tokens: int32 [n]; tokens before truncation.
        is_truncated: bool [n].
        lost_tokens: int32 [n]; tokens cut off.
        text_starts: int64 [texts + 1]; text t has the vectors text_starts[t] to text_starts[t + 1].
        columns: Further columns of the output.
        rejected_texts: Why a text gets no vector, by its number.
    """

    vectors: RowVectors
    n_tokens: Int32Array
    is_truncated: BoolArray
    lost_tokens: Int32Array
    text_starts: Int64Array
    columns: dict[str, NDArray[Any]]
    rejected_texts: dict[int, str]


def compute_portion_result(portion: TokenizedPortion, settings: EncodingSettings) -> PortionResult:
    """Pool the windows with --overflow pool, then apply --truncate-dim and find vectors that cannot be stored."""
    tokens, windows = portion.tokens, portion.windows
    vectors = encoded = portion.vectors.finish()
    lost = (tokens.untruncated_lengths - tokens.read_lengths).astype(np.int32)
    counts, starts = tokens.untruncated_lengths, windows.text_starts
    columns = build_window_columns(windows) if settings.overflow == "split" else {}
    if isinstance(vectors, SparseVectors | MultiVectors | HeadVectors):
        rejected = find_unstorable_texts(vectors, starts, settings.precision) | collect_rejected_texts(portion)
        return PortionResult(vectors, counts, lost > 0, lost, starts, columns, rejected)
    if settings.overflow == "pool" and len(windows.sequences):
        vectors = mean_pool_windows(vectors, tokens.untruncated_lengths, starts, settings.normalize)
        counts, lost = np.add.reduceat(counts, starts[:-1]), np.add.reduceat(lost, starts[:-1])
        starts = np.arange(len(starts))
    normalize = bool(settings.normalize) if settings.is_saved_truncation else settings.normalize
    vectors = truncate_and_normalize(vectors, settings.truncate_dim, normalize)
    rejected = collect_rejected_texts(portion)
    if vectors is not encoded or settings.precision == "float16":
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
        vectors=concat_vectors([part.vectors for part in parts]),
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


def find_unstorable_texts(vectors: RowVectors, starts: Int64Array, precision: Precision) -> dict[int, str]:
    """The texts whose vectors would be zero or not finite as they are stored, with the reason."""
    rows = np.flatnonzero(~is_storable(vectors, precision))
    texts = (np.searchsorted(starts, rows, side="right") - 1).tolist()
    if isinstance(vectors, SparseVectors):
        has_terms = (vectors.lengths[rows] > 0).tolist()
        too_heavy = f"{TOO_HEAVY_REASON} {precision}"
        return {text: too_heavy if has else TOO_LIGHT_REASON for text, has in zip(texts, has_terms, strict=True)}
    reason = f"in {vectors.shape[1]} dimensions of {precision} its vector would be zero or not finite"
    if isinstance(vectors, MultiVectors):
        reason = NO_TOKEN_VECTOR_REASON
    if isinstance(vectors, HeadVectors):
        reason = UNSTORABLE_HEAD_REASON
    return dict.fromkeys(texts, reason)


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
    return Reject(
        source=storage.format_path(chunk.input_split.path),
        line=chunk.lines[row],
        reason=reason,
        id=scalar_to_python(chunk.ids[row]),
        raw=chunk.raw_row(row),
    )
