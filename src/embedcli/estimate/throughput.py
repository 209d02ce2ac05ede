"""Measure the throughput of an encoder on this machine with some rows of the input."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from embedcli.core import batching
from embedcli.core.encoder import BaseEncoder
from embedcli.core.row_vectors import concat_vectors
from embedcli.core.types import Chunk, InputSplit
from embedcli.pipeline import engine, preparation
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector

if TYPE_CHECKING:
    from embedcli.core.row_vectors import RowVectors
    from embedcli.pipeline.preparation import EncodingSettings

# The first batches allocate memory and choose kernels, so they are not timed.
WARMUP_ROWS = 8
# Number of chunks in the measured time: with one, the last chunk could double it.
TIMED_CHUNKS = 8
# Rows whose vectors show how large those of a job will be.
KEPT_ROWS = 128


@dataclass(frozen=True)
class MeasuredThroughput:
    """Result of a measurement.

    Attributes:
        seconds: Duration.
        rows: Rows encoded.
        tokens: Tokens encoded, without padding.
        padded_tokens: Tokens encoded with padding, which determine the time.
        padded_tokens_per_token: Ratio of both in a whole job, whose chunks are larger.
        vectors: Those of the first rows; None if nothing was measured.
    """

    seconds: float
    rows: int
    tokens: int
    padded_tokens: int
    padded_tokens_per_token: float
    vectors: RowVectors | None = None

    def seconds_for(self, tokens: float) -> float | None:
        """Estimate the seconds for this many tokens without padding; None if nothing was measured."""
        if not self.padded_tokens:
            return None
        return tokens * self.padded_tokens_per_token * self.seconds / self.padded_tokens


def measure_throughput(
    texts: Sequence[str], encoder: BaseEncoder, settings: EncodingSettings, chunk_rows: int, seconds: float
) -> MeasuredThroughput:
    """Encode texts repeatedly for about `seconds` after a warm-up; all vectors but the first are dropped.

    Args:
        texts: Texts of the input.
        encoder: The encoder.
        settings: Encoding settings of the job.
        chunk_rows: Rows per chunk of the job.
        seconds: Duration; 0 measures nothing.
    """
    if settings.overflow in ("error", "reject"):
        settings = replace(settings, overflow="truncate")
    if not texts or not seconds:
        return MeasuredThroughput(0.0, 0, 0, 0, 1.0)
    _, elapsed, _ = _time_chunks(iter([make_chunk(texts[:WARMUP_ROWS], 0)]), encoder, settings, RunControl())
    rows = int(len(texts[:WARMUP_ROWS]) / elapsed * seconds / TIMED_CHUNKS)
    chunks = repeat_in_chunks(texts, min(max(rows, WARMUP_ROWS), chunk_rows))
    metrics, elapsed, vectors = _time_chunks(chunks, encoder, settings, RunControl(max_seconds=seconds))
    ratio = padded_tokens_per_token(texts, encoder, settings, chunk_rows)
    return MeasuredThroughput(elapsed, metrics.rows, metrics.fed_tokens, metrics.padded_tokens, ratio, vectors)


def _time_chunks(
    chunks: Iterator[Chunk], encoder: BaseEncoder, settings: EncodingSettings, control: RunControl
) -> tuple[MetricsCollector, float, RowVectors | None]:
    """Encode chunks: the counts, the seconds, and the vectors of the first rows, KEPT_ROWS at most."""
    metrics = MetricsCollector()
    kept: list[RowVectors] = []
    start = time.perf_counter()
    for encoded in engine.encode_chunks(chunks, encoder, settings, metrics, control):
        if metrics.rows < KEPT_ROWS:
            kept.append(encoded.vectors[: KEPT_ROWS - metrics.rows])
        metrics.rows += encoded.embedded_rows
    return metrics, time.perf_counter() - start, concat_vectors(kept) if kept else None


def repeat_in_chunks(texts: Sequence[str], rows: int) -> Iterator[Chunk]:
    """Yield the texts in chunks of `rows`, endlessly."""
    index = 0
    while True:
        for start in range(0, len(texts), rows):
            yield make_chunk(texts[start : start + rows], index)
            index += 1


def make_chunk(texts: Sequence[str], index: int) -> Chunk:
    """Build a chunk for the engine from texts."""
    lines = range(1, len(texts) + 1)
    return Chunk(
        InputSplit(0, "a sample"), index, pa.array(lines), list(texts), pa.table({}), lines, rows_read=len(texts)
    )


def padded_tokens_per_token(
    texts: Sequence[str], encoder: BaseEncoder, settings: EncodingSettings, chunk_rows: int
) -> float:
    """Compute the ratio of tokens with padding to tokens without, when whole chunks are sorted and packed."""
    padded = unpadded = 0
    budget = settings.batch_tokens or encoder.batch_tokens
    for start in range(0, len(texts), chunk_rows):
        distinct = list(dict.fromkeys(texts[start : start + chunk_rows]))
        lengths = preparation.tokenize_with_overflow(distinct, encoder, settings)[1].lengths
        lengths = lengths[lengths > 0]
        unpadded += int(lengths.sum())
        for rows in batching.pack_batches(lengths, lambda: budget, encoder.pad_to_multiple_of, encoder.equal_lengths):
            padded += batching.padded_token_count(lengths[rows], encoder.pad_to_multiple_of)
    return padded / unpadded if unpadded else 1.0
