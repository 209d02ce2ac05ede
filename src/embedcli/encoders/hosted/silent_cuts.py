"""Find texts that a server cut without saying so, from the tokens that it reports.

The report is the sum of a request, so a text longer than all before it is sent in a request of its own. If the server
counts fewer tokens than this machine, or this machine only estimates, its two halves are sent as well: together they
have more tokens than the whole only if the whole was cut. No limit of the model and no correct estimate is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from embedcli.encoders.hosted.token_counting import TokenCounter
from embedcli.encoders.hosted.vectors import HostedVectors, merge_vectors

if TYPE_CHECKING:
    from embedcli.core.types import Int64Array

# No server is known to cut shorter texts.
MIN_TESTED_TOKENS = 120
# Texts of an estimate up to this many times the longest whole text are taken as whole without a test.
ESTIMATE_GROWTH = 1.1
# With a known limit, texts are certainly whole, uncertain or certainly cut by their estimate as a share of the limit.
ESTIMATED_WHOLE, ESTIMATED_CUT = 0.5, 2.0
# What special tokens and a word that is halved may add to two halves of a text.
EXTRA_TOKENS = 4
ESTIMATE_TOLERANCE = 0.03

AskTexts = Callable[[list[str], "Int64Array"], HostedVectors]


class SilentCutDetector:
    """Sends requests so that cut texts are found. Thread-safe.

    Args:
        counter: Counts tokens on this machine.
        host: The server's name, for the note.
        notify: Gets one note when the first cut text is found.

    Attributes:
        limit: Tokens that the server reads of a text, as it counts; None while no cut text was found.
    """

    def __init__(self, counter: TokenCounter, host: str, notify: Callable[[str], None]) -> None:
        self.limit: int | None = None
        self._counter = counter
        self._is_exact = counter.is_exact
        self._host = host
        self._notify = notify
        self._reports_tokens = True
        self._offset = 0
        self._longest_whole = MIN_TESTED_TOKENS
        self._lock = Lock()

    def learn_offset(self, texts: int, counted: int, reported: int | None) -> None:
        """Learn from short texts how many tokens more per text the server reports than are counted here."""
        difference = (reported if reported is not None else counted) - counted
        self._is_exact &= difference % texts == 0 and abs(difference) <= EXTRA_TOKENS * texts
        self._offset = difference // texts if self._is_exact else 0

    def request(self, texts: list[str], counts: Int64Array, ask: AskTexts) -> HostedVectors:
        """Request the vectors of some texts and find those that the server cut.

        Args:
            texts: The texts.
            counts: int64 [n], their tokens as counted here.
            ask: Sends one request.
        """
        done: dict[int, HostedVectors] = {}
        longest = int(np.argmax(counts))
        if self._must_test(int(counts[longest])):
            done[longest] = self._test(texts[longest], counts[longest : longest + 1], ask)
        cut = self._find_by_count(counts) - done.keys()
        for position in sorted(self._find_uncertain(counts) - done.keys()):
            done[position] = self._test(texts[position], counts[position : position + 1], ask)
        rest = [position for position in range(len(texts)) if position not in done]
        blocks, positions = list(done.values()), [[position] for position in done]
        if rest:
            answer = ask([texts[position] for position in rest], counts[rest])
            blocks, positions = [*blocks, answer], [*positions, rest]
        merged = merge_vectors(blocks, positions)
        limit = self.limit
        if limit is None or not cut:
            return merged
        cuts = {**merged.cut_lengths, **dict.fromkeys(cut, limit)}
        return HostedVectors(merged.vectors, merged.refusal_reasons, merged.tokens, cuts)

    def _must_test(self, count: int) -> bool:
        """Whether a text is longer than all that are known to be whole, and no limit is known."""
        growth = 1.0 if self._is_exact else ESTIMATE_GROWTH
        return self._reports_tokens and self.limit is None and count > self._longest_whole * growth

    def _find_by_count(self, counts: Int64Array) -> set[int]:
        """Positions of the texts that are longer than the limit beyond doubt."""
        if self.limit is None:
            return set()
        bound = self.limit - self._offset if self._is_exact else self.limit * ESTIMATED_CUT
        return set(np.flatnonzero(counts > bound).tolist())

    def _find_uncertain(self, counts: Int64Array) -> set[int]:
        """Positions of the texts that may be longer than the limit, because their counts are estimates."""
        if self.limit is None or self._is_exact:
            return set()
        is_near = (counts > self.limit * ESTIMATED_WHOLE) & (counts <= self.limit * ESTIMATED_CUT)
        return set(np.flatnonzero(is_near).tolist())

    def _test(self, text: str, count: Int64Array, ask: AskTexts) -> HostedVectors:
        """Request one text alone, and its halves too if it may have been cut."""
        answer, counted = ask([text], count), int(count[0])
        if answer.refusal_reasons:
            return answer
        if answer.tokens is None:
            self._reports_tokens = False
            return answer
        limit = self.limit
        if limit is not None and answer.tokens < limit:
            return answer
        is_expected = self._is_exact and counted + self._offset <= answer.tokens
        if is_expected or not self._is_cut(text, answer.tokens, ask):
            self._record_whole(counted, answer.tokens, is_expected)
            return answer
        self._record_limit(answer.tokens, counted)
        return HostedVectors(answer.vectors, answer.refusal_reasons, answer.tokens, {0: answer.tokens})

    def _is_cut(self, text: str, reported: int, ask: AskTexts) -> bool:
        middle = text.find(" ", len(text) // 2)
        middle = middle if 0 < middle < len(text) - 1 else len(text) // 2
        if middle == 0:
            return False
        halves = [text[:middle], text[middle:]]
        counts = self._counter.count(halves).astype(np.int64)
        answer = ask(halves, counts)
        if answer.tokens is None or answer.refusal_reasons:
            return False
        # A tokenizer that is right about the halves is right about the whole.
        is_confirmed = self._is_exact and answer.tokens == int(counts.sum()) + 2 * self._offset
        return is_confirmed or answer.tokens > reported * (1 + ESTIMATE_TOLERANCE) + EXTRA_TOKENS

    def _record_whole(self, counted: int, reported: int, is_expected: bool) -> None:
        with self._lock:
            self._longest_whole = max(self._longest_whole, counted)
            # A tokenizer that counts more tokens of a whole text than the server does is another one.
            self._is_exact &= is_expected
            if self.limit is not None and reported > self.limit:
                self.limit = None

    def _record_limit(self, reported: int, counted: int) -> None:
        with self._lock:
            is_first, self.limit = self.limit is None, reported
        if is_first:
            self._notify(
                f"{self._host} cuts long texts without saying so: it counted {reported:,} tokens of one with about "
                f"{counted:,}, and more in its two halves. Such rows are flagged as truncated; give --max-seq-length "
                f"{reported} with --overflow split or pool to embed whole texts"
            )
