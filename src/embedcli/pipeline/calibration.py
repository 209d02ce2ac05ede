"""Choose the ranges of int8 and uint8 vectors from a sample of the whole input, one set for the whole output."""

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
from embedcli.core.quantization import are_equal_ranges
from embedcli.core.types import Chunk, InputSplit
from embedcli.outputs import target as output_target
from embedcli.outputs.vector_columns import read_ranges
from embedcli.pipeline import engine
from embedcli.pipeline.control import RunControl
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings

if TYPE_CHECKING:
    from embedcli.core.quantization import Ranges
    from embedcli.core.row_vectors import RowVectors

# sentence-transformers warns below 100 rows; the extremes of 2,000 leave about 1 value in 1,000 of a column outside.
SAMPLE_ROWS = 2000
RANGES_FILE = "_ranges.json"


def needs_ranges(job: Job) -> bool:
    """Whether the vectors are stored as int8 or uint8."""
    return job.precision in ("int8", "uint8")


def read_output_ranges(path: str) -> Ranges:
    """Read the ranges recorded in a finished output, for each column.

    Raises:
        UsageError: It has none.
        InputError: They make no sense.
    """
    finished = output_target.read_finished_output(output_target.resolve_target(path, None))
    ranges = read_ranges(finished.vector_space, path) if finished is not None else ()
    if not ranges:
        raise UsageError(f"{path} records no ranges", "use a finished output of --precision int8 or uint8")
    return ranges


def choose_known_ranges(job: Job, staging_folder: str | None, updated_ranges: Ranges = ()) -> Ranges:
    """Choose the ranges of a job that needs no sample, and record them in the staging folder.

    They are those that an interrupted run recorded, else those of the output that --update replaces, else those that
    --ranges-from names.

    Args:
        job: The job.
        staging_folder: Its staging folder; None if it has none.
        updated_ranges: The ranges of the output that --update replaces.

    Returns:
        Those of each column; empty if the ranges must be computed from a sample.

    Raises:
        ResumeError: Two of these differ. All part files of an output must have the ranges that it records.
    """
    named = read_output_ranges(job.ranges_from) if job.ranges_from is not None else ()
    output = storage.format_location(job.output)
    if updated_ranges and named and not are_equal_ranges(updated_ranges, named):
        raise ResumeError(
            f"{output} was stored with other ranges than those of {job.ranges_from}",
            "use --overwrite to encode all rows again, or leave out --ranges-from",
        )
    requested = updated_ranges or named
    staged = read_staged_ranges(staging_folder)
    if not staged:
        if requested:
            write_staged_ranges(staging_folder, requested)
        return requested
    if requested and not are_equal_ranges(staged, requested):
        parts = f"the parts in {storage.format_location(staging_folder or '')} were stored with other ranges than"
        if not updated_ranges:
            raise ResumeError(f"{parts} {job.ranges_from} has now", "use --overwrite to encode all rows again")
        raise ResumeError(
            f"{parts} {output} records",
            "remove those parts to go on with --update, or use --overwrite to encode all rows again",
        )
    return staged


def read_staged_ranges(staging_folder: str | None) -> Ranges:
    """The ranges that `write_staged_ranges` recorded; empty if there are none, or if the file is damaged."""
    if staging_folder is None or not storage.exists(storage.join(staging_folder, RANGES_FILE)):
        return ()
    try:
        content = json.loads(storage.read_bytes(storage.join(staging_folder, RANGES_FILE)))
        ranges = tuple(np.array(own, np.float32) for own in (content["ranges"], *content.get("further", [])))
        return ranges if _hash_ranges(ranges) == content["digest"] else ()
    except (ValueError, KeyError, TypeError):
        return ()


def write_staged_ranges(staging_folder: str | None, ranges: Ranges) -> None:
    """Record in a staging folder, if there is one, the ranges of all its part files."""
    if staging_folder is not None:
        first, *further = (own.tolist() for own in ranges)
        content = {"ranges": first, **({"further": further} if further else {}), "digest": _hash_ranges(ranges)}
        storage.write_bytes(storage.join(staging_folder, RANGES_FILE), json.dumps(content).encode())


def _hash_ranges(ranges: Ranges) -> str:
    content = b"".join(own.astype(np.float32).tobytes() for own in ranges)
    return blake2b(content, digest_size=16).hexdigest()


def compute_ranges_from_sample(
    job: Job, chunks: Iterable[Chunk], encoder: BaseEncoder, settings: EncodingSettings, staging_folder: str | None
) -> Ranges:
    """Compute ranges from a sample of the input, and record them in the staging folder.

    The sample is the SAMPLE_ROWS distinct texts with the smallest hashes: spread over the input, and always the same.

    Args:
        job: The job.
        chunks: All rows of the input.
        encoder: Encodes the sample.
        settings: Those of the job.
        staging_folder: Its staging folder; None if it has none.

    Returns:
        Those of each column of vectors.

    Raises:
        UsageError: The input is stdin, which can be read only once, or has no rows.
    """
    if "-" in job.inputs:
        raise UsageError(
            f"--precision {job.precision} needs ranges from the whole input, and stdin can be read only once",
            "write the input to a file first, or use --ranges-from OUTPUT",
        )
    sample = encode_sample(sample_texts(chunks), encoder, settings)
    if not len(sample):
        raise no_sample_error("no row of the input got a vector to compute ranges from")
    ranges = quantization.compute_ranges_of(sample)
    write_staged_ranges(staging_folder, ranges)
    return ranges


def sample_texts(chunks: Iterable[Chunk]) -> list[str]:
    """Up to SAMPLE_ROWS distinct texts, those with the smallest BLAKE2b hashes."""
    sample: list[tuple[int, str]] = []
    sampled_texts: set[str] = set()
    for chunk in chunks:
        for text in chunk.texts:
            # A heap of negated hashes has the largest hash on top, which is dropped first.
            key = -int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
            if text in sampled_texts or (len(sample) == SAMPLE_ROWS and key <= sample[0][0]):
                continue
            sampled_texts.add(text)
            if len(sample) < SAMPLE_ROWS:
                heapq.heappush(sample, (key, text))
            else:
                sampled_texts.discard(heapq.heapreplace(sample, (key, text))[1])
    return [text for _, text in sorted(sample)]


def encode_sample(texts: list[str], encoder: BaseEncoder, settings: EncodingSettings) -> RowVectors:
    """Encode texts as the job does, with long ones truncated: the vectors of those that get one."""
    if not texts:
        raise no_sample_error("the input has no rows to compute ranges from")
    ids: Any = pa.array(range(len(texts)), pa.int64())
    chunk = Chunk(InputSplit(0, "the sample"), 0, ids, texts, pa.table({"id": ids}).select([]), range(len(texts)))
    settings = replace(settings, reuse_lookup=None, overflow="truncate")
    (encoded,) = engine.encode_chunks([chunk], encoder, settings, MetricsCollector(), RunControl())
    return encoded.vectors


def no_sample_error(problem: str) -> UsageError:
    return UsageError(problem, "use --precision float32, or --ranges-from OUTPUT")
