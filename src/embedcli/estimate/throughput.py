"""How fast an encoder is on this machine: some rows through the engine for a moment."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from embedcli.core import batching
from embedcli.core.encoder import BaseEncoder
from embedcli.core.types import Chunk, Piece
from embedcli.pipeline import engine, preparation
from embedcli.pipeline.control import Control
from embedcli.pipeline.metrics import Meter

if TYPE_CHECKING:
    from embedcli.pipeline.preparation import Settings

# The first batches allocate memory and choose kernels; they are not timed.
WARM_ROWS = 8
# So many chunks share the measured time, so that the last one cannot double it.
CHUNKS = 8


@dataclass(frozen=True)
class Speed:
    """What was measured. `padded_tokens` take the time; `padding` are they in a whole job, per token that is read."""

    seconds: float
    rows: int
    tokens: int
    padded_tokens: int
    padding: float

    def time_for(self, tokens: float) -> float | None:
        """Seconds for this many tokens that are read; None if nothing could be measured."""
        if not self.padded_tokens:
            return None
        return tokens * self.padding * self.seconds / self.padded_tokens


def measure(texts: Sequence[str], encoder: BaseEncoder, settings: Settings, chunk_rows: int, seconds: float) -> Speed:
    """Encode `texts`, over and over, for about `seconds` after a warm-up; the vectors are dropped."""
    if settings.overflow in ("error", "reject"):
        settings = replace(settings, overflow="truncate")
    if not texts or not seconds:
        return Speed(0.0, 0, 0, 0, 1.0)
    _, took = _timed(iter([chunk(texts[:WARM_ROWS], 0)]), encoder, settings, Control())
    rows = int(len(texts[:WARM_ROWS]) / took * seconds / CHUNKS)
    chunks = endless(texts, min(max(rows, WARM_ROWS), chunk_rows))
    meter, took = _timed(chunks, encoder, settings, Control(max_seconds=seconds))
    ratio = padding(texts, encoder, settings, chunk_rows)
    return Speed(took, meter.rows, meter.fed_tokens, meter.padded_tokens, ratio)


def _timed(chunks: Iterator[Chunk], encoder: BaseEncoder, settings: Settings, control: Control) -> tuple[Meter, float]:
    meter = Meter()
    begun = time.perf_counter()
    for encoded in engine.encode(chunks, encoder, settings, meter, control):
        meter.rows += encoded.embedded
    return meter, time.perf_counter() - begun


def endless(texts: Sequence[str], rows: int) -> Iterator[Chunk]:
    """The texts in chunks of `rows`, from the beginning again when they are used up."""
    seq = 0
    while True:
        for start in range(0, len(texts), rows):
            yield chunk(texts[start : start + rows], seq)
            seq += 1


def chunk(texts: Sequence[str], seq: int) -> Chunk:
    """Texts as the engine takes them."""
    places = range(1, len(texts) + 1)
    return Chunk(Piece(0, "a sample"), seq, pa.array(places), list(texts), pa.table({}), places, read=len(texts))


def padding(texts: Sequence[str], encoder: BaseEncoder, settings: Settings, chunk_rows: int) -> float:
    """Tokens computed per token read, at least 1, where whole chunks are sorted and packed."""
    computed = read = 0
    budget = settings.batch_tokens or encoder.batch_tokens
    for start in range(0, len(texts), chunk_rows):
        some = list(dict.fromkeys(texts[start : start + chunk_rows]))
        lengths = preparation.tokenized(some, encoder, settings)[1].lengths
        lengths = lengths[lengths > 0]
        read += int(lengths.sum())
        for rows in batching.pack(lengths, lambda: budget, encoder.multiple):
            computed += batching.cost(lengths[rows], encoder.multiple)
    return computed / read if read else 1.0
