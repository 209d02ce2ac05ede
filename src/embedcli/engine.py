"""One device's pipeline: chunks in, encoded chunks out, in order; knows only contracts and batching."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli import batching
from embedcli.contracts import (
    Chunk,
    Encoded,
    Encoder,
    InputError,
    Known,
    ModelError,
    OutOfMemory,
    Overflow,
    Reject,
    Tokens,
    UsageError,
)
from embedcli.handover import Idle, ahead, ahead_or_idle
from embedcli.meter import Control, Meter
from embedcli.pyvalues import value_of
from embedcli.windows import Windows, filled, pool, split, spread, whole

if TYPE_CHECKING:
    from embedcli.contracts import Bools, Floats, Ints, Rows


NOT_FINITE = "the encoder's vector is not finite, or zero, in float32 too"
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
    known: Lookup | None = None


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


def encode(
    chunks: Iterable[Chunk], encoder: Encoder, settings: Settings, meter: Meter, control: Control
) -> Iterator[Encoded]:
    """Yield every chunk encoded, in order. Stages run in threads; closing the iterator ends them all."""

    def tokenize(stream: Iterator[Chunk]) -> Iterator[Work]:
        for chunk in stream:
            with meter.stage("tokenize"):
                work = prepare(chunk, encoder, settings, meter)
            yield work

    def forward(stream: Iterator[Work | Idle]) -> Iterator[Encoded]:
        try:
            for work in Device(encoder, settings, meter, control).run(stream):
                yield finish(work, settings)
        except ModelError:
            # A hosted encoder gives up its waiting requests this way when the run is stopped.
            if not control.now.is_set():
                raise

    return ahead(forward, ahead_or_idle(tokenize, chunks, cancel=control.now), cancel=control.now)


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


class Device:
    """Feeds batches of successive chunks to an encoder, `lanes` in flight, and never drains between chunks."""

    def __init__(self, encoder: Encoder, settings: Settings, meter: Meter, control: Control) -> None:
        self.encoder = encoder
        self.meter = meter
        self.control = control
        self.budget = settings.batch_tokens or encoder.batch_tokens
        meter.batch_tokens = self.budget
        self.flying: deque[tuple[Work, Rows, Any]] = deque()
        self.waiting: deque[Work] = deque()

    def run(self, works: Iterator[Work | Idle]) -> Iterator[Work]:
        """Yield each Work when the vectors of all its rows are in place, in the order they came."""
        begun = time.perf_counter()
        for work in self._arriving(works):
            if isinstance(work, Idle):
                yield from self._drain()
                continue
            if self.control.soon(len(work.chunk.texts)):
                break
            self.waiting.append(work)
            for rows in self._batches(work):
                if self.control.now.is_set():
                    return
                self._start(work, rows)
                yield from self._ready()
            self.meter.forward_seconds = time.perf_counter() - begun
        yield from self._drain()
        self.meter.forward_seconds = time.perf_counter() - begun

    def _drain(self) -> Iterator[Work]:
        """Land what is in flight: at the end, and when no input comes, so that finished rows do not wait for more."""
        while self.flying and not self.control.now.is_set():
            self._land()
            yield from self._ready()
        yield from self._ready()

    def _arriving(self, works: Iterator[Work | Idle]) -> Iterator[Work | Idle]:
        while True:
            begun = time.perf_counter()
            work = next(works, None)
            if not self.flying:
                self.meter.idle_seconds += time.perf_counter() - begun
            if work is None:
                return
            yield work

    def _batches(self, work: Work) -> Iterator[Rows]:
        lengths = work.tokens.lengths
        todo = np.array([i for i in range(len(lengths)) if i not in work.reasons], np.int64)
        work.left = len(todo)
        for order in batching.pack(lengths[todo], lambda: self.budget, self.encoder.multiple):
            yield todo[order]

    def _start(self, work: Work, rows: Rows) -> None:
        while len(self.flying) >= self.encoder.lanes:
            self._land()
        with self.meter.stage("forward"):
            try:
                self.flying.append((work, rows, self.encoder.forward(work.tokens, rows)))
                self._count(work, rows)
                return
            except OutOfMemory:
                pass
        self._halve(work, rows)

    def _land(self) -> None:
        work, rows, output = self.flying.popleft()
        with self.meter.stage("forward"):
            try:
                vectors = self.encoder.collect(output)
                self._place(work, rows, vectors, self._sound(output))
                return
            except OutOfMemory:
                del output
        self._halve(work, rows)

    def _halve(self, work: Work, rows: Rows) -> None:
        self.meter.out_of_memory += 1
        if len(rows) == 1:
            raise ModelError(
                f"{work.where(int(rows[0]))}: this row alone does not fit in the device's memory",
                "lower --max-seq-length, or use --device cpu",
            )
        while self.flying:
            self._land()
        self.budget = max(1, min(self.budget, batching.cost(work.tokens.lengths[rows], self.encoder.multiple)) // 2)
        self.meter.batch_tokens = self.budget
        for half in np.array_split(rows, 2):
            self._start(work, half)

    def _count(self, work: Work, rows: Rows) -> None:
        lengths = work.tokens.lengths[rows]
        self.meter.batches += 1
        self.meter.sequences += len(rows)
        self.meter.fed_tokens += int(lengths.sum())
        self.meter.padded_tokens += batching.cost(lengths, self.encoder.multiple)

    def _sound(self, output: Any) -> bool:
        """Whether the device itself has looked at the vectors of a batch and found them usable."""
        look = getattr(self.encoder, "sound", None)
        return look is not None and look(output)

    def _place(self, work: Work, rows: Rows, vectors: Floats, sound: bool = False) -> None:
        if vectors.shape != (len(rows), self.encoder.dim):
            raise ModelError(
                f"the encoder returned an array of shape {vectors.shape} for {len(rows)} rows of {self.encoder.dim}",
                "this is a defect of the encoder: please report it, with the name of the model",
            )
        bad = np.zeros(len(rows), bool) if sound else unusable(vectors)
        if bad.any():
            vectors = np.array(vectors)
            told = {int(i): self._reason(work, int(i)) for i in rows[bad]}
            again = bad & np.array([told.get(int(i)) is None for i in rows])
            if again.any():
                self.meter.retried_rows += int(again.sum())
                vectors[again] = self.encoder.exact(work.tokens, rows[again])
            for i in rows[unusable(vectors)]:
                work.reasons[int(i)] = told.get(int(i)) or NOT_FINITE
        work.vectors[rows] = vectors
        work.left -= len(rows)

    def _reason(self, work: Work, i: int) -> str | None:
        """Why the encoder refused a sequence, if it knows."""
        say = getattr(self.encoder, "reason", None)
        return say(work.tokens, i) if say is not None else None

    def _ready(self) -> Iterator[Work]:
        while self.waiting and self.waiting[0].left == 0:
            yield self.waiting.popleft()


def unusable(vectors: Floats) -> Bools:
    """bool [n]: rows with a NaN, an infinity, or nothing but zeros."""
    if not vectors.size:
        return np.zeros(len(vectors), bool)
    # Their squares tell, in a quarter of the time, but for numbers so large or small that these overflow or vanish.
    squares = np.einsum("ij,ij->i", vectors, vectors)
    bad: Bools = ~(np.isfinite(squares) & (squares > 0))
    odd = vectors[bad]
    bad[bad] = ~np.isfinite(odd).all(axis=1) | ~odd.any(axis=1)
    return bad


def finish(work: Work, settings: Settings) -> Encoded:
    """Scatter the sequences' vectors back to the rows of the chunk, several rows for a text in windows."""
    bad = bad_texts(work)
    good = np.array([int(text) not in bad for text in work.inverse], bool)
    kept = np.flatnonzero(good)
    made = from_sequences(work, settings)
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


def shape(vectors: Floats, truncate_dim: int | None, normalize: bool | None) -> Floats:
    """The first `truncate_dim` columns, renormalised to length 1 unless `normalize` is False."""
    if truncate_dim is None or truncate_dim >= vectors.shape[1]:
        return vectors
    cut = vectors[:, :truncate_dim]
    if normalize is False:
        return np.ascontiguousarray(cut)
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.maximum(norms, np.finfo(np.float32).tiny), np.float32)
