"""Request vectors of many texts, and find the texts that a server refuses or fails for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from embedcli.core.counts import format_count
from embedcli.encoders.hosted.client import RequestRefusedError
from embedcli.encoders.hosted.concurrency import RequestThreads, Turn
from embedcli.encoders.hosted.failure_diagnosis import RequestDiagnosis, ServerHealth
from embedcli.encoders.hosted.request_limits import RequestSizeLimits
from embedcli.encoders.hosted.response import EmbeddingResponse
from embedcli.encoders.hosted.retry import BlamesTexts, FailingTextsError
from embedcli.encoders.hosted.vectors import HostedVectors, merge_vectors

if TYPE_CHECKING:
    from embedcli.core.types import Int64Array

T = TypeVar("T")


class SendTexts(Protocol):
    """Sends one request with retries. Raises RequestRefusedError, FailingTextsError or ModelError."""

    def __call__(
        self, texts: list[str], tokens: int, blames_texts: BlamesTexts, timeout: float | None
    ) -> EmbeddingResponse:
        """Return the response; `timeout` in seconds, None for that of the job."""


class TextRequests:
    """Requests vectors, and halves a request that is rejected or fails until the bad texts stand alone. Thread-safe."""

    def __init__(
        self,
        send: SendTexts,
        check_refusal: Callable[[RequestRefusedError], None],
        health: ServerHealth,
        limits: RequestSizeLimits,
        threads: RequestThreads,
        notify: Callable[[str], None],
        *,
        dim: int,
    ) -> None:
        """Prepare requests.

        Args:
            send: Sends one request.
            check_refusal: Raises ModelError if the server refuses every text.
            health: Whether the server works for other texts.
            limits: Learns the sizes that work.
            threads: Run the halves of a request side by side.
            notify: Gets one note when a limit is found.
            dim: Dimensions of the vectors.
        """
        self._dim = dim
        self._send = send
        self._check_refusal = check_refusal
        self._health = health
        self._limits = limits
        self._threads = threads
        self._notify = notify
        self._has_reported_limit = False

    def request(self, texts: list[str], counts: Int64Array, *, turn: Turn, is_suspect: bool = False) -> HostedVectors:
        """Request vectors of some texts; halve a request that is rejected or fails until the bad texts stand alone.

        Args:
            texts: The texts.
            counts: int64 [len(texts)]: the tokens of each.
            turn: That of the batch that they belong to.
            is_suspect: Whether they are part of a request that failed, see `failure_diagnosis`.

        Raises:
            ModelError: The server fails for good.
        """
        tokens = int(counts.sum())
        diagnosis = RequestDiagnosis(self._health, len(texts), is_suspect)
        timeout = self._health.suspect_timeout() if is_suspect and len(texts) > 1 else None
        try:
            with turn:
                # Another request may have shown a limit since this one was made.
                is_allowed = self._limits.is_allowed(len(texts), tokens)
                answer = self._send(texts, tokens, diagnosis.blames_texts, timeout) if is_allowed else None
            if answer is None:
                return self._request_smaller(texts, counts, turn=turn, is_suspect=is_suspect)
            self._limits.record_answered(len(texts), tokens)
            return HostedVectors(answer.vectors, {}, answer.tokens)
        except RequestRefusedError as refusal:
            if len(texts) == 1:
                self._check_refusal(refusal)
                return self._reject(f"the server refused the text: {refusal}")
            return self._request_halves(texts, counts, turn=turn, is_suspect=is_suspect)
        except FailingTextsError as failure:
            if len(texts) == 1:
                return self._reject(f"the server fails for this text: {failure}")
            return self._request_halves(texts, counts, turn=turn, is_suspect=True)

    def _reject(self, reason: str) -> HostedVectors:
        return HostedVectors(np.full((1, self._dim), np.nan, np.float32), {0: reason})

    def _request_smaller(self, texts: list[str], counts: Int64Array, *, turn: Turn, is_suspect: bool) -> HostedVectors:
        """Request the vectors of some texts in parts that the known limits allow, side by side."""
        parts = [range(start, stop) for start, stop in self._limits.split_into_requests(counts.tolist())]
        blocks = self._request_parts(texts, counts, parts, turn=turn, is_suspect=is_suspect, side_by_side=True)
        return merge_vectors(blocks, parts)

    def _request_halves(self, texts: list[str], counts: Int64Array, *, turn: Turn, is_suspect: bool) -> HostedVectors:
        half = len(texts) // 2
        halves = [range(half), range(half, len(texts))]
        # Refused texts are looked for one after the other, so that a server that refuses all is noticed early.
        blocks = self._request_parts(texts, counts, halves, turn=turn, is_suspect=is_suspect, side_by_side=is_suspect)
        if not any(block.refusal_reasons for block in blocks):
            larger = int(max(counts[:half].sum(), counts[half:].sum()))
            if self._limits.record_accepted(len(texts) - half, larger, was_failure=is_suspect):
                self._report_limit(len(texts) - half, larger)
        return merge_vectors(blocks, halves)

    def _request_parts(
        self,
        texts: list[str],
        counts: Int64Array,
        parts: list[range],
        *,
        turn: Turn,
        is_suspect: bool,
        side_by_side: bool,
    ) -> list[HostedVectors]:
        """Request the vectors of each part of some texts; side by side as far as threads may be spared."""

        def request_part(part: range) -> HostedVectors:
            own_texts, own_counts = texts[part.start : part.stop], counts[part.start : part.stop]
            return self.request(own_texts, own_counts, turn=turn, is_suspect=is_suspect)

        first, *others = parts
        futures = [self._threads.run_if_spare(partial(request_part, part)) if side_by_side else None for part in others]
        blocks = [request_part(first)]
        for part, future in zip(others, futures, strict=True):
            blocks.append(request_part(part) if future is None else future.result())
        return blocks

    def _report_limit(self, inputs: int, tokens: int) -> None:
        if self._has_reported_limit:
            return
        self._has_reported_limit = True
        size = f"{format_count(inputs, 'text')} ({format_count(tokens, 'token')})"
        self._notify(
            f"the server takes no more than about {size} at once: smaller requests are sent from now on; "
            f"--batch-tokens {tokens} begins with them"
        )
