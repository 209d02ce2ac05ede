"""How fast an encoder is on this machine: some rows through the engine for a moment."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from embedcli.core import batching
from embedcli.core.encoder import BaseEncoder
from embedcli.core.types import Chunk, InputSplit
from embedcli.pipeline import engine, preparation
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector

if TYPE_CHECKING:
    from embedcli.pipeline.preparation import EncodingSettings

# The first batches allocate memory and choose kernels; they are not timed.
WARMUP_ROWS = 8
# So many chunks share the measured time, so that the last one cannot double it.
TIMED_CHUNKS = 8


@dataclass(frozen=True)
class MeasuredThroughput:
    """What was measured. `padded_tokens` take the time; `padding` are they in a whole job, per token that is read."""

    seconds: float
    rows: int
    tokens: int
    padded_tokens: int
    padded_tokens_per_token: float

    def seconds_for(self, tokens: float) -> float | None:
        """Seconds for this many tokens that are read; None if nothing could be measured."""
        if not self.padded_tokens:
            return None
        return tokens * self.padded_tokens_per_token * self.seconds / self.padded_tokens


def measure_throughput(
    texts: Sequence[str], encoder: BaseEncoder, settings: EncodingSettings, chunk_rows: int, seconds: float
) -> MeasuredThroughput:
    """Encode `texts`, over and over, for about `seconds` after a warm-up; the vectors are dropped."""
    if settings.overflow in ("error", "reject"):
        settings = replace(settings, overflow="truncate")
    if not texts or not seconds:
        return MeasuredThroughput(0.0, 0, 0, 0, 1.0)
    _, took = _timed(iter([make_chunk(texts[:WARMUP_ROWS], 0)]), encoder, settings, RunControl())
    rows = int(len(texts[:WARMUP_ROWS]) / took * seconds / TIMED_CHUNKS)
    chunks = repeat_in_chunks(texts, min(max(rows, WARMUP_ROWS), chunk_rows))
    meter, took = _timed(chunks, encoder, settings, RunControl(max_seconds=seconds))
    ratio = padded_tokens_per_token(texts, encoder, settings, chunk_rows)
    return MeasuredThroughput(took, meter.rows, meter.fed_tokens, meter.padded_tokens, ratio)


def _timed(
    chunks: Iterator[Chunk], encoder: BaseEncoder, settings: EncodingSettings, control: RunControl
) -> tuple[MetricsCollector, float]:
    meter = MetricsCollector()
    begun = time.perf_counter()
    for encoded in engine.encode_chunks(chunks, encoder, settings, meter, control):
        meter.rows += encoded.embedded_rows
    return meter, time.perf_counter() - begun


def repeat_in_chunks(texts: Sequence[str], rows: int) -> Iterator[Chunk]:
    """The texts in chunks of `rows`, from the beginning again when they are used up."""
    seq = 0
    while True:
        for start in range(0, len(texts), rows):
            yield make_chunk(texts[start : start + rows], seq)
            seq += 1


def make_chunk(texts: Sequence[str], seq: int) -> Chunk:
    """Texts as the engine takes them."""
    places = range(1, len(texts) + 1)
    return Chunk(
        InputSplit(0, "a sample"), seq, pa.array(places), list(texts), pa.table({}), places, rows_read=len(texts)
    )


def padded_tokens_per_token(
    texts: Sequence[str], encoder: BaseEncoder, settings: EncodingSettings, chunk_rows: int
) -> float:
    """Tokens computed per token read, at least 1, where whole chunks are sorted and packed."""
    computed = read = 0
    budget = settings.batch_tokens or encoder.batch_tokens
    for start in range(0, len(texts), chunk_rows):
        some = list(dict.fromkeys(texts[start : start + chunk_rows]))
        lengths = preparation.tokenize_with_overflow(some, encoder, settings)[1].lengths
        lengths = lengths[lengths > 0]
        read += int(lengths.sum())
        for rows in batching.pack_batches(lengths, lambda: budget, encoder.pad_to_multiple_of):
            computed += batching.padded_token_count(lengths[rows], encoder.pad_to_multiple_of)
    return computed / read if read else 1.0
