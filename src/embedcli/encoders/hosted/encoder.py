"""Encode with an OpenAI-compatible server: parallel requests, retries, and isolation of texts it rejects."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from embedcli.core.constants import HOSTED_PREFIX
from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.errors import ModelError, UsageError
from embedcli.core.job import Job
from embedcli.core.vectors import normalize_rows
from embedcli.encoders.hosted.canaries import CANARIES_KEY, digest_request
from embedcli.encoders.hosted.client import (
    EmbeddingsClient,
    RequestRefusedError,
    ServerAddress,
    parse_server_address,
    read_api_key,
)
from embedcli.encoders.hosted.concurrency import MAX_CONCURRENCY, AdaptiveConcurrency, run_in_thread
from embedcli.encoders.hosted.request_limits import MAX_REQUEST_TOKENS, RequestSizeLimits
from embedcli.encoders.hosted.response import EmbeddingResponse, MalformedResponseError, decode_response
from embedcli.encoders.hosted.retry import Clock, EncoderClosedError, RateLimiter, Retrier, RetryableError, RetryLimits
from embedcli.encoders.hosted.silent_cuts import SilentCutDetector
from embedcli.encoders.hosted.start_checks import StartChecks, check_dim, run_start_checks
from embedcli.encoders.hosted.token_counting import (
    HostedTexts,
    choose_token_counter,
    count_and_truncate,
    cut_into_windows,
    max_tokens_per_text,
    record_cuts,
)
from embedcli.encoders.hosted.vectors import HostedVectors, merge_vectors
from embedcli.models.config import resolve_prompt
from embedcli.models.registry import find_registered_model

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, Int64Array

Notify = Callable[[str], None]

# Small enough that the rows of a chunk fill all connections, large enough to make the cost per request negligible.
HOSTED_BATCH_TOKENS = 32_000
PROBE_TEXT = "a"
# A mistyped address should fail soon; a server that answers "busy" is waited for as usual.
UNREACHABLE_AT_START_SECONDS = 60.0
# After this many rejected texts in a row, the probe is sent again: is the problem the texts or the server?
REFUSALS_BEFORE_CHECK = 8
STOPPED_ERROR = ("stopped while requests were waiting", "run the same command to go on")


@dataclass(frozen=True)
class RequestFormat:
    """Request fields that a server accepts: `encoding_format`, and the value of `dimensions`."""

    uses_base64: bool = True
    dimensions: int | None = None


def load_hosted_encoder(
    job: Job,
    notify: Notify,
    *,
    stop: Event | None = None,
    clock: Clock | None = None,
    rng: random.Random | None = None,
) -> HostedEncoder:
    """Load the encoder of `--model openai:NAME` and send one request to check address, key and model.

    Args:
        job: The job.
        notify: Gets messages for the user, from several threads.
        stop: Once it is set, waits end and nothing is retried: ModelError is raised.

    Raises:
        UsageError: Address, key or an option is invalid.
        ModelError: The server cannot serve the model.
    """
    where = parse_server_address(job)
    _check_options(job, where)
    key = read_api_key(where)
    clock = clock or Clock(stop)
    for note in _list_notes(job, where, key):
        notify(note)
    lanes = job.max_concurrency or MAX_CONCURRENCY
    name = job.model.removeprefix(HOSTED_PREFIX)
    endpoint = EmbeddingsClient(where, key, model=name, timeout=job.request_timeout, max_connections=lanes, clock=clock)
    try:
        return HostedEncoder(job, endpoint, clock, notify, rng or random.Random())
    except EncoderClosedError:
        endpoint.close()
        raise ModelError(*STOPPED_ERROR) from None
    except BaseException:
        endpoint.close()
        raise


def hosted_model_identity(job: Job) -> dict[str, Any]:
    """What decides the vectors, without a request. Contains the server's host, and no secret."""
    return {
        "model": job.model,
        "endpoint": parse_server_address(job).host,
        "revision": None,
        "fingerprint": None,
        "pooling": None,
        "prompt": resolve_prompt(job, {}, None)[0],
        "max_seq_length": job.max_seq_length,
        "normalize": job.normalize,
        "truncate_dim": job.truncate_dim,
        "dtype": "float32",
    }


class HostedEncoder(BaseEncoder):
    """A hosted model. `forward` starts requests, `collect` waits for them."""

    pad_to_multiple_of = 0
    empty_reason = "the text is empty"

    def __init__(self, job: Job, endpoint: EmbeddingsClient, clock: Clock, notify: Notify, rng: random.Random) -> None:
        self._concurrency = AdaptiveConcurrency(job.max_concurrency, clock.monotonic)
        self.max_in_flight = self._concurrency.max_in_flight
        self.batch_tokens = min(HOSTED_BATCH_TOKENS, job.tpm or HOSTED_BATCH_TOKENS)
        self._job = job
        self._name = job.model.removeprefix(HOSTED_PREFIX)
        self._prompt = resolve_prompt(job, {}, None)[0]
        self._endpoint = endpoint
        self._clock = clock
        self._counter = choose_token_counter(job, notify)
        self._cuts = SilentCutDetector(self._counter, endpoint.address.host, notify)
        self._limit = max_tokens_per_text(job, self._counter.is_exact)
        check_window_limit(job, self._limit)
        self._limits = RequestSizeLimits(tokens=min(MAX_REQUEST_TOKENS, job.tpm or MAX_REQUEST_TOKENS))
        self._pace = RateLimiter(clock, job.rpm, job.tpm)
        self._patience = RetryLimits(job.patience, job.retry_cap)
        self._retrier = Retrier(clock, self._pace, notify, rng)
        self._lock = Lock()
        self._requests = self._tokens = self._refusals = 0
        self._reported_all = True
        self.dim = 0
        self._style, first = self._probe()
        self._reported_model = first.model
        checks = self._run_start_checks()
        self._style = replace(self._style, uses_base64=checks.uses_base64)
        self._canaries = checks.canaries
        self.dim = checks.dim or first.vectors.shape[1]
        dim_note = check_dim(self.dim, job.truncate_dim, self._style.dimensions, self._name)
        for note in filter(None, (checks.note, dim_note)):
            notify(note)

    def vector_space(self) -> dict[str, Any]:
        """The identity, and what the server reports about itself."""
        return {
            **hosted_model_identity(self._job),
            "max_seq_length": self._limit,
            "engine": "remote",
            "base_url": self._endpoint.address.base_url,
            "dim": self.dim,
            "dimensions": self._style.dimensions,
            "reported_model": self._reported_model,
            "token_counting": self._counter.name,
            **({CANARIES_KEY: self._canaries.to_json()} if self._canaries else {}),
        }

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Count tokens; `vector_space()["token_counting"]` says how. `ids` are zeros: the server tokenizes itself."""
        return count_and_truncate(texts, self._prompt, self._counter, self._limit)

    def forward(self, tokens: Tokens, rows: Int64Array) -> tuple[Tokens, Int64Array, list[Future[HostedVectors]]]:
        """Start the requests for these rows."""
        asked: HostedTexts = tokens.payload
        self.max_in_flight = self._concurrency.max_in_flight
        counts = tokens.lengths[rows]
        cuts = self._limits.split_into_requests(counts.tolist())
        return tokens, rows, [self._start(asked, rows[start:stop], counts[start:stop]) for start, stop in cuts]

    def collect(self, output: tuple[Tokens, Int64Array, list[Future[HostedVectors]]]) -> Float32Array:
        """Wait for float32 [len(rows), dim], NaN for rejected texts. Raises ModelError if all retries fail."""
        tokens, rows, futures = output
        try:
            blocks = [future.result() for future in futures]
        except EncoderClosedError:
            raise ModelError(*STOPPED_ERROR) from None
        at = 0
        for block in blocks:
            tokens.payload.refusal_reasons.update(
                {int(rows[at + i]): reason for i, reason in block.refusal_reasons.items()}
            )
            record_cuts(tokens, {int(rows[at + i]): length for i, length in block.cut_lengths.items()})
            at += len(block.vectors)
        vectors = np.concatenate([block.vectors for block in blocks])
        return normalize_rows(vectors) if self._job.normalize else vectors

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]]:
        """Split a text into windows (start, stop) in characters, each within the limit with the prompt."""
        return cut_into_windows(text, self._prompt, self._counter, self._limit, overlap)

    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> Float32Array:
        """Request the same rows again, one by one; rejected rows stay NaN without another request."""
        made = np.full((len(rows), self.dim), np.nan, np.float32)
        for i, row in enumerate(rows.tolist()):
            if row not in tokens.payload.refusal_reasons:
                made[i] = self.collect(self.forward(tokens, np.array([row])))[0]
        return made

    def reject_reason(self, tokens: Tokens, row: int) -> str | None:
        """Why the server rejected a row; None if it did not."""
        asked: HostedTexts = tokens.payload
        return asked.refusal_reasons.get(row)

    def usage(self) -> dict[str, Any]:
        """Counts since loading, including the first request: requests, reported tokens, retries and waits.

        `waited_seconds` sums the waits before retries over all connections; `tokens_reported` is False if a response
        had no token count.
        """
        with self._lock:
            return {
                "requests": self._requests,
                "tokens": self._tokens,
                "tokens_reported": self._reported_all,
                "retries": self._retrier.retries,
                "waited_seconds": round(self._retrier.waited_seconds, 3),
            }

    def close(self) -> None:
        """Cancel waiting requests and retries, and close the connections. Thread-safe."""
        self._clock.close()
        self._endpoint.close()

    def _start(self, asked: HostedTexts, rows: Int64Array, counts: Int64Array) -> Future[HostedVectors]:
        texts = [asked.texts[row] for row in rows.tolist()]
        return run_in_thread(self._concurrency, lambda: self._cuts.request(texts, counts, self._request_texts))

    def _request_texts(self, texts: list[str], counts: Int64Array) -> HostedVectors:
        """Request vectors of some texts; halve a rejected request until the rejected texts stand alone."""
        try:
            answer = self._request_with_retries(texts, int(counts.sum()), self._style, self._patience)
            return HostedVectors(answer.vectors, {}, answer.tokens)
        except RequestRefusedError as refusal:
            if len(texts) == 1:
                self._check_server_after_refusals(refusal)
                return HostedVectors(
                    np.full((1, self.dim), np.nan, np.float32), {0: f"the server refused the text: {refusal}"}
                )
        half = len(texts) // 2
        left, right = self._request_texts(texts[:half], counts[:half]), self._request_texts(texts[half:], counts[half:])
        if not left.refusal_reasons and not right.refusal_reasons:
            self._limits.record_accepted(len(texts) - half, int(max(counts[:half].sum(), counts[half:].sum())))
        return merge_vectors((left, right), (range(half), range(half, len(texts))))

    def _check_server_after_refusals(self, refusal: RequestRefusedError) -> None:
        with self._lock:
            self._refusals += 1
            if self._refusals < REFUSALS_BEFORE_CHECK:
                return
            self._refusals = 0
        try:
            self._request_with_retries([PROBE_TEXT], 1, self._style, self._patience)
        except RequestRefusedError:
            raise ModelError(
                f"{self._endpoint.address.host} now refuses every text: {refusal}",
                "what is finished is kept; see what changed at the server, then run the same command to go on",
            ) from None

    def _request_with_retries(
        self, texts: list[str], tokens: int, style: RequestFormat, patience: RetryLimits
    ) -> EmbeddingResponse:
        """Send one request with retries. Raises RequestRefusedError or ModelError."""
        body = self._build_body(texts, style)
        answer = self._retrier.run(lambda: self._request_once(body, len(texts)), tokens, patience)
        self._concurrency.record_success(tokens)
        if answer.tokens is not None:
            self._pace.charge_difference(answer.tokens - tokens)
        with self._lock:
            self._refusals = 0
        return answer

    def _request_once(self, body: bytes, count: int) -> EmbeddingResponse:
        host = self._endpoint.address.host
        with self._lock:
            self._requests += 1
        try:
            answer = decode_response(self._endpoint.post(body), count)
        except MalformedResponseError as error:
            raise RetryableError(f"the answer of {host} {error}", "wrong") from None
        except RetryableError as error:
            if error.failure_kind == "busy":
                self._concurrency.record_busy()
            raise
        with self._lock:
            self._tokens += answer.tokens or 0
            self._reported_all &= answer.tokens is not None
        if self.dim and answer.vectors.shape[1] != self.dim:
            raise RetryableError(
                f"{host} sent vectors of {answer.vectors.shape[1]} dimensions instead of {self.dim}", "wrong"
            )
        if self.dim and None not in (answer.model, self._reported_model) and answer.model != self._reported_model:
            raise RetryableError(
                f"{host} answers with model {answer.model!r}, and began with {self._reported_model!r}", "wrong"
            )
        return answer

    def _build_fields(self, texts: list[str], style: RequestFormat) -> dict[str, Any]:
        fields: dict[str, Any] = {"model": self._name, "input": texts}
        if style.uses_base64:
            fields["encoding_format"] = "base64"
        if style.dimensions:
            fields["dimensions"] = style.dimensions
        return fields

    def _build_body(self, texts: list[str], style: RequestFormat) -> bytes:
        fields = self._build_fields(texts, style)
        try:
            return orjson.dumps(fields)
        except orjson.JSONEncodeError:
            return json.dumps(fields).encode()

    def _run_start_checks(self) -> StartChecks:
        def send(texts: list[str], in_base64: bool) -> EmbeddingResponse:
            style = replace(self._style, uses_base64=in_base64)
            counted = int(self._counter.count(texts).sum())
            answer = self._request_with_retries(texts, counted, style, self._patience)
            self._cuts.learn_offset(len(texts), counted, answer.tokens)
            return answer

        request = digest_request(self._build_fields([], self._style))
        return run_start_checks(send, self._style.uses_base64, self._endpoint.address.host, request)

    def _probe(self) -> tuple[RequestFormat, EmbeddingResponse]:
        """Find the first request format that the server accepts, and return it with the response to a short text."""
        patience = RetryLimits(
            self._job.patience, self._job.retry_cap, unreachable_seconds=UNREACHABLE_AT_START_SECONDS
        )
        wanted = self._job.truncate_dim
        refusals = []
        for style in dict.fromkeys(RequestFormat(base64, dims) for dims in (wanted, None) for base64 in (True, False)):
            try:
                answer = self._request_with_retries([PROBE_TEXT], 1, style, patience)
            except RequestRefusedError as refusal:
                refusals.append(str(refusal))
                continue
            return style, answer
        raise ModelError(
            f"{self._endpoint.address.host} refuses even a one-letter text for model {self._name}: {refusals[0]}",
            "check --model, --truncate-dim and --base-url",
        )


def _check_options(job: Job, where: ServerAddress) -> None:
    resolve_prompt(job, {}, None)
    if job.offline and not where.is_loopback:
        raise UsageError(f"--offline forbids asking {where.host}", "leave it out, or use a local model or server")
    flags = {
        "rpm": job.rpm,
        "tpm": job.tpm,
        "max-concurrency": job.max_concurrency,
        "request-timeout": job.request_timeout,
        "patience": job.patience,
    }
    for flag, value in flags.items():
        if value is not None and value <= 0:
            raise UsageError(f"--{flag} {value} is not above 0", "give a positive number, or leave it out")


def check_window_limit(job: Job, limit: int | None) -> None:
    """Raise UsageError for --overflow split and pool if the limit of a window is unknown."""
    if job.overflow in ("split", "pool") and limit is None:
        raise UsageError(
            f"--overflow {job.overflow} requires the model's token limit, which servers do not report",
            "give --max-seq-length, with some reserve where token counts are estimates",
        )


def _list_notes(job: Job, where: ServerAddress, key: str) -> Iterator[str]:
    name = job.model.removeprefix(HOSTED_PREFIX)
    family = find_registered_model(name)
    if family and family.prompts and job.prompt is None and job.as_ != "none":
        wanted = " or ".join(f"--prompt {text!r} ({role})" for role, text in family.prompts.items())
        yield f"{name} was trained with prompts, which servers rarely add; pass {wanted}"
    elif job.as_ in ("query", "document") and job.prompt is None:
        yield f"--as {job.as_} changes nothing: a hosted model's prompts are not known here; give --prompt"
    if job.normalize is False:
        yield "--no-normalize changes nothing: vectors are stored as the server sends them"
    if key and where.url.startswith("http://") and not where.is_loopback:
        yield f"the key travels unencrypted to {where.host}: use https:// where you can"
