"""Texts to token ids and padded arrays, exactly as a model's own tokenizer would make them, and once only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.batching import round_up_length
from embedcli.core.encoder import Tokens
from embedcli.core.errors import UsageError
from embedcli.encoders.tokenize.text_windows import choose_window_spans
from embedcli.encoders.tokenize.word_cache import choose_tokenizer, concat_ranges, flatten_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from embedcli.core.types import Int32Array, Int64Array

# Up to here texts are tokenized whole: what tokenizing by pieces imports takes longer than it saves.
MIN_PARALLEL_CHARACTERS = 1 << 18


class FastTokenizer:
    """A `tokenizers.Tokenizer` with the truncation of transformers done on its output, so that nothing read is lost
    from the count: `Tokens.full` is the whole text's, `Tokens.lengths` what is left after the cut.

    `limit` is the longest row in tokens, special tokens and prompt included (None: no limit). Up to `threads` parts
    of a call are tokenized at a time. Raises UsageError when the limit leaves no room for the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        limit: int | None,
        prompt: str = "",
        pad_id: int = 0,
        pads_left: bool = False,
        cut_left: bool = False,
        threads: int = 1,
    ) -> None:
        self._cut_left = cut_left
        self._tokenizer = tokenizer
        self._words = choose_tokenizer(tokenizer, threads, MIN_PARALLEL_CHARACTERS)
        self.limit = limit
        self.prompt = prompt
        self.pad_id = pad_id
        self.pads_left = pads_left
        self._before, self._after = _specials(tokenizer)
        self._specials = len(self._before) + len(self._after)
        self._refuse_narrow()
        self.prompt_length = self._count_prompt()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Each text once, prompt first; rows longer than the limit cut as transformers cuts them."""
        prompted = [self.prompt + text for text in texts] if self.prompt else texts
        return self._framed(*self._words(prompted))

    def close(self) -> None:
        """End the threads."""
        self._words.close()

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]]:
        """Windows of a text as (start, stop) in characters: each fits the limit with the prompt, none is left out.

        Windows end at a sentence or word end when one is near, and begin about `overlap` tokens before the last
        one's end. Raises UsageError when the overlap leaves a window no token of its own.
        """
        if self.limit is None:
            return [(0, len(text))]
        room = self.limit - self._specials - self.prompt_length
        if overlap >= room:
            raise UsageError(
                f"--split-overlap {overlap} leaves nothing new for a window of {max(room, 0)} tokens",
                "give less, or raise --max-seq-length",
            )
        offsets = np.array(self._tokenizer.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)
        return choose_window_spans(text, offsets[:, 0].copy(), offsets[:, 1].copy(), room, overlap, self._excess)

    def _excess(self, window: str) -> int:
        return len(self._tokenizer.encode(self.prompt + window)) - (self.limit or 0)

    def _framed(self, ids: Int32Array, bounds: Int64Array) -> Tokens:
        """The texts' own tokens, row i in `bounds[i:i + 2]`, cut to the limit and between the special ones."""
        counts = np.diff(bounds)
        kept = counts if self.limit is None else np.minimum(counts, self.limit - self._specials)
        first = bounds[1:] - kept if self._cut_left else bounds[:-1]
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(kept + self._specials, out=offsets[1:])
        framed = np.empty(offsets[-1], np.int32)
        framed[concat_ranges(offsets[:-1] + len(self._before), kept)] = ids[concat_ranges(first, kept)]
        for i, token in enumerate(self._before):
            framed[offsets[:-1] + i] = token
        for i, token in enumerate(reversed(self._after), 1):
            framed[offsets[1:] - i] = token
        return Tokens(framed, offsets, (counts + self._specials).astype(np.int32))

    def _refuse_narrow(self) -> None:
        """UsageError if the limit leaves no token for a row's own text: every row would get the same vector."""
        prompt = len(self._tokenizer.encode(self.prompt, add_special_tokens=False)) if self.prompt else 0
        if self.limit is not None and self.limit <= self._specials + prompt:
            beside = f"{self._specials} special tokens" + (f" and a prompt of {prompt}" if prompt else "")
            raise UsageError(
                f"--max-seq-length {self.limit} leaves no room for text beside {beside}",
                f"give at least {self._specials + prompt + 1}",
            )

    def _count_prompt(self) -> int:
        """The prompt's tokens as sentence-transformers counts them: alone, less one trailing special token."""
        if not self.prompt:
            return 0
        bare = self._tokenizer.encode(self.prompt, add_special_tokens=False).ids
        ids = self._framed(*flatten_rows([bare])).ids.tolist()
        special = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        return len(ids) - (ids[-1] in special) if ids else 0


def build_tokens(rows: Sequence[Sequence[int]], full: Int32Array) -> Tokens:
    """Lists of token ids, already cut, as Tokens."""
    return Tokens(*flatten_rows(rows), full)


def _specials(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    made = tokenizer.encode("a")
    mask = made.special_tokens_mask
    before = mask.index(0) if 0 in mask else len(mask)
    after = mask[::-1].index(0) if 0 in mask else 0
    return made.ids[:before], made.ids[len(mask) - after :]


def pad_rows(
    tokens: Tokens, rows: Int64Array, pad_to_multiple_of: int, pad_id: int, left: bool, most: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask of `rows`, both int64 [len(rows), width].

    The width is the longest row's length rounded up to `multiple`, but not above `most` (the model's positions)
    unless a row is longer.
    """
    lengths = tokens.lengths[rows]
    longest = int(lengths.max(initial=0))
    width = round_up_length(longest, pad_to_multiple_of)
    if most is not None:
        width = max(longest, min(width, most))
    column = np.arange(width)
    mask = column >= (width - lengths)[:, None] if left else column < lengths[:, None]
    ids = np.full((len(rows), width), pad_id, np.int64)
    if len(rows):
        ids[mask] = np.concatenate([tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]] for row in rows])
    return ids, mask.astype(np.int64)
