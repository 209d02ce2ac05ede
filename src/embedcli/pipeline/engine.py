"""The engine: chunks of rows in, encoded chunks out, in order, with batches in flight on one device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core import batching
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import DeviceOutOfMemoryError, EncodingStoppedError, ModelError
from embedcli.core.quantization import find_unusable
from embedcli.core.row_vectors import replace_vectors
from embedcli.core.types import Chunk, EncodedChunk
from embedcli.pipeline.assembly import assemble_chunk
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.prefetch import IDLE_SIGNAL, IdleSignal, prefetch, prefetch_with_idle
from embedcli.pipeline.preparation import (
    ChunkInProgress,
    EncodingSettings,
    TokenizedPortion,
    apply_overflow,
    tokenize_chunk,
)

if TYPE_CHECKING:
    from embedcli.core.row_vectors import EncodedVectors
    from embedcli.core.types import Int64Array


OnBatch = Callable[[], None]


def encode_chunks(
    chunks: Iterable[Chunk],
    encoder: BaseEncoder,
    settings: EncodingSettings,
    metrics: MetricsCollector,
    control: RunControl,
    on_batch: OnBatch = lambda: None,
) -> Iterator[EncodedChunk]:
    """Encode chunks on one device.

    Three steps overlap, each in a thread: reading `chunks`, tokenizing, and computing with assembling.

    Args:
        chunks: The rows; read one or two chunks ahead.
        encoder: Computes the vectors.
        settings: What the job asks of each chunk.
        metrics: Gets the counts and busy times.
        control: Stops the run early.
        on_batch: Called in the thread that computes after each batch, once `metrics.progress` counts its rows.

    Returns:
        The encoded chunks, in the order of `chunks`. Closing the iterator ends all threads.

    Raises:
        InputError: A text is too long, with --overflow error.
        ModelError: The device or the server failed for good, or a single row does not fit on the device.
    """

    def tokenize(stream: Iterator[Chunk]) -> Iterator[TokenizedPortion]:
        for chunk in stream:
            yield from metrics.time_items("tokenize", tokenize_chunk(chunk, encoder, settings, metrics))

    def forward(portions: Iterator[TokenizedPortion | IdleSignal]) -> Iterator[EncodedChunk]:
        try:
            for chunk in BatchScheduler(encoder, settings, metrics, control, on_batch).run(portions):
                encoded = assemble_chunk(chunk, settings)
                # A chunk and its portions refer to each other: their memory would wait for the garbage collector.
                chunk.portions.clear()
                yield encoded
        except EncodingStoppedError:
            if not control.stop_if_time_is_over():
                raise
        except ModelError:
            if not control.stop_event.is_set():
                raise

    return prefetch(forward, prefetch_with_idle(tokenize, chunks, cancel=control.stop_event), cancel=control.stop_event)


class BatchScheduler:
    """Runs the batches of successive chunks, up to `max_in_flight` at once, without draining between chunks.

    The methods follow a batch: received as a portion, packed, started, collected, stored; on the way it may be halved.
    """

    def __init__(
        self,
        encoder: BaseEncoder,
        settings: EncodingSettings,
        metrics: MetricsCollector,
        control: RunControl,
        on_batch: OnBatch,
    ) -> None:
        self.encoder = encoder
        self.settings = settings
        self.metrics = metrics
        self.control = control
        self.on_batch = on_batch
        self.token_budget = settings.batch_tokens or encoder.batch_tokens
        metrics.batch_tokens = self.token_budget
        self.in_flight: deque[tuple[TokenizedPortion, Int64Array, Any]] = deque()
        self.unfinished_chunks: deque[ChunkInProgress] = deque()

    def run(self, portions: Iterator[TokenizedPortion | IdleSignal]) -> Iterator[ChunkInProgress]:
        """Yield each chunk once all its texts have a vector or a reject reason, in the order they came."""
        started = time.perf_counter()
        for portion in self._receive(portions):
            if isinstance(portion, IdleSignal):
                # No input comes, or it failed: finished rows must not wait for more, nor be lost.
                yield from self._collect_all()
                continue
            if portion.first_text == 0:
                if self.control.should_stop_before_chunk(len(portion.chunk_in_progress.chunk.texts)):
                    break
                self.unfinished_chunks.append(portion.chunk_in_progress)
                self.metrics.progress.skipped_rows += portion.chunk_in_progress.skipped_rows
            self._count_done(portion, np.array(list(portion.reject_reasons), np.int64))
            for rows in self._pack(portion):
                if self.control.stop_event.is_set():
                    return
                self._start(portion, rows)
                yield from self._pop_finished_chunks()
            self.metrics.forward_seconds = time.perf_counter() - started
        yield from self._collect_all()
        self.metrics.forward_seconds = time.perf_counter() - started

    def _receive(self, portions: Iterator[TokenizedPortion | IdleSignal]) -> Iterator[TokenizedPortion | IdleSignal]:
        """Count as idle time how long the device waits for the next portion; signal before an error passes."""
        while True:
            started = time.perf_counter()
            try:
                portion = next(portions, None)
            except Exception:
                # The chunks before the failing row are finished, whatever the speed of reading and computing.
                yield IDLE_SIGNAL
                raise
            if not self.in_flight:
                self.metrics.idle_seconds += time.perf_counter() - started
            if portion is None:
                return
            yield portion

    def _pack(self, portion: TokenizedPortion) -> Iterator[Int64Array]:
        lengths = portion.tokens.lengths
        rows = np.array([i for i in range(len(lengths)) if i not in portion.reject_reasons], np.int64)
        multiple, equal = self.encoder.pad_to_multiple_of, self.encoder.equal_lengths
        for order in batching.pack_batches(lengths[rows], lambda: self.token_budget, multiple, equal):
            yield rows[order]

    def _start(self, portion: TokenizedPortion, rows: Int64Array) -> None:
        while len(self.in_flight) >= self.encoder.max_in_flight:
            self._collect_oldest()
        with self.metrics.time_stage("forward"):
            try:
                self.in_flight.append((portion, rows, self.encoder.forward(portion.tokens, rows)))
                return
            except DeviceOutOfMemoryError:
                pass
        self._start_halves(portion, rows)

    def _collect_oldest(self) -> None:
        portion, rows, output = self.in_flight.popleft()
        with self.metrics.time_stage("forward"):
            try:
                vectors = self.encoder.collect(output)
                self._store_vectors(portion, rows, vectors, self.encoder.has_verified_vectors(output))
                return
            except DeviceOutOfMemoryError:
                del output  # it may hold memory of the device
        self._start_halves(portion, rows)

    def _collect_all(self) -> Iterator[ChunkInProgress]:
        while self.in_flight and not self.control.stop_event.is_set():
            self._collect_oldest()
            yield from self._pop_finished_chunks()
        yield from self._pop_finished_chunks()

    def _start_halves(self, portion: TokenizedPortion, rows: Int64Array) -> None:
        """Lower the token budget to half of a batch that did not fit, and start the batch again in two halves."""
        self.metrics.out_of_memory += 1
        if len(rows) == 1:
            raise ModelError(
                f"{portion.locate_sequence(int(rows[0]))}: this row alone does not fit in the device's memory",
                "lower --max-seq-length, or use --device cpu",
            )
        while self.in_flight:
            self._collect_oldest()
        self.token_budget = max(1, min(self.token_budget, self._padded_tokens(portion, rows)) // 2)
        self.metrics.batch_tokens = self.token_budget
        for half in np.array_split(rows, 2):
            self._start(portion, half)

    def _padded_tokens(self, portion: TokenizedPortion, rows: Int64Array) -> int:
        return batching.padded_token_count(portion.tokens.lengths[rows], self.encoder.pad_to_multiple_of)

    def _store_vectors(
        self, portion: TokenizedPortion, rows: Int64Array, vectors: EncodedVectors, is_verified: bool
    ) -> None:
        if vectors.shape != (len(rows), self.encoder.dim):
            raise ModelError(
                f"the encoder returned an array of shape {vectors.shape} for {len(rows)} rows of {self.encoder.dim}",
                "this is a defect of the encoder: please report it, with the name of the model",
            )
        if not is_verified:
            vectors = self._retry_unusable(portion, rows, vectors)
        if portion.tokens.cut_lengths:
            apply_overflow(portion, self.settings)
        portion.vectors.put(rows, vectors)
        portion.pending -= len(rows)
        self._count_batch(portion, rows)

    def _count_batch(self, portion: TokenizedPortion, rows: Int64Array) -> None:
        self.metrics.batches += 1
        self.metrics.sequences += len(rows)
        self.metrics.fed_tokens += int(portion.tokens.lengths[rows].sum())
        self.metrics.padded_tokens += self._padded_tokens(portion, rows)
        progress, usage = self.metrics.progress, self.encoder.usage()
        progress.embedded_tokens += int((portion.tokens.offsets[rows + 1] - portion.tokens.offsets[rows]).sum())
        progress.batches += 1
        if usage is not None:
            progress.requests, progress.billed_tokens = usage["requests"], usage["tokens"]
        self._count_done(portion, rows)

    def _count_done(self, portion: TokenizedPortion, sequences: Int64Array) -> None:
        self.metrics.progress.embedded_rows += portion.mark_done(sequences)
        self.on_batch()

    def _retry_unusable(self, portion: TokenizedPortion, rows: Int64Array, vectors: EncodedVectors) -> EncodedVectors:
        """Encode rows without a usable vector again in float32, and reject those that still have none."""
        unusable = find_unusable(vectors)
        if not unusable.any():
            return vectors
        reasons = {int(i): self.encoder.reject_reason(portion.tokens, int(i)) for i in rows[unusable]}
        retried = unusable & np.array([reasons.get(int(i)) is None for i in rows])
        if retried.any():
            self.metrics.retried_rows += int(retried.sum())
            again = self.encoder.encode_float32(portion.tokens, rows[retried])
            vectors = replace_vectors(vectors, retried, again)
        for position in np.flatnonzero(find_unusable(vectors)):
            row = int(rows[position])
            reason = self.encoder.unusable_reason(vectors[position : position + 1])
            portion.reject_reasons[row] = reasons.get(row) or reason
        return vectors

    def _pop_finished_chunks(self) -> Iterator[ChunkInProgress]:
        while self.unfinished_chunks and self.unfinished_chunks[0].is_done:
            yield self.unfinished_chunks.popleft()
