"""Tokenize texts and pad rows exactly as a model's own tokenizer does, tokenizing each text once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.batching import round_up_length
from embedcli.core.encoder import Tokens
from embedcli.core.errors import UsageError
from embedcli.core.ragged import concat_ranges
from embedcli.encoders.tokenize.text_windows import choose_window_spans
from embedcli.encoders.tokenize.word_cache import choose_tokenizer, flatten_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from embedcli.core.types import Int32Array, Int64Array

# Fewer characters are tokenized without the word cache: importing pyarrow for it takes longer than it saves.
MIN_PARALLEL_CHARACTERS = 1 << 18


class FastTokenizer:
    """A `tokenizers.Tokenizer` that also counts the tokens of the whole text when it truncates.

    Attributes:
        limit: The longest row in tokens; None: no limit.
        prompt: Prepended to each text.
        pad_id: The id of the padding token.
        pads_left: Whether rows are padded on the left.
        pad_token_type: The type of a padding token.
        prompt_length: Tokens of the prompt, as sentence-transformers counts them.
    """

    pad_token_type = 0

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
        """Wrap a tokenizer, and turn its own truncation and padding off.

        Args:
            tokenizer: The tokenizer.
            limit: The longest row in tokens, special tokens and prompt included; None: no limit.
            prompt: Prepended to each text.
            pad_id: The id of the padding token.
            pads_left: Whether rows are padded on the left.
            cut_left: Whether the start of a long row is cut off instead of its end.
            threads: How many slices of a call are tokenized at a time.

        Raises:
            UsageError: The limit leaves no token for the text.
        """
        self._cut_left = cut_left
        self._tokenizer = tokenizer
        self._batch_tokenizer = choose_tokenizer(tokenizer, threads, MIN_PARALLEL_CHARACTERS)
        self.limit = limit
        self.prompt = prompt
        self.pad_id = pad_id
        self.pads_left = pads_left
        self._prefix, self._suffix = _find_special_tokens(tokenizer)
        self._special_count = len(self._prefix) + len(self._suffix)
        self._check_limit()
        self.prompt_length = self._count_prompt_tokens()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenize each text once, prompt first, and truncate as transformers does."""
        prompted = [self.prompt + text for text in texts] if self.prompt else texts
        return self._add_special_tokens(*self._batch_tokenizer(prompted))

    def close(self) -> None:
        """Stop the threads."""
        self._batch_tokenizer.close()

    def split_into_windows(self, text: str, overlap: int = 0) -> list[tuple[int, int]]:
        """Split a text into windows that fit the limit together with the prompt and cover the text.

        Args:
            text: The text, without the prompt.
            overlap: A window starts about this many tokens before the end of the window before it.

        Returns:
            (start, stop) of each window in characters, in order. Windows end where a sentence or a word does, if such
            an end is near.

        Raises:
            UsageError: The overlap leaves no room for new tokens in a window.
        """
        if self.limit is None:
            return [(0, len(text))]
        room = self.limit - self._special_count - self.prompt_length
        offsets = np.array(self._tokenizer.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)
        return choose_window_spans(text, offsets[:, 0].copy(), offsets[:, 1].copy(), room, overlap, self._count_excess)

    def _count_excess(self, window: str) -> int:
        return len(self._tokenizer.encode(self.prompt + window)) - (self.limit or 0)

    def _add_special_tokens(self, ids: Int32Array, bounds: Int64Array) -> Tokens:
        """Truncate the rows `ids[bounds[i]:bounds[i + 1]]` to the limit and put them between the special tokens."""
        counts = np.diff(bounds)
        kept = counts if self.limit is None else np.minimum(counts, self.limit - self._special_count)
        first = bounds[1:] - kept if self._cut_left else bounds[:-1]
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(kept + self._special_count, out=offsets[1:])
        framed = np.empty(offsets[-1], np.int32)
        framed[concat_ranges(offsets[:-1] + len(self._prefix), kept)] = ids[concat_ranges(first, kept)]
        for i, token in enumerate(self._prefix):
            framed[offsets[:-1] + i] = token
        for i, token in enumerate(reversed(self._suffix), 1):
            framed[offsets[1:] - i] = token
        return Tokens(framed, offsets, (counts + self._special_count).astype(np.int32))

    def _check_limit(self) -> None:
        """Raise UsageError if the limit leaves no token for the text: every row would get the same vector."""
        prompt = len(self._tokenizer.encode(self.prompt, add_special_tokens=False)) if self.prompt else 0
        if self.limit is not None and self.limit <= self._special_count + prompt:
            used = f"{self._special_count} special tokens" + (f" and a prompt of {prompt}" if prompt else "")
            raise UsageError(
                f"--max-seq-length {self.limit} leaves no room for text beside {used}",
                f"use at least {self._special_count + prompt + 1}",
            )

    def _count_prompt_tokens(self) -> int:
        """As in sentence-transformers: the tokens of the prompt alone, without one special token at its end."""
        if not self.prompt:
            return 0
        prompt_ids = self._tokenizer.encode(self.prompt, add_special_tokens=False).ids
        ids = self._add_special_tokens(*flatten_rows([prompt_ids])).ids.tolist()
        special = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        return len(ids) - (ids[-1] in special) if ids else 0


def build_tokens(rows: Sequence[Sequence[int]], untruncated_lengths: Int32Array) -> Tokens:
    """Build Tokens from rows of token ids that are already truncated."""
    return Tokens(*flatten_rows(rows), untruncated_lengths)


def pad_rows(
    tokens: Tokens,
    rows: Int64Array,
    pad_to_multiple_of: int,
    pad_id: int,
    left: bool,
    most: int | None = None,
    at_least: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pad rows to one width.

    Args:
        tokens: The tokens of a chunk.
        rows: int64 [batch]; which of its rows to pad.
        pad_to_multiple_of: The longest row's length is rounded up to a multiple of this.
        pad_id: The id of the padding token.
        left: Whether to pad on the left.
        most: The width is not rounded up beyond this many tokens, the model's positions.
        at_least: The smallest width.

    Returns:
        Token ids and attention mask, both int64 [batch, width].
    """
    lengths = tokens.lengths[rows]
    longest = int(lengths.max(initial=0))
    width = round_up_length(longest, pad_to_multiple_of)
    if most is not None:
        width = max(longest, min(width, most))
    width = max(width, at_least)
    column = np.arange(width)
    mask = column >= (width - lengths)[:, None] if left else column < lengths[:, None]
    ids = np.full((len(rows), width), pad_id, np.int64)
    if len(rows):
        ids[mask] = np.concatenate([tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]] for row in rows])
    return ids, mask.astype(np.int64)


def pad_token_types(
    tokens: Tokens, rows: Int64Array, mask: NDArray[np.int64], pad_token_type: int
) -> NDArray[np.int64]:
    """Pad the token types of rows as `pad_rows` padded their ids.

    Args:
        tokens: The tokens of a chunk, with token types.
        rows: int64 [batch]; which of its rows to pad.
        mask: The attention mask that `pad_rows` returned, int64 [batch, width].
        pad_token_type: The type of a padding token.

    Returns:
        int64 [batch, width].
    """
    types = np.full(mask.shape, pad_token_type, np.int64)
    if len(rows) and tokens.token_types is not None:
        ranges = [tokens.token_types[tokens.offsets[row] : tokens.offsets[row + 1]] for row in rows]
        types[mask.astype(bool)] = np.concatenate(ranges)
    return types


def _find_special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    encoding = tokenizer.encode("a")
    mask = encoding.special_tokens_mask
    before = mask.index(0) if 0 in mask else len(mask)
    after = mask[::-1].index(0) if 0 in mask else 0
    return encoding.ids[:before], encoding.ids[len(mask) - after :]
