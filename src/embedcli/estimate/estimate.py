"""The estimate of a job: one pass over its rows, and a moment of its encoder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embedcli import encoders, readers
from embedcli.core.constants import HOSTED_PREFIX
from embedcli.core.encoder import TextTokenizer
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import Chunk
from embedcli.encoders.hosted.encoder import check_window_limit
from embedcli.encoders.hosted.token_counting import (
    choose_token_counter,
    count_and_truncate,
    cut_into_windows,
    max_tokens_per_text,
)
from embedcli.estimate.output_size import MEASURED_ROWS, estimate_output_sizes
from embedcli.estimate.throughput import MeasuredThroughput, measure_throughput
from embedcli.estimate.token_counts import DistinctTextCounter, ReservoirSampler, TokenCounts
from embedcli.models.config import resolve_prompt
from embedcli.pipeline.metrics import MetricsCollector
from embedcli.pipeline.preparation import EncodingSettings

if TYPE_CHECKING:
    from embedcli.core.encoder import Tokens
    from embedcli.core.types import InputPlan

Notify = Callable[[str], None]

# Rows for the measured run; their texts are kept, so that long ones are kept in part.
MAX_TIMED_ROWS = 2048
MAX_TIMED_CHARACTERS = 100_000
# Widths in OpenAI's reference of its embedding models; of other hosted models only the server knows.
HOSTED_DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}


@dataclass(frozen=True)
class EstimateOptions:
    """How to estimate: from `sample` rows (None: all), for a price per million tokens, measured for `seconds`."""

    sample_rows: int | None = None
    price_per_mtok: float | None = None
    seconds: float = 2.0


class HostedTokenizer(TextTokenizer):
    """The part of a hosted encoder that needs neither server nor key: its token counts and windows."""

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
    """One reading of the inputs: what was counted, a random sample of texts, and a few rows as they came."""

    token_counts: TokenCounts
    rows: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    distinct_texts: DistinctTextCounter = field(default_factory=DistinctTextCounter)
    texts: dict[int, str] = field(default_factory=dict)
    first_chunk: Chunk | None = None
    read_seconds: float = 0.0
    _reservoir: ReservoirSampler = field(default_factory=lambda: ReservoirSampler(MAX_TIMED_ROWS, seed=1))

    def scan(self, chunks: Iterator[Chunk], encoder: TextTokenizer, settings: EncodingSettings) -> None:
        """Count every row of `chunks`."""
        meter = MetricsCollector()
        for chunk in meter.time_items("read", chunks):
            self.rows += chunk.rows_read
            self.rejects.update(reject.kind for reject in chunk.rejects)
            self.distinct_texts.add(chunk.texts)
            self.token_counts.add(chunk.texts, encoder, settings)
            for row, slot in self._reservoir.choose_slots(len(chunk.texts)):
                self.texts[slot] = chunk.texts[row][:MAX_TIMED_CHARACTERS]
            if self.first_chunk is None or len(self.first_chunk.texts) < min(len(chunk.texts), MEASURED_ROWS):
                self.first_chunk = chunk
        self.read_seconds = meter.seconds["read"]


def estimate_job(job: Job, wanted: EstimateOptions, notify: Notify) -> dict[str, Any]:
    """What `embedcli plan` says, as JSON values.

    A hosted model is asked nothing: no request, no key. Raises the errors that encode would raise before its first
    row, InputError for what cannot be read.
    """
    if wanted.sample_rows is not None and wanted.sample_rows < 2:
        raise UsageError(f"--sample {wanted.sample_rows} has no standard error", "give at least 2, or leave it out")
    plan = readers.plan_inputs(job)
    for note in plan.columns.notes:
        notify(note)
    files = encoders.resolve_model_files(job)
    job = replace(job, chunk_rows=job.chunk_rows or encoders.default_chunk_rows(job, files))
    hosted = job.model.startswith(HOSTED_PREFIX)
    begun = time.perf_counter()
    encoder: Any = HostedTokenizer(job, notify) if hosted else encoders.load_encoder(job, files, notify)
    load_seconds = time.perf_counter() - begun
    with closing(encoder):
        settings = build_settings(job, encoder)
        dim = vector_dim(job, encoder)
        seen = InputScan(TokenCounts(wanted.sample_rows))
        seen.scan(readers.read_chunks(job, plan, plan.splits), encoder, settings)
        speed = None
        if not hosted:
            speed = measure_throughput(
                list(seen.texts.values()), encoder, settings, job.chunk_rows or 1, wanted.seconds
            )
    return {
        **estimate_input(job, plan, seen, encoder),
        **estimate_tokens(job, seen, encoder, notify),
        "dim": dim,
        "output_bytes": estimate_output_bytes(job, plan, seen, dim),
        "time": estimate_hosted_time(job, seen) if speed is None else estimate_time(seen, speed, encoder, load_seconds),
        "cost": estimate_cost(seen, wanted.price_per_mtok),
    }


def build_settings(job: Job, encoder: Any) -> EncodingSettings:
    """The engine's settings for this job, as encode would run it."""
    prompt = encoder.prompt if isinstance(encoder, HostedTokenizer) else str(encoder.vector_space().get("prompt") or "")
    return EncodingSettings.from_job(job, prompt)


def vector_dim(job: Job, encoder: Any) -> int | None:
    """The width of the vectors; None if only the server of a hosted model knows it."""
    if isinstance(encoder, HostedTokenizer):
        return job.truncate_dim or HOSTED_DIMENSIONS.get(job.model.removeprefix(HOSTED_PREFIX))
    return encoders.stored_dim(job, encoder.dim)


def estimate_input(job: Job, plan: InputPlan, seen: InputScan, encoder: Any) -> dict[str, Any]:
    """Rows, exact even with a sample, except rows the encoder refuses: those are estimated with the tokens."""
    totals = seen.token_counts.totals()
    rejects = Counter(seen.rejects)
    rejects[encoder.empty_reason] += round(totals["empty"])
    rejects["too long"] += round(totals["too_long"])
    rejected = sum(rejects.values())
    return {
        "model": job.model,
        "inputs": {path: plan.formats[path] for path in dict.fromkeys(piece.path for piece in plan.splits)},
        "bytes": plan.total_bytes,
        "rows": seen.rows,
        "rejected": rejected,
        "rejects": {reason: count for reason, count in rejects.most_common() if count},
        "output_rows": round(totals["outputs"]),
        "distinct_texts": seen.distinct_texts.count(),
    }


def estimate_tokens(job: Job, seen: InputScan, encoder: Any, notify: Notify) -> dict[str, Any]:
    """Tokens: `total` of the texts, `read` of what the model reads, `sent` of texts not equal to one of their chunk.

    `standard_error` is that of each total, 0 where all rows were counted. `counting` says by what.
    """
    totals, errors = seen.token_counts.totals(), seen.token_counts.standard_errors()
    rows = seen.token_counts.rows
    if job.overflow == "error" and totals["too_long"]:
        notify(f"--overflow error will stop at the first of {round(totals['too_long'])} rows that are too long")
    return {
        "tokens": {
            "total": round(totals["tokens"]),
            "read": round(totals["read"]),
            "sent": round(totals["sent"]),
            "exact": seen.token_counts.counted_rows >= rows
            and (not isinstance(encoder, HostedTokenizer) or encoder.counter.is_exact),
            "counting": encoder.counter.name if isinstance(encoder, HostedTokenizer) else "the model's tokenizer",
            "sampled_rows": seen.token_counts.counted_rows,
            "standard_error": {name: round(errors[key], 1) for name, key in _KEYS.items()},
        },
        "truncated_rows": round(totals["cut"]),
        "truncated_share": ratio_or_zero(totals["cut"], rows),
        "lost_token_share": ratio_or_zero(totals["tokens"] - totals["read"], totals["tokens"]),
    }


_KEYS = {"total": "tokens", "read": "read", "sent": "sent", "truncated_rows": "cut"}


def estimate_output_bytes(
    job: Job, plan: InputPlan, seen: InputScan, dim: int | None
) -> dict[str, dict[str, int]] | None:
    """Bytes on disk by precision and format; None where the width of the vectors is not known."""
    if dim is None or seen.first_chunk is None:
        return None
    return estimate_output_sizes(
        plan.columns, dim, job.overflow == "split", seen.first_chunk, seen.token_counts.totals()["outputs"]
    )


def estimate_time(seen: InputScan, speed: MeasuredThroughput, encoder: Any, load_seconds: float) -> dict[str, Any]:
    """Seconds for the whole job on this machine, from a measured run: loading, then the slower of reading and encoding.

    `tokens_per_second` are tokens that are read, in the measured run.
    """
    encode_seconds = speed.seconds_for(seen.token_counts.totals()["sent"])
    space = encoder.vector_space()
    return {
        "seconds": None if encode_seconds is None else round(load_seconds + max(encode_seconds, seen.read_seconds), 3),
        "load_seconds": round(load_seconds, 3),
        "read_seconds": round(seen.read_seconds, 3),
        "encode_seconds": None if encode_seconds is None else round(encode_seconds, 3),
        "measured_seconds": round(speed.seconds, 3),
        "measured_rows": speed.rows,
        "tokens_per_second": round(speed.tokens / speed.seconds, 1) if speed.seconds else None,
        "device": ", ".join(str(space[key]) for key in ("engine", "device", "dtype") if space.get(key)),
    }


def estimate_hosted_time(job: Job, seen: InputScan) -> dict[str, Any]:
    """How long --tpm makes a hosted job last at least; nobody can tell more without asking the server."""
    least = seen.token_counts.totals()["sent"] / job.tpm * 60 if job.tpm else None
    return {"seconds": None, "at_least_seconds": None if least is None else round(least, 1)}


def estimate_cost(seen: InputScan, price: float | None) -> dict[str, Any] | None:
    """The price of the tokens that are sent, in the currency of the price per million, and its standard error."""
    if price is None:
        return None
    sent, error = seen.token_counts.totals()["sent"], seen.token_counts.standard_errors()["sent"]
    return {
        "amount": round(sent * price / 1e6, 8),
        "standard_error": round(error * price / 1e6, 8),
        "price_per_mtok": price,
    }


def ratio_or_zero(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0
