"""One device's pipeline: chunks in, encoded chunks out, in order; knows only contracts and batching."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

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
)
from embedcli.handover import ahead
from embedcli.meter import Control, Meter

if TYPE_CHECKING:
    from embedcli.contracts import Bools, Floats, Rows


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
    """A chunk on its way through the device: distinct texts, their tokens, and where their vectors go."""

    chunk: Chunk
    hashes: Any
    known: Known | None
    inverse: Rows
    texts: list[str]
    tokens: Tokens
    vectors: Floats
    reasons: dict[int, str]
    left: int = 0


def encode(
    chunks: Iterable[Chunk], encoder: Encoder, settings: Settings, meter: Meter, control: Control
) -> Iterator[Encoded]:
    """Yield every chunk encoded, in order. Stages run in threads; closing the iterator ends them all."""

    def tokenize(stream: Iterator[Chunk]) -> Iterator[Work]:
        for chunk in stream:
            with meter.stage("tokenize"):
                work = prepare(chunk, encoder, settings, meter)
            yield work

    def forward(stream: Iterator[Work]) -> Iterator[Encoded]:
        for work in Device(encoder, settings, meter, control).run(stream):
            yield finish(work, encoder, settings)

    return ahead(forward, ahead(tokenize, chunks, cancel=control.now), cancel=control.now)


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
    tokens = encoder.tokenize(texts)
    fresh = int((inverse >= 0).sum())
    meter.reused += len(chunk.texts) - fresh
    meter.duplicates += fresh - len(texts)
    reasons = {int(i): encoder.empty_reason for i in np.flatnonzero(tokens.lengths == 0)}
    work = Work(chunk, hashes, known, inverse, texts, tokens, np.zeros((len(texts), encoder.dim), np.float32), reasons)
    overflowed(work, settings)
    return work


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
            row = int(np.flatnonzero(work.inverse == i)[0])
            raise InputError(
                f"{work.chunk.piece.path}:{work.chunk.lines[row]}: the text has {reason}",
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

    def run(self, works: Iterator[Work]) -> Iterator[Work]:
        """Yield each Work when the vectors of all its rows are in place, in the order they came."""
        begun = time.perf_counter()
        for work in self._arriving(works):
            if self.control.soon(len(work.chunk.texts)):
                break
            self.waiting.append(work)
            for rows in self._batches(work):
                if self.control.now.is_set():
                    return
                self._start(work, rows)
                yield from self._ready()
            self.meter.forward_seconds = time.perf_counter() - begun
        while self.flying and not self.control.now.is_set():
            self._land()
            yield from self._ready()
        yield from self._ready()
        self.meter.forward_seconds = time.perf_counter() - begun

    def _arriving(self, works: Iterator[Work]) -> Iterator[Work]:
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
                self._place(work, rows, self.encoder.collect(output))
                return
            except OutOfMemory:
                del output
        self._halve(work, rows)

    def _halve(self, work: Work, rows: Rows) -> None:
        self.meter.out_of_memory += 1
        if len(rows) == 1:
            row = int(np.flatnonzero(work.inverse == rows[0])[0])
            raise ModelError(
                f"{work.chunk.piece.path}:{work.chunk.lines[row]}: this row alone does not fit in the device's memory",
                "lower --max-seq-length, or use --device cpu",
            )
        while self.flying:
            self._land()
        width = batching.padded(int(work.tokens.lengths[rows].max()), self.encoder.multiple)
        self.budget = max(1, min(self.budget, width * len(rows)) // 2)
        self.meter.batch_tokens = self.budget
        for half in np.array_split(rows, 2):
            self._start(work, half)

    def _count(self, work: Work, rows: Rows) -> None:
        lengths = work.tokens.lengths[rows]
        width = batching.padded(int(lengths.max()), self.encoder.multiple)
        self.meter.batches += 1
        self.meter.sequences += len(rows)
        self.meter.fed_tokens += int(lengths.sum())
        self.meter.padded_tokens += width * len(rows)

    def _place(self, work: Work, rows: Rows, vectors: Floats) -> None:
        if vectors.shape != (len(rows), self.encoder.dim):
            raise ModelError(
                f"the encoder returned an array of shape {vectors.shape} for {len(rows)} rows of {self.encoder.dim}"
            )
        bad = unusable(vectors)
        if bad.any():
            vectors = np.array(vectors)
            self.meter.retried_rows += int(bad.sum())
            vectors[bad] = self.encoder.exact(work.tokens, rows[bad])
            for i in rows[unusable(vectors)]:
                work.reasons[int(i)] = self._reason(work, int(i))
        work.vectors[rows] = vectors
        work.left -= len(rows)

    def _reason(self, work: Work, i: int) -> str:
        say = getattr(self.encoder, "reason", None)
        told = say(work.tokens, i) if say is not None else None
        return told or "the encoder's vector is not finite, or zero, in float32 too"

    def _ready(self) -> Iterator[Work]:
        while self.waiting and self.waiting[0].left == 0:
            yield self.waiting.popleft()


def unusable(vectors: Floats) -> Bools:
    """bool [n]: rows with a NaN, an infinity, or nothing but zeros."""
    if not vectors.size:
        return np.zeros(len(vectors), bool)
    return np.asarray(~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1))


def finish(work: Work, encoder: Encoder, settings: Settings) -> Encoded:
    """Scatter the distinct vectors back to the rows of the chunk."""
    chunk, inverse = work.chunk, work.inverse
    good = (
        np.array([int(i) not in work.reasons for i in inverse], bool) if work.reasons else np.ones(len(inverse), bool)
    )
    rows = np.flatnonzero(good)
    fresh = inverse[rows] >= 0
    source = inverse[rows][fresh]
    shaped = shape(work.vectors, settings.truncate_dim, settings.normalize)
    vectors = np.empty((len(rows), shaped.shape[1]), np.float32)
    n_tokens = np.empty(len(rows), np.int32)
    truncated = np.empty(len(rows), bool)
    vectors[fresh] = shaped[source]
    n_tokens[fresh] = work.tokens.full[source]
    truncated[fresh] = (work.tokens.full > work.tokens.lengths)[source]
    if work.known is not None and len(work.known.rows):
        vectors[~fresh] = work.known.vectors
        n_tokens[~fresh] = work.known.n_tokens
        truncated[~fresh] = work.known.truncated
    rejects = tuple(_refused(work, int(row)) for row in np.flatnonzero(~good))
    lost = int((work.tokens.full - work.tokens.lengths)[source].sum())
    return Encoded(chunk, rows, vectors, n_tokens, truncated, work.hashes[rows], rejects, lost_tokens=lost)


def _refused(work: Work, row: int) -> Reject:
    chunk = work.chunk
    reason = work.reasons[int(work.inverse[row])]
    return Reject(chunk.piece.path, chunk.lines[row], reason, chunk.ids[row].as_py(), chunk.texts[row])


def shape(vectors: Floats, truncate_dim: int | None, normalize: bool | None) -> Floats:
    """The first `truncate_dim` columns, renormalised to length 1 unless `normalize` is False."""
    if truncate_dim is None or truncate_dim >= vectors.shape[1]:
        return vectors
    cut = vectors[:, :truncate_dim]
    if normalize is False:
        return np.ascontiguousarray(cut)
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.maximum(norms, np.finfo(np.float32).tiny), np.float32)
