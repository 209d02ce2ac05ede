"""Texts to token ids and padded arrays, exactly as a model's own tokenizer would make them, and once only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.batching import padded
from embedcli.contracts import Tokens, UsageError
from embedcli.encoders.cuts import spans

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from embedcli.contracts import Ints, Rows

# One slice of texts is tokenized at a time: an Encoding takes about 150 bytes per token until it is dropped.
SLICE_CHARACTERS = 1 << 20


class FastTokenizer:
    """A `tokenizers.Tokenizer` with the truncation of transformers done on its output, so that nothing read is lost
    from the count: `Tokens.full` is the whole text's, `Tokens.lengths` what is left after the cut.

    `limit` is the longest row in tokens, special tokens and prompt included (None: no limit). Raises UsageError
    when the limit leaves no room for the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        limit: int | None,
        prompt: str = "",
        pad_id: int = 0,
        pad_left: bool = False,
        cut_left: bool = False,
    ) -> None:
        self._side = "left" if cut_left else "right"
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.limit = limit
        self.prompt = prompt
        self.pad_id = pad_id
        self.pad_left = pad_left
        self._before, self._after = _specials(tokenizer)
        if limit is not None and limit <= self._before + self._after:
            raise UsageError(
                f"--max-seq-length {limit} leaves no room for text beside {self._before + self._after} special tokens",
                f"give at least {self._before + self._after + 1}",
            )
        self.prompt_length = self._count_prompt()

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Each text once, prompt first; rows longer than the limit cut as transformers cuts them."""
        rows: list[list[int]] = []
        full = np.empty(len(texts), np.int32)
        for start, encodings in self._encode(texts):
            for i, encoding in enumerate(encodings):
                full[start + i] = len(encoding)
                rows.append(self._cut(encoding.ids))
        return ragged(rows, full)

    def spans(self, text: str, overlap: int = 0) -> list[tuple[int, int]]:
        """Windows of a text as (start, stop) in characters: each fits the limit with the prompt, none is left out.

        Windows end at a sentence or word end when one is near, and begin about `overlap` tokens before the last
        one's end. Raises UsageError when the overlap leaves a window no token of its own.
        """
        if self.limit is None:
            return [(0, len(text))]
        room = self.limit - self._before - self._after - self.prompt_length
        if overlap >= room:
            raise UsageError(
                f"--split-overlap {overlap} leaves nothing new for a window of {max(room, 0)} tokens",
                "give less, or raise --max-seq-length",
            )
        offsets = np.array(self._tokenizer.encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)
        return spans(text, offsets[:, 0].copy(), offsets[:, 1].copy(), room, overlap, self._excess)

    def _excess(self, window: str) -> int:
        return len(self._tokenizer.encode(self.prompt + window)) - (self.limit or 0)

    def _encode(self, texts: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
        for start, stop in _slices(texts):
            prompted = [self.prompt + text for text in texts[start:stop]]
            yield start, self._tokenizer.encode_batch_fast(prompted)

    def _cut(self, ids: list[int]) -> list[int]:
        if self.limit is None or len(ids) <= self.limit:
            return ids
        room = self.limit - self._before - self._after
        content = ids[self._before : len(ids) - self._after]
        kept = content[-room:] if self._side == "left" else content[:room]
        return ids[: self._before] + kept + ids[len(ids) - self._after :]

    def _count_prompt(self) -> int:
        """The prompt's tokens as sentence-transformers counts them: alone, less one trailing special token."""
        if not self.prompt:
            return 0
        ids = self._cut(self._tokenizer.encode(self.prompt).ids)
        special = {number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        return len(ids) - (ids[-1] in special) if ids else 0


def ragged(rows: Sequence[Sequence[int]], full: Ints) -> Tokens:
    """Lists of token ids as Tokens."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Tokens(np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])), offsets, full)


def _specials(tokenizer: Tokenizer) -> tuple[int, int]:
    """How many special tokens the tokenizer puts before and after a text."""
    mask = tokenizer.encode("a").special_tokens_mask
    before = mask.index(0) if 0 in mask else len(mask)
    after = mask[::-1].index(0) if 0 in mask else 0
    return before, after


def _slices(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Bounds of consecutive slices of at most SLICE_CHARACTERS, one text at least."""
    start = size = 0
    for i, text in enumerate(texts):
        if i > start and size + len(text) > SLICE_CHARACTERS:
            yield start, i
            start, size = i, 0
        size += len(text)
    if start < len(texts):
        yield start, len(texts)


def pad(
    tokens: Tokens, rows: Rows, multiple: int, pad_id: int, left: bool, most: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token ids and attention mask of `rows`, both int64 [len(rows), width].

    The width is the longest row's length rounded up to `multiple`, but not above `most` (the model's positions)
    unless a row is longer.
    """
    lengths = tokens.lengths[rows]
    longest = int(lengths.max(initial=0))
    width = padded(longest, multiple)
    if most is not None:
        width = max(longest, min(width, most))
    column = np.arange(width)
    mask = column >= (width - lengths)[:, None] if left else column < lengths[:, None]
    ids = np.full((len(rows), width), pad_id, np.int64)
    if len(rows):
        ids[mask] = np.concatenate([tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]] for row in rows])
    return ids, mask.astype(np.int64)
