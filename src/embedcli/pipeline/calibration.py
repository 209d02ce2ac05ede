"""Ranges for int8 and uint8 vectors, from a sample across the whole input, so that every part uses the same."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embedcli import storage
from embedcli.core import quantization
from embedcli.core.encoder import BaseEncoder
from embedcli.core.errors import ResumeError, UsageError
from embedcli.core.job import Job
from embedcli.core.types import Chunk, InputSplit
from embedcli.outputs import target as output_target
from embedcli.pipeline import engine
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array

# sentence-transformers warns below 100 rows; the extremes of 2,000 leave about 1 value in 1,000 of a column outside.
SAMPLE_ROWS = 2000
RANGES_FILE = "_ranges.json"


def needs_ranges(job: Job) -> bool:
    """Whether the stored precision needs ranges."""
    return job.precision in ("int8", "uint8")


def read_output_ranges(path: str) -> Float32Array:
    """float32 [2, dim]: the ranges recorded in a finished output. UsageError if it has none."""
    done = output_target.read_finished_output(output_target.resolve_target(path, None))
    found = done.vector_space.get("ranges") if done is not None else None
    if not found:
        raise UsageError(f"{path} records no ranges", "name a finished output of --precision int8 or uint8")
    return np.array(found, np.float32)


def choose_known_ranges(job: Job, stage: str | None, kept: Float32Array | None = None) -> Float32Array | None:
    """float32 [2, dim]: the ranges that need no sample, from now on noted in `stage`; None if there are none yet.

    They are those that the job was begun with, else `kept`, the ranges of the output that --update replaces, else those
    that --ranges-from names. ResumeError where two of these differ: an output's parts all have the ranges it records.
    """
    named = read_output_ranges(job.ranges_from) if job.ranges_from is not None else None
    output = storage.format_location(job.output)
    if kept is not None and named is not None and not np.array_equal(kept, named):
        raise ResumeError(
            f"{output} was stored with other ranges than those of {job.ranges_from}",
            "use --overwrite to encode all rows again, or leave out --ranges-from",
        )
    begun, wanted = read_staged_ranges(stage), named if kept is None else kept
    if begun is None:
        if wanted is not None:
            write_staged_ranges(stage, wanted)
        return wanted
    if wanted is not None and not np.array_equal(begun, wanted):
        parts = f"the parts in {storage.format_location(stage or '')} were stored with other ranges than"
        if kept is None:
            raise ResumeError(f"{parts} {job.ranges_from} has now", "use --overwrite to encode all rows again")
        raise ResumeError(
            f"{parts} {output} records",
            "remove those parts to go on with --update, or use --overwrite to encode all rows again",
        )
    return begun


def read_staged_ranges(stage: str | None) -> Float32Array | None:
    """The ranges that `note` wrote; None if nothing did, or if they are damaged."""
    if stage is None or not storage.exists(storage.join(stage, RANGES_FILE)):
        return None
    try:
        made = json.loads(storage.read_bytes(storage.join(stage, RANGES_FILE)))
        ranges = np.array(made["ranges"], np.float32)
        return ranges if hash_ranges(ranges) == made["digest"] else None
    except (ValueError, KeyError, TypeError):
        return None


def write_staged_ranges(stage: str | None, ranges: Float32Array) -> None:
    """Write down in a stage, if there is one, which ranges all its parts have."""
    if stage is not None:
        text = json.dumps({"ranges": ranges.tolist(), "digest": hash_ranges(ranges)})
        storage.write_bytes(storage.join(stage, RANGES_FILE), text.encode())


def hash_ranges(ranges: Float32Array) -> str:
    return blake2b(ranges.astype(np.float32).tobytes(), digest_size=16).hexdigest()


def compute_ranges_from_sample(
    job: Job, chunks: Iterable[Chunk], encoder: BaseEncoder, settings: EncodingSettings, stage: str | None
) -> Float32Array:
    """float32 [2, dim]: from a sample of `chunks`, then noted in `stage`.

    The sample is the SAMPLE_ROWS distinct texts with the smallest hashes: spread over the input, the same each time.
    """
    if "-" in job.inputs:
        raise UsageError(
            f"--precision {job.precision} needs ranges from all over the input, and stdin can be read only once",
            "write the input to a file first, or give --ranges-from OUTPUT",
        )
    ranges = quantization.compute_ranges(encode_sample(sample_texts(chunks), encoder, settings))
    write_staged_ranges(stage, ranges)
    return ranges


def sample_texts(chunks: Iterable[Chunk]) -> list[str]:
    """Up to SAMPLE_ROWS distinct texts, those with the smallest BLAKE2b hashes."""
    kept: list[tuple[int, str]] = []
    inside: set[str] = set()
    for chunk in chunks:
        for text in chunk.texts:
            # A heap of negated hashes has the largest kept hash on top, to be thrown out first.
            key = -int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
            if text in inside or (len(kept) == SAMPLE_ROWS and key <= kept[0][0]):
                continue
            inside.add(text)
            if len(kept) < SAMPLE_ROWS:
                heapq.heappush(kept, (key, text))
            else:
                inside.discard(heapq.heapreplace(kept, (key, text))[1])
    return [text for _, text in sorted(kept)]


def encode_sample(texts: list[str], encoder: BaseEncoder, settings: EncodingSettings) -> Float32Array:
    """float32 [n, dim] of the texts that get a vector, shaped as the job shapes them."""
    if not texts:
        raise UsageError(
            "the input has no rows to take ranges from", "use --precision float32, or --ranges-from OUTPUT"
        )
    ids: Any = pa.array(range(len(texts)), pa.int64())
    chunk = Chunk(InputSplit(0, "the sample"), 0, ids, texts, pa.table({"id": ids}).select([]), range(len(texts)))
    plain = replace(settings, reuse_lookup=None, overflow="truncate")
    made = list(engine.encode_chunks([chunk], encoder, plain, MetricsCollector(), RunControl()))
    return made[0].vectors
