"""The estimate of a job: one pass over its rows, and a moment of its encoder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embedcli import encoders, readers
from embedcli.core.encoder import TextTokenizer
from embedcli.core.errors import UsageError
from embedcli.core.job import Job
from embedcli.core.types import Chunk
from embedcli.encoders.hosted.encoder import refuse_windows
from embedcli.encoders.hosted.token_counting import HOSTED_PREFIX, counter, limit_of, prepare, windows
from embedcli.estimate.output_size import FEW, sizes
from embedcli.estimate.throughput import Speed, measure
from embedcli.estimate.token_counts import Distinct, Reservoir, Tally
from embedcli.models.config import resolve_prompt
from embedcli.pipeline.metrics import Meter
from embedcli.pipeline.preparation import Settings

if TYPE_CHECKING:
    from embedcli.core.encoder import Tokens
    from embedcli.core.types import Plan

Notify = Callable[[str], None]

# Rows for the measured run; their texts are kept, so that long ones are kept in part.
TIMED_ROWS = 2048
TIMED_CHARACTERS = 100_000
# Widths in OpenAI's reference of its embedding models; of other hosted models only the server knows.
HOSTED_DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}


@dataclass(frozen=True)
class Wanted:
    """How to estimate: from `sample` rows (None: all), for a price per million tokens, measured for `seconds`."""

    sample: int | None = None
    price_per_mtok: float | None = None
    seconds: float = 2.0


class Hosted(TextTokenizer):
    """The part of a hosted encoder that needs neither server nor key: its token counts and windows."""

    def __init__(self, job: Job, notify: Notify) -> None:
        self.counter = counter(job, notify)
        self.limit = limit_of(job, self.counter.exact)
        refuse_windows(job, self.limit)
        self.prompt = resolve_prompt(job, {}, None)[0]
        self.empty_reason = "the text is empty"

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return prepare(texts, self.prompt, self.counter, self.limit)

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]]:
        return windows(text, self.prompt, self.counter, self.limit, overlap)


@dataclass
class Pass:
    """One reading of the inputs: what was counted, a random sample of texts, and a few rows as they came."""

    tally: Tally
    rows: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    distinct: Distinct = field(default_factory=Distinct)
    texts: dict[int, str] = field(default_factory=dict)
    few: Chunk | None = None
    read_seconds: float = 0.0
    _reservoir: Reservoir = field(default_factory=lambda: Reservoir(TIMED_ROWS, seed=1))

    def run(self, chunks: Iterator[Chunk], encoder: TextTokenizer, settings: Settings) -> None:
        """Count every row of `chunks`."""
        meter = Meter()
        for chunk in meter.timed("read", chunks):
            self.rows += chunk.read
            self.rejects.update(reject.reason.partition(":")[0] for reject in chunk.rejects)
            self.distinct.add(chunk.texts)
            self.tally.add(chunk.texts, encoder, settings)
            for row, slot in self._reservoir.take(len(chunk.texts)):
                self.texts[slot] = chunk.texts[row][:TIMED_CHARACTERS]
            if self.few is None or len(self.few.texts) < min(len(chunk.texts), FEW):
                self.few = chunk
        self.read_seconds = meter.seconds["read"]


def estimate(job: Job, wanted: Wanted, notify: Notify) -> dict[str, Any]:
    """What `embedcli plan` says, as JSON values.

    A hosted model is asked nothing: no request, no key. Raises the errors that encode would raise before its first
    row, InputError for what cannot be read.
    """
    if wanted.sample is not None and wanted.sample < 2:
        raise UsageError(f"--sample {wanted.sample} has no standard error", "give at least 2, or leave it out")
    plan = readers.plan(job)
    for note in plan.columns.notes:
        notify(note)
    files = encoders.resolve(job)
    job = replace(job, chunk_rows=job.chunk_rows or encoders.chunk_rows(job, files))
    hosted = job.model.startswith(HOSTED_PREFIX)
    begun = time.perf_counter()
    encoder: Any = Hosted(job, notify) if hosted else encoders.load(job, files, notify)
    load_seconds = time.perf_counter() - begun
    with closing(encoder):
        settings = settings_of(job, encoder)
        dim = dimensions(job, encoder)
        seen = Pass(Tally(wanted.sample))
        seen.run(readers.read(job, plan, plan.pieces), encoder, settings)
        speed = None
        if not hosted:
            speed = measure(list(seen.texts.values()), encoder, settings, job.chunk_rows or 1, wanted.seconds)
    return {
        **input_facts(job, plan, seen, encoder),
        **token_facts(job, seen, encoder, notify),
        "dim": dim,
        "output_bytes": output_bytes(job, plan, seen, dim),
        "time": hosted_time(job, seen) if speed is None else time_facts(seen, speed, encoder, load_seconds),
        "cost": cost(seen, wanted.price_per_mtok),
    }


def settings_of(job: Job, encoder: Any) -> Settings:
    """The engine's settings for this job, as encode would run it."""
    prompt = encoder.prompt if isinstance(encoder, Hosted) else str(encoder.space().get("prompt") or "")
    return Settings.of(job, prompt)


def dimensions(job: Job, encoder: Any) -> int | None:
    """The width of the vectors; None if only the server of a hosted model knows it."""
    if isinstance(encoder, Hosted):
        return job.truncate_dim or HOSTED_DIMENSIONS.get(job.model.removeprefix(HOSTED_PREFIX))
    return encoders.output_dim(job, encoder.dim)


def input_facts(job: Job, plan: Plan, seen: Pass, encoder: Any) -> dict[str, Any]:
    """Rows, exact even with a sample, except rows the encoder refuses: those are estimated with the tokens."""
    totals = seen.tally.totals()
    rejects = Counter(seen.rejects)
    rejects[encoder.empty_reason] += round(totals["empty"])
    rejects["too long"] += round(totals["too_long"])
    rejected = sum(rejects.values())
    return {
        "model": job.model,
        "inputs": {path: plan.formats[path] for path in dict.fromkeys(piece.path for piece in plan.pieces)},
        "bytes": plan.total_bytes,
        "rows": seen.rows,
        "rejected": rejected,
        "rejects": {reason: count for reason, count in rejects.most_common() if count},
        "output_rows": round(totals["outputs"]),
        "distinct_texts": seen.distinct.count(),
    }


def token_facts(job: Job, seen: Pass, encoder: Any, notify: Notify) -> dict[str, Any]:
    """Tokens: `total` of the texts, `read` of what the model reads, `sent` of texts not equal to one of their chunk.

    `standard_error` is that of each total, 0 where all rows were counted. `counting` says by what.
    """
    totals, errors = seen.tally.totals(), seen.tally.errors()
    rows = seen.tally.rows
    if job.overflow == "error" and totals["too_long"]:
        notify(f"--overflow error will stop at the first of {round(totals['too_long'])} rows that are too long")
    return {
        "tokens": {
            "total": round(totals["tokens"]),
            "read": round(totals["read"]),
            "sent": round(totals["sent"]),
            "exact": seen.tally.sampled_rows >= rows and (not isinstance(encoder, Hosted) or encoder.counter.exact),
            "counting": encoder.counter.name if isinstance(encoder, Hosted) else "the model's tokenizer",
            "sampled_rows": seen.tally.sampled_rows,
            "standard_error": {name: round(errors[key], 1) for name, key in _KEYS.items()},
        },
        "truncated_rows": round(totals["cut"]),
        "truncated_share": share(totals["cut"], rows),
        "lost_token_share": share(totals["tokens"] - totals["read"], totals["tokens"]),
    }


_KEYS = {"total": "tokens", "read": "read", "sent": "sent", "truncated_rows": "cut"}


def output_bytes(job: Job, plan: Plan, seen: Pass, dim: int | None) -> dict[str, dict[str, int]] | None:
    """Bytes on disk by precision and format; None where the width of the vectors is not known."""
    if dim is None or seen.few is None:
        return None
    return sizes(plan.columns, dim, job.overflow == "split", seen.few, seen.tally.totals()["outputs"])


def time_facts(seen: Pass, speed: Speed, encoder: Any, load_seconds: float) -> dict[str, Any]:
    """Seconds for the whole job on this machine, from a measured run: loading, then the slower of reading and encoding.

    `tokens_per_second` are tokens that are read, in the measured run.
    """
    encode_seconds = speed.time_for(seen.tally.totals()["sent"])
    space = encoder.space()
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


def hosted_time(job: Job, seen: Pass) -> dict[str, Any]:
    """How long --tpm makes a hosted job last at least; nobody can tell more without asking the server."""
    least = seen.tally.totals()["sent"] / job.tpm * 60 if job.tpm else None
    return {"seconds": None, "at_least_seconds": None if least is None else round(least, 1)}


def cost(seen: Pass, price: float | None) -> dict[str, Any] | None:
    """The price of the tokens that are sent, in the currency of the price per million, and its standard error."""
    if price is None:
        return None
    sent, error = seen.tally.totals()["sent"], seen.tally.errors()["sent"]
    return {
        "amount": round(sent * price / 1e6, 8),
        "standard_error": round(error * price / 1e6, 8),
        "price_per_mtok": price,
    }


def share(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0
