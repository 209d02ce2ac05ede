"""One device's pipeline: chunks in, encoded chunks out, in order; batches in flight, and what to do when one fails."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core import batching
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import ModelError, OutOfMemory
from embedcli.core.quantization import unusable
from embedcli.core.types import Chunk, Encoded
from embedcli.pipeline.control import Control
from embedcli.pipeline.metrics import Meter
from embedcli.pipeline.prefetch import Idle, ahead, ahead_or_idle
from embedcli.pipeline.preparation import Portion, Settings, Work, finish, prepare

if TYPE_CHECKING:
    from embedcli.core.types import Floats, Rows


NOT_FINITE = "the encoder's vector is not finite, or zero, in float32 too"


def encode(
    chunks: Iterable[Chunk], encoder: BaseEncoder, settings: Settings, meter: Meter, control: Control
) -> Iterator[Encoded]:
    """Yield every chunk encoded, in order. Stages run in threads; closing the iterator ends them all."""

    def tokenize(stream: Iterator[Chunk]) -> Iterator[Portion]:
        for chunk in stream:
            yield from meter.timed("tokenize", prepare(chunk, encoder, settings, meter))

    def forward(stream: Iterator[Portion | Idle]) -> Iterator[Encoded]:
        try:
            for work in Device(encoder, settings, meter, control).run(stream):
                yield finish(work, settings)
        except ModelError:
            # A hosted encoder gives up its waiting requests this way when the run is stopped.
            if not control.now.is_set():
                raise

    return ahead(forward, ahead_or_idle(tokenize, chunks, cancel=control.now), cancel=control.now)


class Device:
    """Feeds batches of successive chunks to an encoder, `lanes` in flight, and never drains between chunks."""

    def __init__(self, encoder: BaseEncoder, settings: Settings, meter: Meter, control: Control) -> None:
        self.encoder = encoder
        self.meter = meter
        self.control = control
        self.budget = settings.batch_tokens or encoder.batch_tokens
        meter.batch_tokens = self.budget
        self.flying: deque[tuple[Portion, Rows, Any]] = deque()
        self.waiting: deque[Work] = deque()

    def run(self, portions: Iterator[Portion | Idle]) -> Iterator[Work]:
        """Yield each Work when the vectors of all its rows are in place, in the order they came."""
        begun = time.perf_counter()
        for portion in self._arriving(portions):
            if isinstance(portion, Idle):
                yield from self._drain()
                continue
            if portion.first == 0:
                if self.control.soon(len(portion.work.chunk.texts)):
                    break
                self.waiting.append(portion.work)
            for rows in self._batches(portion):
                if self.control.now.is_set():
                    return
                self._start(portion, rows)
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

    def _arriving(self, portions: Iterator[Portion | Idle]) -> Iterator[Portion | Idle]:
        while True:
            begun = time.perf_counter()
            portion = next(portions, None)
            if not self.flying:
                self.meter.idle_seconds += time.perf_counter() - begun
            if portion is None:
                return
            yield portion

    def _batches(self, portion: Portion) -> Iterator[Rows]:
        lengths = portion.tokens.lengths
        todo = np.array([i for i in range(len(lengths)) if i not in portion.reasons], np.int64)
        for order in batching.pack(lengths[todo], lambda: self.budget, self.encoder.multiple):
            yield todo[order]

    def _start(self, portion: Portion, rows: Rows) -> None:
        while len(self.flying) >= self.encoder.lanes:
            self._land()
        with self.meter.stage("forward"):
            try:
                self.flying.append((portion, rows, self.encoder.forward(portion.tokens, rows)))
                self._count(portion, rows)
                return
            except OutOfMemory:
                pass
        self._halve(portion, rows)

    def _land(self) -> None:
        portion, rows, output = self.flying.popleft()
        with self.meter.stage("forward"):
            try:
                vectors = self.encoder.collect(output)
                self._place(portion, rows, vectors, self.encoder.has_verified_vectors(output))
                return
            except OutOfMemory:
                del output
        self._halve(portion, rows)

    def _halve(self, portion: Portion, rows: Rows) -> None:
        self.meter.out_of_memory += 1
        if len(rows) == 1:
            raise ModelError(
                f"{portion.where(int(rows[0]))}: this row alone does not fit in the device's memory",
                "lower --max-seq-length, or use --device cpu",
            )
        while self.flying:
            self._land()
        self.budget = max(1, min(self.budget, batching.cost(portion.tokens.lengths[rows], self.encoder.multiple)) // 2)
        self.meter.batch_tokens = self.budget
        for half in np.array_split(rows, 2):
            self._start(portion, half)

    def _count(self, portion: Portion, rows: Rows) -> None:
        lengths = portion.tokens.lengths[rows]
        self.meter.batches += 1
        self.meter.sequences += len(rows)
        self.meter.fed_tokens += int(lengths.sum())
        self.meter.padded_tokens += batching.cost(lengths, self.encoder.multiple)

    def _place(self, portion: Portion, rows: Rows, vectors: Floats, verified: bool = False) -> None:
        if vectors.shape != (len(rows), self.encoder.dim):
            raise ModelError(
                f"the encoder returned an array of shape {vectors.shape} for {len(rows)} rows of {self.encoder.dim}",
                "this is a defect of the encoder: please report it, with the name of the model",
            )
        bad = np.zeros(len(rows), bool) if verified else unusable(vectors)
        if bad.any():
            vectors = np.array(vectors)
            reasons = {int(i): self.encoder.reject_reason(portion.tokens, int(i)) for i in rows[bad]}
            again = bad & np.array([reasons.get(int(i)) is None for i in rows])
            if again.any():
                self.meter.retried_rows += int(again.sum())
                vectors[again] = self.encoder.exact(portion.tokens, rows[again])
            for i in rows[unusable(vectors)]:
                portion.reasons[int(i)] = reasons.get(int(i)) or NOT_FINITE
        portion.vectors[rows] = vectors
        portion.left -= len(rows)

    def _ready(self) -> Iterator[Work]:
        while self.waiting and self.waiting[0].done:
            yield self.waiting.popleft()
