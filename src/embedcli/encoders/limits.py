"""How much one request to a hosted model may hold: known limits, and what refusals teach. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

# OpenAI's limits for one request, from the reference of POST /v1/embeddings.
MAX_INPUTS = 2048
MAX_TOKENS = 300_000


class Limits:
    """Sizes of requests that may be tried: nothing at least as large in both senses as a refused one."""

    def __init__(self, inputs: int = MAX_INPUTS, tokens: int = MAX_TOKENS) -> None:
        self._inputs = inputs
        self._tokens = tokens
        self._refused: list[tuple[int, int]] = []

    def allow(self, inputs: int, tokens: int) -> bool:
        """Whether a request of this size may be tried; a single text always may."""
        if inputs == 1:
            return True
        within = inputs <= self._inputs and tokens <= self._tokens
        return within and not any(inputs >= n and tokens >= size for n, size in self._refused)

    def learn(self, inputs: int, tokens: int) -> None:
        """Remember that a request of this size was refused although each of its texts was accepted."""
        kept = [(n, size) for n, size in self._refused if n < inputs or size < tokens]
        self._refused = [*kept, (inputs, tokens)]

    def cut(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        """(start, stop) of successive requests that cover texts of these token counts."""
        start = total = 0
        for stop, size in enumerate(tokens):
            if stop > start and not self.allow(stop - start + 1, total + size):
                yield start, stop
                start, total = stop, 0
            total += size
        if start < len(tokens):
            yield start, len(tokens)
