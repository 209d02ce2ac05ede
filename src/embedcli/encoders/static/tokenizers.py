"""Convert texts to rows of a static model's table, by its tokenizer or by known words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.encoder import Tokens
from embedcli.core.ragged import concat_ranges
from embedcli.encoders.static.word_splitter import WordSplitter
from embedcli.encoders.tokenize.text_windows import choose_window_spans
from embedcli.encoders.tokenize.word_cache import BatchTokenizer, replace_ragged_rows

if TYPE_CHECKING:
    from embedcli.encoders.tokenize.word_cache import Ragged


class SubwordReader:
    """Tokenizes as model2vec and StaticEmbedding do: no special tokens, truncated to `limit`.

    `characters` truncates a text before it is tokenized, as model2vec does; `unknown` is removed after truncation.
    `Tokens.untruncated_lengths` counts the whole text in the same way, so it is larger than the length exactly for
    truncated rows. `libraries` decide which ids come out.
    """

    libraries = ("tokenizers",)

    def __init__(
        self,
        whole: BatchTokenizer,
        *,
        limit: int | None,
        prompt: str = "",
        characters: int | None = None,
        unknown: int | None = None,
        truncates_left: bool = False,
    ) -> None:
        self._whole = whole
        self._limit = limit
        self._prompt = prompt
        self._characters = characters
        self._unknown = unknown
        self._left = truncates_left

    def __call__(self, texts: Sequence[str]) -> Tokens:
        prompted = [self._prompt + text for text in texts] if self._prompt else texts
        whole = self._whole(prompted)
        most = self._characters
        long = [i for i, text in enumerate(prompted) if len(text) > most] if most is not None else []
        shortened = replace_ragged_rows(whole, long, self._whole([prompted[i][:most] for i in long])) if long else whole
        all_ids, all_offsets = self._without_unknown(whole)
        ids, offsets = self._without_unknown(_truncate_rows(shortened, self._limit, self._left))
        full = np.diff(all_offsets).astype(np.int32)
        for i in long:
            kept = ids[offsets[i] : offsets[i + 1]]
            # A text cut inside a word can have as many tokens as before, or more, and is still truncated.
            if not np.array_equal(kept, all_ids[all_offsets[i] : all_offsets[i + 1]]):
                full[i] = max(full[i], len(kept) + 1)
        return Tokens(ids, offsets, full)

    def split_into_windows(self, text: str, overlap: int) -> list[tuple[int, int]]:
        """Split a text into windows (start, stop) in characters, each read completely; `overlap` in tokens."""
        if self._limit is None:
            return [(0, len(text))]
        room = self._limit - len(self._whole([self._prompt])[0])
        return _split_by_tokens(text, self._whole.token_offsets(text), room, overlap, self._excess_tokens)

    def _excess_tokens(self, window: str) -> int:
        """Tokens by which a window is too long; one with too many characters gives up the tokens in those."""
        prompted = self._prompt + window
        count = len(self._whole([prompted])[0])
        extra = len(prompted) - (self._characters or len(prompted))
        over = count - (self._limit or count)
        return max(1, over, count * extra // len(prompted)) if extra > 0 else over

    def close(self) -> None:
        self._whole.close()

    def _without_unknown(self, made: Ragged) -> Ragged:
        if self._unknown is None:
            return made
        ids, offsets = made
        known = ids != self._unknown
        if known.all():
            return made
        return ids[known], np.concatenate([[0], np.cumsum(known)])[offsets]


class VocabularyWordReader:
    """Converts texts to the indices of known words; only those are counted and limited to `limit`."""

    def __init__(self, splitter: WordSplitter, *, limit: int | None, prompt: str = "") -> None:
        self._splitter = splitter
        self.libraries = ("jieba",) if splitter.is_chinese else ()
        self._limit = limit
        self._prompt = prompt

    def __call__(self, texts: Sequence[str]) -> Tokens:
        whole = self._splitter.find_word_ids([self._prompt + text for text in texts] if self._prompt else texts)
        return Tokens(*_truncate_rows(whole, self._limit), np.diff(whole[1]).astype(np.int32))

    def split_into_windows(self, text: str, overlap: int) -> list[tuple[int, int]]:
        """Split a text into windows (start, stop) in characters, each read completely; `overlap` in words."""
        if self._limit is None:
            return [(0, len(text))]
        room = self._limit - len(self._splitter.word_ids(self._prompt))
        return _split_by_tokens(text, self._splitter.word_spans(text), room, overlap, self._excess_tokens)

    def _excess_tokens(self, window: str) -> int:
        count = len(self._splitter.word_ids(self._prompt + window))
        return count - (self._limit or count)

    def close(self) -> None:
        """Do nothing; there is nothing to free."""


def _truncate_rows(rows: Ragged, limit: int | None, left: bool = False) -> Ragged:
    """Keep at most the first `limit` ids of each row, or the last."""
    ids, offsets = rows
    lengths = np.diff(offsets)
    if limit is None or lengths.max(initial=0) <= limit:
        return rows
    kept = np.minimum(lengths, limit)
    ends = np.concatenate([[0], np.cumsum(kept)])
    starts = offsets[1:] - kept if left else offsets[:-1]
    return ids[concat_ranges(starts, kept)], ends


def _split_by_tokens(
    text: str, places: Sequence[tuple[int, int]], room: int, overlap: int, excess: Callable[[str], int]
) -> list[tuple[int, int]]:
    """Split a text whose tokens are at `places` into windows."""
    bounds = np.array(places, np.int64).reshape(-1, 2)
    return choose_window_spans(text, bounds[:, 0].copy(), bounds[:, 1].copy(), room, overlap, excess)
