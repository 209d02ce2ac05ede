"""Encode with an OpenAI-compatible server: parallel requests, retries, and isolation of texts it rejects."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.constants import HOSTED_PREFIX
from embedcli.core.encoder import BaseEncoder, Tokens
from embedcli.core.errors import EncodingStoppedError, ModelError
from embedcli.core.job import Job
from embedcli.core.row_vectors import as_dense
from embedcli.core.vectors import normalize_rows
from embedcli.encoders.hosted.canaries import CANARIES_KEY, digest_request
from embedcli.encoders.hosted.client import (
    EmbeddingsClient,
    RequestRefusedError,
    parse_server_address,
    read_api_key,
)
from embedcli.encoders.hosted.concurrency import MAX_CONCURRENCY, AdaptiveConcurrency, RequestThreads
from embedcli.encoders.hosted.failure_diagnosis import RequestDiagnosis, ServerHealth
from embedcli.encoders.hosted.identity import hosted_model_identity
from embedcli.encoders.hosted.job_checks import check_options, check_window_limit, list_notes
from embedcli.encoders.hosted.known_hosts import MAX_REQUEST_INPUTS, MAX_REQUEST_TOKENS
from embedcli.encoders.hosted.request_fields import ENCODING_FIELD, build_body, resolve_request_fields
from embedcli.encoders.hosted.request_limits import RequestSizeLimits
from embedcli.encoders.hosted.response import (
    EmbeddingResponse,
    MalformedResponseError,
    ReportedError,
    UnreadableFloatsError,
    decode_response,
)
from embedcli.encoders.hosted.retry import (
    BlamesTexts,
    Clock,
    EncoderClosedError,
    RateLimiter,
    Retrier,
    RetryableError,
    RetryLimits,
)
from embedcli.encoders.hosted.silent_cuts import SilentCutDetector
from embedcli.encoders.hosted.start_checks import (
    RequestFormat,
    StartChecks,
    check_dim,
    find_request_format,
    run_start_checks,
)
from embedcli.encoders.hosted.text_requests import TextRequests
from embedcli.encoders.hosted.token_counting import (
    HostedTexts,
    choose_token_counter,
    count_and_truncate,
    cut_into_windows,
    max_tokens_per_text,
    record_cuts,
)
from embedcli.encoders.hosted.vectors import HostedVectors
from embedcli.models.config import resolve_prompt

if TYPE_CHECKING:
    from embedcli.core.row_vectors import EncodedVectors
    from embedcli.core.types import Float32Array, Int64Array

Notify = Callable[[str], None]

# Small enough that the rows of a chunk fill all connections, large enough to make the cost per request negligible.
HOSTED_BATCH_TOKENS = 32_000
PROBE_TEXT = "a"
# After this many rejected texts in a row, the probe is sent again: is the problem the texts or the server?
REFUSALS_BEFORE_CHECK = 8
STOPPED_ERROR = ("stopped while requests were waiting", "run the same command to go on")


def load_hosted_encoder(
    job: Job,
    notify: Notify,
    *,
    stop: Event | None = None,
    deadline: float | None = None,
    clock: Clock | None = None,
    rng: random.Random | None = None,
) -> HostedEncoder:
    """Load the encoder of `--model openai:NAME` and send one request to check address, key and model.

    Args:
        job: The job.
        notify: Gets messages for the user, from several threads.
        stop: Once it is set, waits end and nothing is retried: EncodingStoppedError is raised.
        deadline: The same happens at this time of `time.monotonic`, where a retry is waited for; None for no limit.

    Raises:
        UsageError: Address, key or an option is invalid.
        ModelError: The server cannot serve the model.
    """
    where = parse_server_address(job)
    check_options(job, where)
    key = read_api_key(where)
    clock = clock or Clock(stop, deadline)
    for note in list_notes(job, where, key):
        notify(note)
    lanes = job.max_concurrency or MAX_CONCURRENCY
    name = job.model.removeprefix(HOSTED_PREFIX)
    endpoint = EmbeddingsClient(where, key, model=name, timeout=job.request_timeout, max_connections=lanes, clock=clock)
    try:
        return HostedEncoder(job, endpoint, clock, notify, rng or random.Random())
    except EncoderClosedError:
        endpoint.close()
        raise EncodingStoppedError(*STOPPED_ERROR) from None
    except BaseException:
        endpoint.close()
        raise


class HostedEncoder(BaseEncoder):
    """A hosted model. `forward` starts requests, `collect` waits for them."""

    pad_to_multiple_of = 0
    empty_reason = "the text is empty"

    def __init__(self, job: Job, endpoint: EmbeddingsClient, clock: Clock, notify: Notify, rng: random.Random) -> None:
        self._concurrency = AdaptiveConcurrency(job.max_concurrency, clock.monotonic)
        self._threads = RequestThreads(job.max_concurrency or MAX_CONCURRENCY)
        self.max_in_flight = self._concurrency.max_in_flight
        self.batch_tokens = min(HOSTED_BATCH_TOKENS, job.tpm or HOSTED_BATCH_TOKENS)
        self._job = job
        self._name = job.model.removeprefix(HOSTED_PREFIX)
        self._prompt = resolve_prompt(job, {}, None)[0]
        self._endpoint = endpoint
        self._clock = clock
        self._counter = choose_token_counter(job, notify)
        self._cuts = SilentCutDetector(self._counter, endpoint.address.place, notify)
        self._limit = max_tokens_per_text(job, self._counter.is_exact)
        check_window_limit(job, self._limit)
        dialect = endpoint.address.dialect
        self._fields = resolve_request_fields(job, dialect)
        most_tokens = dialect.max_request_tokens or MAX_REQUEST_TOKENS
        self._limits = RequestSizeLimits(
            dialect.max_inputs or MAX_REQUEST_INPUTS, min(most_tokens, job.tpm or most_tokens)
        )
        self._pace = RateLimiter(clock, job.rpm, job.tpm)
        self._patience = RetryLimits(job.patience, job.retry_cap)
        self._retrier = Retrier(clock, self._pace, notify, rng)
        self._health = ServerHealth(clock, job.request_timeout, self._ask_probe)
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
        dim_note = check_dim(
            self.dim, job.truncate_dim, self._style.dimensions, self._name, self._fields.dimensions_field
        )
        for note in filter(None, (checks.note, dim_note)):
            notify(note)
        self._text_requests = TextRequests(
            self._send_texts,
            self._check_server_after_refusals,
            self._health,
            self._limits,
            self._threads,
            notify,
            dim=self.dim,
        )

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
            raise EncodingStoppedError(*STOPPED_ERROR) from None
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

    def unusable_reason(self, vector: EncodedVectors) -> str:
        """Why a row is rejected whose vector was not usable when it was asked for again either."""
        fault = "is not finite" if as_dense(vector).any() else "has only zeros"
        return f"the server's vector {fault}, also when asked again"

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
        self._threads.close()
        self._endpoint.close()

    def _start(self, asked: HostedTexts, rows: Int64Array, counts: Int64Array) -> Future[HostedVectors]:
        texts = [asked.texts[row] for row in rows.tolist()]
        turn = self._concurrency.take_turn()
        ask = partial(self._text_requests.request, turn=turn)
        return self._threads.run(partial(turn.run, partial(self._cuts.request, texts, counts, ask)))

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
                f"{self._endpoint.address.place} now refuses every text: {refusal}",
                "see what changed at the server, then run the same command to go on",
            ) from None

    def _send_texts(
        self, texts: list[str], tokens: int, blames_texts: BlamesTexts, timeout: float | None
    ) -> EmbeddingResponse:
        return self._request_with_retries(texts, tokens, self._style, self._patience, blames_texts, timeout)

    def _request_with_retries(
        self,
        texts: list[str],
        tokens: int,
        style: RequestFormat,
        patience: RetryLimits,
        blames_texts: BlamesTexts | None = None,
        timeout: float | None = None,
    ) -> EmbeddingResponse:
        """Send one request with retries. Raises RequestRefusedError, FailingTextsError or ModelError."""
        body = self._build_body(texts, style)
        failures = 0

        def judge(failure: RetryableError, started: float) -> bool:
            nonlocal failures
            failures += 1
            is_blamed = blames_texts is not None and blames_texts(failure, started)
            # One 5xx may be chance, or the texts.
            is_overload = failure.suspicion == "none" or failures > 1
            if failure.failure_kind == "busy" and is_overload and not is_blamed:
                self._concurrency.record_busy()
            return is_blamed

        def attempt() -> EmbeddingResponse:
            started = self._clock.monotonic()
            answer = self._request_once(body, len(texts), timeout)
            self._concurrency.record_success(tokens, self._clock.monotonic() - started)
            return answer

        answer = self._retrier.run(attempt, tokens, patience, judge)
        if answer.tokens is not None:
            self._pace.charge_difference(answer.tokens - tokens)
        with self._lock:
            self._refusals = 0
        return answer

    def _ask_probe(self, timeout: float) -> EmbeddingResponse:
        self._pace.acquire(1)
        return self._request_once(self._build_body([PROBE_TEXT], self._style), 1, timeout)

    def _request_once(self, body: bytes, count: int, timeout: float | None = None) -> EmbeddingResponse:
        host = self._endpoint.address.place
        started = self._clock.monotonic()
        with self._lock:
            self._requests += 1
        try:
            answer = decode_response(self._endpoint.post(body, timeout), count, self.dim)
        except ReportedError as error:
            # At the start it is more likely a wrong model or field than a server that is busy.
            raise self._endpoint.error_for_report(error, "busy" if self.dim else "wrong") from None
        except MalformedResponseError as error:
            if isinstance(error, UnreadableFloatsError) and not self.dim:
                # Nothing was ever read in base64: plain numbers may be.
                raise RequestRefusedError(f"its answer {error}") from None
            raise RetryableError(f"the answer of {host} {self._endpoint.redact(str(error))}", "wrong") from None
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
        self._health.record_answer(started)
        return answer

    def _build_fields(self, style: RequestFormat) -> dict[str, Any]:
        """The fields of a request beside the model and the texts."""
        fields: dict[str, Any] = {ENCODING_FIELD: "base64"} if style.uses_base64 else {}
        if style.dimensions and self._fields.dimensions_field:
            fields[self._fields.dimensions_field] = style.dimensions
        return fields | self._fields.extra

    def _build_body(self, texts: list[str], style: RequestFormat) -> bytes:
        return build_body(self._name, texts, self._build_fields(style))

    def _run_start_checks(self) -> StartChecks:
        def send(texts: list[str], in_base64: bool) -> EmbeddingResponse:
            style = replace(self._style, uses_base64=in_base64)
            counted = int(self._counter.count(texts).sum())
            diagnosis = RequestDiagnosis(self._health, len(texts), is_suspect=False)
            timeout = self._health.suspect_timeout()
            answer = self._request_with_retries(texts, counted, style, self._patience, diagnosis.blames_texts, timeout)
            self._cuts.learn_offset(len(texts), counted, answer.tokens)
            return answer

        request = digest_request(self._build_fields(self._style))
        most = self._endpoint.address.dialect.max_inputs or MAX_REQUEST_INPUTS
        return run_start_checks(send, self._style.uses_base64, self._endpoint.address.place, request, most)

    def _probe(self) -> tuple[RequestFormat, EmbeddingResponse]:
        """Find the first request format that the server accepts, and return it with the response to a short text."""
        patience = self._patience.at_start()

        def send(style: RequestFormat, blames_texts: BlamesTexts | None) -> EmbeddingResponse:
            return self._request_with_retries([PROBE_TEXT], 1, style, patience, blames_texts)

        return find_request_format(
            send,
            dimensions=self._job.truncate_dim if self._fields.dimensions_field else None,
            may_ask_base64=self._fields.may_ask_base64,
            where=f"{self._endpoint.address.place} refuses even a one-letter text for model {self._name}",
        )
