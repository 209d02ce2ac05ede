"""Sizes of requests: known limits, and what rejected requests teach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from embedcli.encoders.hosted.known_hosts import MAX_REQUEST_INPUTS, MAX_REQUEST_TOKENS


class RequestSizeLimits:
    """Request sizes that may be tried: no larger in both dimensions than a rejection allows."""

    def __init__(self, inputs: int = MAX_REQUEST_INPUTS, tokens: int = MAX_REQUEST_TOKENS) -> None:
        self._inputs = inputs
        self._tokens = tokens
        self._most: list[tuple[int, int]] = []
        self._answered: list[tuple[int, int]] = []

    def is_allowed(self, inputs: int, tokens: int) -> bool:
        """Whether a request of this size may be tried; a single text always may."""
        if inputs == 1:
            return True
        within = inputs <= self._inputs and tokens <= self._tokens
        return within and not any(inputs > n and tokens > size for n, size in self._most)

    def record_answered(self, inputs: int, tokens: int) -> None:
        """Record the size of a request that succeeded."""
        if not any(inputs <= n and tokens <= size for n, size in self._answered):
            kept = [(n, size) for n, size in self._answered if n > inputs or size > tokens]
            self._answered = [*kept, (inputs, tokens)]

    def record_accepted(self, inputs: int, tokens: int, *, was_failure: bool = False) -> bool:
        """Record an accepted size after a larger request with the same texts was rejected, or failed.

        A failure may have another cause than the size: it teaches nothing if a larger request has succeeded.

        Returns:
            Whether it is a new limit.
        """
        if not self.is_allowed(inputs + 1, tokens + 1):
            return False
        if was_failure and any(n > inputs and size > tokens for n, size in self._answered):
            return False
        kept = [(n, size) for n, size in self._most if n < inputs or size < tokens]
        self._most = [*kept, (inputs, tokens)]
        return True

    def split_into_requests(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Split texts of these token counts into successive requests. Returns (start, stop) of each."""
        start = total = 0
        for stop, size in enumerate(tokens):
            if stop > start and not self.is_allowed(stop - start + 1, total + size):
                yield start, stop
                start, total = stop, 0
            total += size
        if start < len(tokens):
            yield start, len(tokens)
