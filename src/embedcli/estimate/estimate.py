"""Estimate a job: one pass over its rows and a short measurement of its encoder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embedcli import encoders, readers
from embedcli.core.constants import HOSTED_PREFIX
from embedcli.core.encoder import BaseEncoder, TextTokenizer
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import Chunk
from embedcli.encoders.hosted.job_checks import check_window_limit
from embedcli.encoders.hosted.token_counting import (
    choose_token_counter,
    count_and_truncate,
    cut_into_windows,
    max_tokens_per_text,
)
from embedcli.estimate.output_size import MEASURED_ROWS, estimate_output_sizes, fake_dense_vectors
from embedcli.estimate.throughput import MeasuredThroughput, measure_throughput
from embedcli.estimate.token_counts import DistinctTextCounter, ReservoirSampler, TokenCounts
from embedcli.models.config import resolve_prompt
from embedcli.pipeline import calibration
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings

if TYPE_CHECKING:
    from embedcli.core.encoder import Tokens
    from embedcli.core.row_vectors import RowVectors
    from embedcli.core.types import InputPlan, VectorKind

Notify = Callable[[str], None]

# Rows for the measurement. Their texts are kept in memory, hence cut to this many characters.
MAX_TIMED_ROWS = 2048
MAX_TIMED_CHARACTERS = 100_000
# Rows encoded to learn the size of their vectors where the speed is not measured: a second on a slow machine.
MIN_ENCODED_ROWS = 32
# Dimensions by OpenAI's documentation; those of other hosted models are known only to the server.
HOSTED_DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}


@dataclass(frozen=True)
class EstimateOptions:
    """Options of an estimate.

    Attributes:
        sample_rows: Number of rows whose tokens are counted; None for all.
        price_per_mtok: Price per million tokens.
        seconds: Duration of the measurement.
    """

    sample_rows: int | None = None
    price_per_mtok: float | None = None
    seconds: float = 2.0


class HostedTokenizer(TextTokenizer):
    """Token counts and windows of a hosted model, without server or key."""

    def __init__(self, job: Job, notify: Notify) -> None:
        self.counter = choose_token_counter(job, notify)
        self.limit = max_tokens_per_text(job, self.counter.is_exact)
        check_window_limit(job, self.limit)
        self.prompt = resolve_prompt(job, {}, None)[0]
        self.empty_reason = "the text is empty"

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return count_and_truncate(texts, self.prompt, self.counter, self.limit)

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]]:
        return cut_into_windows(text, self.prompt, self.counter, self.limit, overlap)


@dataclass
class InputScan:
    """Results of one pass over the inputs: counts, a random sample of texts, and one chunk of rows."""

    token_counts: TokenCounts
    rows: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    distinct_texts: DistinctTextCounter = field(default_factory=DistinctTextCounter)
    texts: dict[int, str] = field(default_factory=dict)
    first_chunk: Chunk | None = None
    read_seconds: float = 0.0
    _reservoir: ReservoirSampler = field(default_factory=lambda: ReservoirSampler(MAX_TIMED_ROWS, seed=1))

    def read(self, chunks: Iterator[Chunk], encoder: TextTokenizer, settings: EncodingSettings) -> None:
        """Count every row of `chunks`."""
        metrics = MetricsCollector()
        for chunk in metrics.time_items("read", chunks):
            self.rows += chunk.rows_read
            self.rejects.update(reject.kind for reject in chunk.rejects)
            self.distinct_texts.add(chunk.texts)
            self.token_counts.add(chunk.texts, encoder, settings)
            for row, slot in self._reservoir.choose_slots(len(chunk.texts)):
                self.texts[slot] = chunk.texts[row][:MAX_TIMED_CHARACTERS]
            if self.first_chunk is None or len(self.first_chunk.texts) < min(len(chunk.texts), MEASURED_ROWS):
                self.first_chunk = chunk
        self.read_seconds = metrics.seconds["read"]


def estimate_job(job: Job, options: EstimateOptions, notify: Notify) -> dict[str, Any]:
    """Estimate a job for `embedcli plan`. Hosted models need no key, and no request is sent.

    Args:
        job: The job.
        options: Sample size, price and duration of the measurement.
        notify: Receives notes about columns and model.

    Returns:
        JSON values: rows, tokens, sizes in bytes, time in seconds, cost.

    Raises:
        UsageError: The options are wrong.
        InputError: An input cannot be read.
        ModelError: The model cannot be loaded.
    """
    if options.sample_rows is not None and options.sample_rows < 2:
        raise UsageError(
            f"--sample {options.sample_rows} is too small for a standard error", "give at least 2, or leave it out"
        )
    plan = readers.plan_inputs(job)
    for note in plan.columns.notes:
        notify(note)
    files = encoders.resolve_model_files(job)
    job = replace(job, chunk_rows=job.chunk_rows or encoders.default_chunk_rows(job, files))
    hosted = job.model.startswith(HOSTED_PREFIX)
    start = time.perf_counter()
    encoder: Any = HostedTokenizer(job, notify) if hosted else encoders.load_encoder(job, files, notify)
    load_seconds = time.perf_counter() - start
    with closing(encoder):
        settings = build_settings(job, encoder)
        dim = vector_dim(job, encoder)
        scan = InputScan(TokenCounts(options.sample_rows))
        scan.read(readers.read_chunks(job, plan, plan.splits), encoder, settings)
        throughput = None
        if not hosted:
            throughput = measure_throughput(
                list(scan.texts.values()), encoder, settings, job.chunk_rows or 1, options.seconds
            )
        sizes = estimate_output_bytes(job, plan, scan, dim, encoder, throughput)
    return {
        **estimate_input(job, plan, scan, encoder),
        **estimate_tokens(job, scan, encoder, notify),
        "dim": dim,
        "output_bytes": sizes,
        "time": estimate_hosted_time(job, scan)
        if throughput is None
        else estimate_time(scan, throughput, encoder, load_seconds),
        "cost": estimate_cost(scan, options.price_per_mtok),
    }


def build_settings(job: Job, encoder: Any) -> EncodingSettings:
    """Return the encoding settings that `embedcli encode` would use for this job."""
    prompt = encoder.prompt if isinstance(encoder, HostedTokenizer) else str(encoder.vector_space().get("prompt") or "")
    return EncodingSettings.from_job(job, prompt)


def vector_dim(job: Job, encoder: Any) -> int | None:
    """Return the number of dimensions; None if only the server of a hosted model knows it."""
    if isinstance(encoder, HostedTokenizer):
        return job.truncate_dim or HOSTED_DIMENSIONS.get(job.model.removeprefix(HOSTED_PREFIX))
    return encoders.stored_dim(job, encoder.dim)


def estimate_input(job: Job, plan: InputPlan, scan: InputScan, encoder: Any) -> dict[str, Any]:
    """Count input and output rows: exact even with a sample, apart from rows that the encoder rejects."""
    totals = scan.token_counts.totals()
    rejects = Counter(scan.rejects)
    rejects[encoder.empty_reason] += round(totals["empty"])
    rejects["too long"] += round(totals["too_long"])
    rejected = sum(rejects.values())
    return {
        "model": job.model,
        "inputs": {path: plan.formats[path] for path in dict.fromkeys(split.path for split in plan.splits)},
        "bytes": plan.total_bytes,
        "rows": scan.rows,
        "rejected": rejected,
        "rejects": {reason: count for reason, count in rejects.most_common() if count},
        "output_rows": round(totals["outputs"]),
        "distinct_texts": scan.distinct_texts.count(),
    }


def estimate_tokens(job: Job, scan: InputScan, encoder: Any, notify: Notify) -> dict[str, Any]:
    """Estimate tokens and truncation.

    Returns:
        `tokens` with `total` (of the texts), `read` (after truncation), `sent` (without duplicates within a chunk),
        `standard_error` of each (0 if all rows were counted) and `counting`, the tokenizer used.
    """
    totals, errors = scan.token_counts.totals(), scan.token_counts.standard_errors()
    rows = scan.token_counts.rows
    if job.overflow == "error" and totals["too_long"]:
        notify(f"--overflow error will stop at the first of {round(totals['too_long'])} rows that are too long")
    return {
        "tokens": {
            "total": round(totals["tokens"]),
            "read": round(totals["read"]),
            "sent": round(totals["sent"]),
            "exact": scan.token_counts.counted_rows >= rows
            and (not isinstance(encoder, HostedTokenizer) or encoder.counter.is_exact),
            "counting": encoder.counter.name if isinstance(encoder, HostedTokenizer) else "the model's tokenizer",
            "sampled_rows": scan.token_counts.counted_rows,
            "standard_error": {name: round(errors[key], 1) for name, key in STANDARD_ERROR_KEYS.items()},
        },
        "truncated_rows": round(totals["cut"]),
        "truncated_share": ratio_or_zero(totals["cut"], rows),
        "lost_token_share": ratio_or_zero(totals["tokens"] - totals["read"], totals["tokens"]),
    }


STANDARD_ERROR_KEYS = {"total": "tokens", "read": "read", "sent": "sent", "truncated_rows": "cut"}


def estimate_output_bytes(
    job: Job,
    plan: InputPlan,
    scan: InputScan,
    dim: int | None,
    encoder: TextTokenizer,
    throughput: MeasuredThroughput | None,
) -> dict[str, dict[str, int]] | None:
    """Estimate bytes on disk by precision and format; None if the number of dimensions is unknown, or without rows."""
    if dim is None or scan.first_chunk is None or not scan.first_chunk.texts:
        return None
    dims: dict[VectorKind, int] = {"dense": dim}
    vectors: RowVectors = fake_dense_vectors(dim)
    if isinstance(encoder, BaseEncoder) and (encoder.kind != "dense" or encoder.heads):
        # Rows have different numbers of terms or vectors, which only encoding tells.
        dims = encoders.stored_dims(job, encoder)
        measured = None if throughput is None else throughput.vectors
        if measured is None:
            settings = build_settings(job, encoder)
            measured = calibration.encode_sample(list(scan.texts.values())[:MIN_ENCODED_ROWS], encoder, settings)
        vectors = measured
    if not len(vectors):
        return None
    rows = scan.token_counts.totals()["outputs"]
    return estimate_output_sizes(plan.columns, vectors, dims, job.overflow == "split", scan.first_chunk, rows)


def estimate_time(scan: InputScan, throughput: MeasuredThroughput, encoder: Any, load_seconds: float) -> dict[str, Any]:
    """Estimate the seconds of the whole job on this machine: loading, then the slower of reading and encoding.

    `tokens_per_second` is the measured rate of tokens after truncation, without padding.
    """
    encode_seconds = throughput.seconds_for(scan.token_counts.totals()["sent"])
    vector_space = encoder.vector_space()
    return {
        "seconds": None if encode_seconds is None else round(load_seconds + max(encode_seconds, scan.read_seconds), 3),
        "load_seconds": round(load_seconds, 3),
        "read_seconds": round(scan.read_seconds, 3),
        "encode_seconds": None if encode_seconds is None else round(encode_seconds, 3),
        "measured_seconds": round(throughput.seconds, 3),
        "measured_rows": throughput.rows,
        "tokens_per_second": round(throughput.tokens / throughput.seconds, 1) if throughput.seconds else None,
        "device": ", ".join(str(vector_space[key]) for key in ("engine", "device", "dtype") if vector_space.get(key)),
    }


def estimate_hosted_time(job: Job, scan: InputScan) -> dict[str, Any]:
    """Compute the shortest time that --tpm allows; the speed of a hosted model is unknown."""
    min_seconds = scan.token_counts.totals()["sent"] / job.tpm * 60 if job.tpm else None
    return {"seconds": None, "at_least_seconds": None if min_seconds is None else round(min_seconds, 1)}


def estimate_cost(scan: InputScan, price: float | None) -> dict[str, Any] | None:
    """Compute the cost of the tokens sent and its standard error, in the currency of the price."""
    if price is None:
        return None
    sent, error = scan.token_counts.totals()["sent"], scan.token_counts.standard_errors()["sent"]
    return {
        "amount": round(sent * price / 1e6, 8),
        "standard_error": round(error * price / 1e6, 8),
        "price_per_mtok": price,
    }


def ratio_or_zero(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0
