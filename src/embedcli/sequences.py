"""Chunks as the distinct sequences that an encoder reads, and their vectors back to the rows of the chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli.contracts import (
    Chunk,
    Encoded,
    Encoder,
    InputError,
    Job,
    Known,
    Overflow,
    Precision,
    Reject,
    Tokens,
    UsageError,
)
from embedcli.meter import Meter
from embedcli.precision import fits, shape
from embedcli.pyvalues import value_of
from embedcli.windows import Windows, filled, pool, split, spread, whole

if TYPE_CHECKING:
    from embedcli.contracts import Bools, Floats, Ints, Rows

Lookup = Callable[[Chunk, Any], Known]


@dataclass(frozen=True)
class Settings:
    """What the engine needs of a job. `truncate_dim` is followed by renormalising unless `normalize` is False."""

    prompt: str = ""
    batch_tokens: int | None = None
    overflow: Overflow = "truncate"
    split_overlap: int = 0
    truncate_dim: int | None = None
    normalize: bool | None = None
    precision: Precision = "float32"
    known: Lookup | None = None

    @classmethod
    def of(cls, job: Job, prompt: str, known: Lookup | None = None) -> Settings:
        """Those of a job, with the prompt that its encoder resolved."""
        return cls(
            prompt=prompt,
            batch_tokens=job.batch_tokens,
            overflow=job.overflow,
            split_overlap=job.split_overlap,
            truncate_dim=job.truncate_dim,
            normalize=job.normalize,
            precision=job.precision,
            known=known,
        )


@dataclass
class Work:
    """A chunk on its way through the device: its distinct texts as sequences, and where their vectors go.

    `inverse` tells the distinct text of each row (-1: known already); `reasons` why a sequence gets no vector.
    """

    chunk: Chunk
    hashes: Any
    known: Known | None
    inverse: Rows
    windows: Windows
    tokens: Tokens
    vectors: Floats
    reasons: dict[int, str]
    left: int = 0

    def where(self, sequence: int) -> str:
        """file:line of the first row that a sequence belongs to."""
        text = int(np.searchsorted(self.windows.starts, sequence, side="right")) - 1
        row = int(np.flatnonzero(self.inverse == text)[0])
        return f"{self.chunk.piece.path}:{self.chunk.lines[row]}"


def prepare(chunk: Chunk, encoder: Encoder, settings: Settings, meter: Meter) -> Work:
    """Hash, look up, deduplicate and tokenize the rows of a chunk."""
    hashes = text_hashes(chunk.texts, settings.prompt)
    known = settings.known(chunk, hashes) if settings.known is not None else None
    known_rows = set(known.rows.tolist()) if known is not None else ()
    first: dict[str, int] = {}
    inverse = np.full(len(chunk.texts), -1, np.int64)
    for row, text in enumerate(chunk.texts):
        if row not in known_rows:
            inverse[row] = first.setdefault(text, len(first))
    texts = list(first)
    fresh = int((inverse >= 0).sum())
    meter.reused += len(chunk.texts) - fresh
    meter.duplicates += fresh - len(texts)
    windows, tokens = tokenized(texts, encoder, settings)
    reasons = {int(i): encoder.empty_reason for i in np.flatnonzero(tokens.lengths == 0)}
    vectors = np.zeros((len(windows.sequences), encoder.dim), np.float32)
    work = Work(chunk, hashes, known, inverse, windows, tokens, vectors, reasons)
    overflowed(work, settings)
    return work


def tokenized(texts: list[str], encoder: Encoder, settings: Settings) -> tuple[Windows, Tokens]:
    """Texts as sequences and their tokens; long texts as windows if --overflow is split or pool."""
    tokens = encoder.tokenize(texts)
    long = tokens.full > tokens.lengths
    if settings.overflow not in ("split", "pool") or not long.any():
        return whole(texts), tokens
    spans = getattr(encoder, "spans", None)
    if spans is None:
        raise UsageError(
            f"--overflow {settings.overflow} needs a model with a tokenizer of its own",
            "use --overflow truncate, error or reject",
        )
    windows = split(texts, long, lambda text: spans(text, settings.split_overlap))
    tokens = encoder.tokenize(windows.sequences)
    if not tokens.lengths.all():
        windows = filled(texts, windows, tokens.lengths)
        tokens = encoder.tokenize(windows.sequences)
    return windows, tokens


def text_hashes(texts: Sequence[str], prompt: str) -> Any:
    """uint8 [n, 16]: BLAKE2b-128 of each text with its prompt, UTF-8."""
    start = blake2b(prompt.encode(), digest_size=16)
    joined = bytearray()
    for text in texts:
        state = start.copy()
        state.update(text.encode())
        joined += state.digest()
    return np.frombuffer(bytes(joined), np.uint8).reshape(len(texts), 16)


def overflowed(work: Work, settings: Settings) -> None:
    """Apply --overflow error and reject to the texts that were cut."""
    if settings.overflow not in ("error", "reject"):
        return
    lengths = work.tokens.lengths
    for i in np.flatnonzero(work.tokens.full > lengths):
        reason = f"{int(work.tokens.full[i])} tokens, and the encoder reads {int(lengths[i])}"
        if settings.overflow == "error":
            raise InputError(
                f"{work.where(int(i))}: the text has {reason}",
                "use --overflow truncate, reject, split or pool, or a larger --max-seq-length",
            )
        work.reasons[int(i)] = f"too long: {reason}"


def finish(work: Work, settings: Settings) -> Encoded:
    """Scatter the sequences' vectors back to the rows of the chunk, several rows for a text in windows."""
    made = from_sequences(work, settings)
    bad = unstorable_texts(made, work, settings) | bad_texts(work)
    good = np.array([int(text) not in bad for text in work.inverse], bool)
    kept = np.flatnonzero(good)
    fresh = work.inverse[kept] >= 0
    at, source = spread(work.inverse[kept][fresh], made.starts)
    rows = np.concatenate([kept[~fresh], kept[fresh][at]])
    order = np.argsort(rows, kind="stable")
    known = work.known or Known(rows[:0], made.vectors[:0], made.n_tokens[:0], made.truncated[:0], made.lost[:0])
    extra = {}
    if settings.overflow == "split":
        extra = window_columns(work.windows, source)
    return Encoded(
        chunk=work.chunk,
        rows=rows[order],
        vectors=np.concatenate([known.vectors, made.vectors[source]])[order],
        n_tokens=np.concatenate([known.n_tokens, made.n_tokens[source]])[order],
        truncated=np.concatenate([known.truncated, made.truncated[source]])[order],
        text_hash=work.hashes[rows[order]],
        rejects=tuple(_refused(work, int(row), bad) for row in np.flatnonzero(~good)),
        extra=extra,
        lost_tokens=int(made.lost[source].sum() + known.lost.sum()),
    )


@dataclass(frozen=True)
class Made:
    """Finished vectors and counts, one per sequence, or one per text when windows were pooled."""

    vectors: Floats
    n_tokens: Ints
    truncated: Bools
    lost: Ints
    starts: Rows


def from_sequences(work: Work, settings: Settings) -> Made:
    """Pool the windows if --overflow is pool, then cut and renormalise for --truncate-dim."""
    tokens, windows, vectors = work.tokens, work.windows, work.vectors
    lost = (tokens.full - tokens.lengths).astype(np.int32)
    counts, starts = tokens.full, windows.starts
    if settings.overflow == "pool" and len(windows.sequences):
        vectors = pool(vectors, tokens.full, starts, settings.normalize)
        counts, lost = np.add.reduceat(counts, starts[:-1]), np.add.reduceat(lost, starts[:-1])
        starts = np.arange(len(starts))
    return Made(shape(vectors, settings.truncate_dim, settings.normalize), counts, lost > 0, lost, starts)


def bad_texts(work: Work) -> dict[int, str]:
    """The distinct texts that get no vector, with the reason of their first bad sequence."""
    owners = work.windows.owners
    return {int(owners[i]): work.reasons[i] for i in sorted(work.reasons, reverse=True)}


def unstorable_texts(made: Made, work: Work, settings: Settings) -> dict[int, str]:
    """The distinct texts whose vectors could be used, and cannot any more when they are cut and stored."""
    if made.vectors is work.vectors and settings.precision != "float16":
        return {}
    reason = f"in {made.vectors.shape[1]} dimensions of {settings.precision} its vector would be zero or not finite"
    texts = np.searchsorted(made.starts, np.flatnonzero(~fits(made.vectors, settings.precision)), side="right") - 1
    return dict.fromkeys(texts.tolist(), reason)


def window_columns(windows: Windows, source: Rows) -> dict[str, pa.Array]:
    """`window`, counted from 0 in each text, and the characters it covers."""
    inside = np.arange(len(windows.sequences)) - windows.starts[windows.owners]
    return {
        "window": pa.array(inside[source].astype(np.int32)),
        "char_start": pa.array(windows.spans[source, 0]),
        "char_end": pa.array(windows.spans[source, 1]),
    }


def _refused(work: Work, row: int, bad: dict[int, str]) -> Reject:
    chunk = work.chunk
    reason = bad[int(work.inverse[row])]
    return Reject(chunk.piece.path, chunk.lines[row], reason, value_of(chunk.ids[row]), chunk.texts[row])
