"""One device's pipeline: chunks in, encoded chunks out, in order; batches in flight, and what to do when one fails."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core import batching
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import DeviceOutOfMemoryError, ModelError
from embedcli.core.quantization import find_unusable
from embedcli.core.types import Chunk, EncodedChunk
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.prefetch import IdleSignal, prefetch, prefetch_with_idle
from embedcli.pipeline.preparation import (
    ChunkInProgress,
    EncodingSettings,
    TokenizedPortion,
    assemble_chunk,
    tokenize_chunk,
)

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, Int64Array


NOT_FINITE_REASON = "the encoder's vector is not finite, or zero, in float32 too"


def encode_chunks(
    chunks: Iterable[Chunk],
    encoder: BaseEncoder,
    settings: EncodingSettings,
    meter: MetricsCollector,
    control: RunControl,
) -> Iterator[EncodedChunk]:
    """Yield every chunk encoded, in order. Stages run in threads; closing the iterator ends them all."""

    def tokenize(stream: Iterator[Chunk]) -> Iterator[TokenizedPortion]:
        for chunk in stream:
            yield from meter.time_items("tokenize", tokenize_chunk(chunk, encoder, settings, meter))

    def forward(stream: Iterator[TokenizedPortion | IdleSignal]) -> Iterator[EncodedChunk]:
        try:
            for work in BatchScheduler(encoder, settings, meter, control).run(stream):
                yield assemble_chunk(work, settings)
        except ModelError:
            # A hosted encoder gives up its waiting requests this way when the run is stopped.
            if not control.stop_event.is_set():
                raise

    return prefetch(forward, prefetch_with_idle(tokenize, chunks, cancel=control.stop_event), cancel=control.stop_event)


class BatchScheduler:
    """Feeds batches of successive chunks to an encoder, `lanes` in flight, and never drains between chunks."""

    def __init__(
        self, encoder: BaseEncoder, settings: EncodingSettings, meter: MetricsCollector, control: RunControl
    ) -> None:
        self.encoder = encoder
        self.meter = meter
        self.control = control
        self.token_budget = settings.batch_tokens or encoder.batch_tokens
        meter.batch_tokens = self.token_budget
        self.in_flight: deque[tuple[TokenizedPortion, Int64Array, Any]] = deque()
        self.unfinished_chunks: deque[ChunkInProgress] = deque()

    def run(self, portions: Iterator[TokenizedPortion | IdleSignal]) -> Iterator[ChunkInProgress]:
        """Yield each Work when the vectors of all its rows are in place, in the order they came."""
        begun = time.perf_counter()
        for portion in self._arriving(portions):
            if isinstance(portion, IdleSignal):
                yield from self._drain()
                continue
            if portion.first_text == 0:
                if self.control.should_stop_before_chunk(len(portion.chunk_in_progress.chunk.texts)):
                    break
                self.unfinished_chunks.append(portion.chunk_in_progress)
            for rows in self._batches(portion):
                if self.control.stop_event.is_set():
                    return
                self._start(portion, rows)
                yield from self._ready()
            self.meter.forward_seconds = time.perf_counter() - begun
        yield from self._drain()
        self.meter.forward_seconds = time.perf_counter() - begun

    def _drain(self) -> Iterator[ChunkInProgress]:
        """Land what is in flight: at the end, and when no input comes, so that finished rows do not wait for more."""
        while self.in_flight and not self.control.stop_event.is_set():
            self._land()
            yield from self._ready()
        yield from self._ready()

    def _arriving(self, portions: Iterator[TokenizedPortion | IdleSignal]) -> Iterator[TokenizedPortion | IdleSignal]:
        while True:
            begun = time.perf_counter()
            portion = next(portions, None)
            if not self.in_flight:
                self.meter.idle_seconds += time.perf_counter() - begun
            if portion is None:
                return
            yield portion

    def _batches(self, portion: TokenizedPortion) -> Iterator[Int64Array]:
        lengths = portion.tokens.lengths
        todo = np.array([i for i in range(len(lengths)) if i not in portion.reject_reasons], np.int64)
        for order in batching.pack_batches(lengths[todo], lambda: self.token_budget, self.encoder.pad_to_multiple_of):
            yield todo[order]

    def _start(self, portion: TokenizedPortion, rows: Int64Array) -> None:
        while len(self.in_flight) >= self.encoder.max_in_flight:
            self._land()
        with self.meter.time_stage("forward"):
            try:
                self.in_flight.append((portion, rows, self.encoder.forward(portion.tokens, rows)))
                self._count(portion, rows)
                return
            except DeviceOutOfMemoryError:
                pass
        self._halve(portion, rows)

    def _land(self) -> None:
        portion, rows, output = self.in_flight.popleft()
        with self.meter.time_stage("forward"):
            try:
                vectors = self.encoder.collect(output)
                self._place(portion, rows, vectors, self.encoder.has_verified_vectors(output))
                return
            except DeviceOutOfMemoryError:
                del output
        self._halve(portion, rows)

    def _halve(self, portion: TokenizedPortion, rows: Int64Array) -> None:
        self.meter.out_of_memory += 1
        if len(rows) == 1:
            raise ModelError(
                f"{portion.locate_sequence(int(rows[0]))}: this row alone does not fit in the device's memory",
                "lower --max-seq-length, or use --device cpu",
            )
        while self.in_flight:
            self._land()
        self.token_budget = max(
            1,
            min(
                self.token_budget,
                batching.padded_token_count(portion.tokens.lengths[rows], self.encoder.pad_to_multiple_of),
            )
            // 2,
        )
        self.meter.batch_tokens = self.token_budget
        for half in np.array_split(rows, 2):
            self._start(portion, half)

    def _count(self, portion: TokenizedPortion, rows: Int64Array) -> None:
        lengths = portion.tokens.lengths[rows]
        self.meter.batches += 1
        self.meter.sequences += len(rows)
        self.meter.fed_tokens += int(lengths.sum())
        self.meter.padded_tokens += batching.padded_token_count(lengths, self.encoder.pad_to_multiple_of)

    def _place(
        self, portion: TokenizedPortion, rows: Int64Array, vectors: Float32Array, verified: bool = False
    ) -> None:
        if vectors.shape != (len(rows), self.encoder.dim):
            raise ModelError(
                f"the encoder returned an array of shape {vectors.shape} for {len(rows)} rows of {self.encoder.dim}",
                "this is a defect of the encoder: please report it, with the name of the model",
            )
        bad = np.zeros(len(rows), bool) if verified else find_unusable(vectors)
        if bad.any():
            vectors = np.array(vectors)
            reasons = {int(i): self.encoder.reject_reason(portion.tokens, int(i)) for i in rows[bad]}
            again = bad & np.array([reasons.get(int(i)) is None for i in rows])
            if again.any():
                self.meter.retried_rows += int(again.sum())
                vectors[again] = self.encoder.encode_float32(portion.tokens, rows[again])
            for i in rows[find_unusable(vectors)]:
                portion.reject_reasons[int(i)] = reasons.get(int(i)) or NOT_FINITE_REASON
        portion.vectors[rows] = vectors
        portion.pending -= len(rows)

    def _ready(self) -> Iterator[ChunkInProgress]:
        while self.unfinished_chunks and self.unfinished_chunks[0].is_done:
            yield self.unfinished_chunks.popleft()
