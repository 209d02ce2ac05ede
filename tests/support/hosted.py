"""Hosted encoders for tests: clocks, jobs for a server on this machine, and vectors through its batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fake_server as fake
from embedcli.core.batching import pack_batches
from embedcli.core.job import Job
from embedcli.encoders.hosted.encoder import HostedEncoder, load_hosted_encoder
from embedcli.encoders.hosted.retry import Clock, EncoderClosedError
from fake_server import FakeServer

DIM = 8
WORDS = ["zero", "one", "two words", "three little words", "日本語のテキスト", "émoji 😀", "line\nbreak", '"quoted"']

Load = Callable[..., HostedEncoder]


class FakeClock(Clock):
    """Time passes only by waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.time

    def unix_time(self) -> float:
        return 1_700_000_000 + self.time

    def wait(self, seconds: float) -> None:
        if self._closed.is_set():
            raise EncoderClosedError
        self.waits.append(seconds)
        self.time += max(0.0, seconds)


class SkippingClock(Clock):
    """Real time, but waits take none of it."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.skipped

    def wait(self, seconds: float) -> None:
        self.skipped += seconds


def job_for(server: FakeServer, **flags: Any) -> Job:
    return Job(("in.jsonl",), "out.parquet", **{"model": "openai:" + fake.MODEL, "base_url": server.base_url, **flags})


def embed(encoder: HostedEncoder, texts: list[str], budget: int | None = None) -> NDArray[np.float32]:
    """All vectors of some texts, through batches as the engine makes them, all of them in flight."""
    tokens = encoder.tokenize(texts)
    batches = list(pack_batches(tokens.lengths, lambda: budget or encoder.batch_tokens))
    vectors = np.empty((len(texts), encoder.dim), np.float32)
    in_flight = [(rows, encoder.forward(tokens, rows)) for rows in batches]
    for rows, output in in_flight:
        vectors[rows] = encoder.collect(output)
    return vectors


@contextmanager
def loading(server: FakeServer, clock: Clock, notify: Callable[[str], None] = print) -> Iterator[Load]:
    """A function that loads an encoder for the server; the faults of a test are met after the first requests."""
    encoders: list[HostedEncoder] = []

    def load(other_clock: Clock | None = None, **flags: Any) -> HostedEncoder:
        job = job_for(server, **flags)
        encoders.append(load_hosted_encoder(job, notify, clock=other_clock or clock, rng=random.Random(0)))
        server.seen.clear()
        return encoders[-1]

    yield load
    for encoder in encoders:
        encoder.close()
