"""Tokenize large batches: in slices on several threads and, for BERT-style tokenizers, each distinct word once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.batching import group_by_size
from embedcli.core.ragged import concat_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from embedcli.core.types import Int32Array, Int64Array

    Ragged = tuple[Int32Array, Int64Array]
    Bytes = NDArray[np.uint8]

# Characters per slice: enough that Python's overhead per slice does not count. With the word cache up to twice as many,
# as long as every thread has a slice, because a slice looks up each distinct word once. Million tokens per processor
# second with slices of 2^17, 2^18 ... 2^21 characters and rows of all lengths: 3.5, 4.6, 6.6, 7.0, 7.0. A slice needs
# about 25 bytes per character.
SLICE_CHARACTERS = 1 << 18
MAX_SLICE_CHARACTERS = 1 << 19
# A cached word takes about 200 bytes. Longer words hardly ever occur again.
MAX_CACHED_WORDS = 1 << 18
MAX_CACHED_WORD_LENGTH = 64
# Beyond this number, searching every text for added tokens costs more than the word cache saves.
MAX_ADDED_TOKENS = 64

BLANK_CHARACTERS = " \t\n\r"
WORD, SPACE, SINGLE = 0, 1, 2
CHARACTER_CLASSES = np.zeros(256, np.uint8)
CHARACTER_CLASSES[[ord(blank) for blank in BLANK_CHARACTERS]] = SPACE
CHARACTER_CLASSES[[i for i in range(0x21, 0x7F) if not chr(i).isalnum()]] = SINGLE
ASCII_LOWERCASE = np.array([ord(chr(i).lower()) if i < 0x80 else i for i in range(256)], np.uint8)
# First bytes in UTF-8 of U+5000 to U+9FFF, which are three bytes each and all Han; no other character has them.
HAN_FIRST, HAN_LAST, HAN_BYTES = 0xE5, 0xE9, 3


class BatchTokenizer:
    """Tokenizes batches of texts without special tokens, truncation or padding, in slices on several threads."""

    def __init__(self, tokenizer: Tokenizer, threads: int = 1) -> None:
        """Wrap a tokenizer, and turn its own truncation and padding off.

        Args:
            tokenizer: The tokenizer.
            threads: How many slices are tokenized at a time. The tokenizer itself uses all cores, but the Python code
                behind it only one: with two slices at a time the other cores stay busy meanwhile.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "tokenize")

    def __call__(self, texts: Sequence[str]) -> Ragged:
        """Tokenize texts.

        Returns:
            Token ids, int32 [tokens], and row offsets, int64 [texts + 1].
        """
        size = self._choose_slice_size(texts)
        slices = (texts[start:stop] for start, stop in group_by_size(map(len, texts), size))
        return concat_ragged(list(self._pool.map(self._tokenize_slice, slices)))

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """The position of each token of a text, as (start, stop) in characters."""
        offsets: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

    def _choose_slice_size(self, texts: Sequence[str]) -> int:
        """The characters per slice for these texts."""
        return SLICE_CHARACTERS

    def _tokenize_slice(self, texts: Sequence[str]) -> Ragged:
        return self._tokenize_whole_texts(texts)

    def _tokenize_whole_texts(self, texts: Sequence[str]) -> Ragged:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return flatten_rows([encoding.ids for encoding in encodings])


class WordCacheTokenizer(BatchTokenizer):
    """The same for a BERT-style tokenizer, tokenizing each distinct word of the texts once.

    A word here ends at ASCII white space, at an ASCII punctuation mark and around Han characters. BERT's tokenizer
    splits there too, and never looks beyond, so the ids of a text are those of its words one after the other.
    """

    def __init__(self, tokenizer: Tokenizer, threads: int = 1, min_characters: int = 0) -> None:
        """Wrap a tokenizer for which `is_bert_style` is true.

        Args:
            tokenizer: The tokenizer.
            threads: How many slices are tokenized at a time.
            min_characters: Calls with at most this many characters do not use the word cache.
        """
        super().__init__(tokenizer, threads)
        self._min_characters = min_characters
        self._model = tokenizer.model
        self._lowercases = bool(getattr(tokenizer.normalizer, "lowercase", False))
        self._splits_han = bool(getattr(tokenizer.normalizer, "handle_chinese_chars", False))
        self._added_tokens = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        self._added_first_characters = {token[0] for token in self._added_tokens}
        self._cache: dict[str, tuple[int, ...]] = {}

    def __call__(self, texts: Sequence[str]) -> Ragged:
        """Tokenize texts; see `BatchTokenizer`."""
        if self._min_characters and sum(map(len, texts)) <= self._min_characters:
            return self._tokenize_whole_texts(texts)
        return super().__call__(texts)

    def _choose_slice_size(self, texts: Sequence[str]) -> int:
        return min(max(SLICE_CHARACTERS, -(-sum(map(len, texts)) // self._threads)), MAX_SLICE_CHARACTERS)

    def _tokenize_slice(self, texts: Sequence[str]) -> Ragged:
        # Added tokens are found in the raw text before it is split, so texts that contain one are tokenized whole.
        joined = "".join(texts)
        if not self._has_added_token(joined):
            return self._tokenize_words(texts, joined)
        whole_rows = [i for i, text in enumerate(texts) if self._has_added_token(text)]
        is_whole = set(whole_rows)
        others = ["" if i in is_whole else text for i, text in enumerate(texts)]
        tokenized = self._tokenize_words(others, "".join(others))
        return replace_ragged_rows(tokenized, whole_rows, self._tokenize_whole_texts([texts[i] for i in whole_rows]))

    def _has_added_token(self, text: str) -> bool:
        return any(character in text for character in self._added_first_characters) and any(
            token in text for token in self._added_tokens
        )

    def _tokenize_words(self, texts: Sequence[str], joined: str) -> Ragged:
        data, rows = encode_utf8(texts, joined)
        if not len(data):
            return np.zeros(0, np.int32), np.zeros(len(texts) + 1, np.int64)
        bounds = find_word_boundaries(data, rows, self._splits_han)
        codes, words = number_distinct_words(ASCII_LOWERCASE[data] if self._lowercases else data, bounds)
        ids, starts = flatten_rows(self._look_up_words(words))
        counts = np.diff(starts)[codes]
        ends = np.concatenate([[0], np.cumsum(counts)])
        return ids[concat_ranges(starts[codes], counts)], ends[np.searchsorted(bounds, rows)]

    def _look_up_words(self, words: list[str]) -> list[tuple[int, ...]]:
        """The token ids of each word, from the cache if it has occurred before."""
        cache = self._cache
        new: dict[str, tuple[int, ...]] = {}
        others = []
        for word in words:
            if word in cache:
                continue
            if word[0] in BLANK_CHARACTERS:
                new[word] = ()
            elif word.isascii() and word.isprintable():
                # Letters and digits, or one mark: normalizer and pre-tokenizer would not change it.
                new[word] = tuple([token.id for token in self._model.tokenize(word)])
            else:
                others.append(word)
        encodings = self._tokenizer.encode_batch_fast(others, add_special_tokens=False)
        new |= {word: tuple(encoding.ids) for word, encoding in zip(others, encodings, strict=True)}
        ids = [cache[word] if word in cache else new[word] for word in words]
        self._extend_cache({word: ids for word, ids in new.items() if len(word) <= MAX_CACHED_WORD_LENGTH})
        return ids

    def _extend_cache(self, new: dict[str, tuple[int, ...]]) -> None:
        # A full cache is replaced, not cleared, because another thread may be reading it.
        if len(self._cache) + len(new) > MAX_CACHED_WORDS:
            self._cache = {}
        self._cache.update(new)


def choose_tokenizer(tokenizer: Tokenizer, threads: int, min_characters: int = 0) -> BatchTokenizer:
    """Choose the fastest class that returns `tokenizer`'s own ids.

    Args:
        tokenizer: The tokenizer.
        threads: How many slices are tokenized at a time.
        min_characters: Calls with at most this many characters do not use the word cache.
    """
    if is_bert_style(tokenizer):
        return WordCacheTokenizer(tokenizer, threads, min_characters)
    return BatchTokenizer(tokenizer, threads)


def is_bert_style(tokenizer: Tokenizer) -> bool:
    """Whether the ids of a text are those of its words: BERT's normalizer and pre-tokenizer and a model for words.

    Added tokens must match the raw text, not the normalized one.
    """
    from tokenizers.models import WordLevel, WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    added_tokens = tokenizer.get_added_tokens_decoder().values()
    return (
        isinstance(tokenizer.model, WordPiece | WordLevel)
        and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
        and isinstance(tokenizer.normalizer, BertNormalizer)
        and len(added_tokens) <= MAX_ADDED_TOKENS
        and not any(token.normalized or not token.content for token in added_tokens)
    )


def encode_utf8(texts: Sequence[str], joined: str) -> tuple[Bytes, Int32Array]:
    """Encode texts.

    Args:
        texts: The texts.
        joined: The same texts, joined.

    Returns:
        Their UTF-8 bytes, uint8 [bytes], and row offsets, int32 [texts + 1].
    """
    encoded = joined.encode()
    lengths = list(map(len, texts)) if len(encoded) == len(joined) else [len(t.encode()) for t in texts]
    rows = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(lengths, out=rows[1:])
    return np.frombuffer(encoded, np.uint8), rows


def find_word_boundaries(data: Bytes, rows: Int32Array, splits_han: bool) -> Int32Array:
    """Find where words start, and where the last one ends.

    Args:
        data: UTF-8 bytes.
        rows: Where texts start in them; a word always starts there.
        splits_han: Whether each Han character is a word.

    Returns:
        int32 [words + 1]; ascending positions in `data`.
    """
    kind = CHARACTER_CLASSES[data]
    is_boundary = np.zeros(len(data) + 1, np.bool_)
    is_boundary[1:-1] = (kind[1:] != kind[:-1]) | (kind[1:] == SINGLE)
    if splits_han:
        lead = np.flatnonzero((data >= HAN_FIRST) & (data <= HAN_LAST))
        is_boundary[lead] = True
        is_boundary[lead + HAN_BYTES] = True
    is_boundary[rows] = True
    return np.flatnonzero(is_boundary).astype(np.int32)


def number_distinct_words(data: Bytes, bounds: Int32Array) -> tuple[Int32Array, list[str]]:
    """Number the distinct words.

    Returns:
        int32 [words]; the number of each word, and the distinct words in the order of their numbers.
    """
    import pyarrow as pa

    words = pa.StringArray.from_buffers(len(bounds) - 1, pa.py_buffer(bounds), pa.py_buffer(data))
    encoded = words.dictionary_encode()
    # `to_numpy` would import pandas, where that is installed: a second on a slow disk.
    return np.frombuffer(encoded.indices.buffers()[1], np.int32, len(encoded)), encoded.dictionary.to_pylist()


def flatten_rows(rows: Sequence[Sequence[int]]) -> Ragged:
    """Concatenate rows of ids: int32 [ids], and row offsets, int64 [rows + 1]."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    return np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])), offsets


def concat_ragged(parts: Sequence[Ragged]) -> Ragged:
    """Concatenate the rows of ragged arrays, in order."""
    if not parts:
        return flatten_rows([])
    lengths = np.concatenate([np.diff(offsets) for _, offsets in parts])
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([[0], np.cumsum(lengths)])


def replace_ragged_rows(ragged: Ragged, rows: Sequence[int], replacements: Ragged) -> Ragged:
    """Copy a ragged array, with row `rows[i]` replaced by row i of `replacements`."""
    ids, offsets = ragged
    new_ids, new_offsets = replacements
    parts = np.split(ids, offsets[1:-1])
    for i, row in enumerate(rows):
        parts[row] = new_ids[new_offsets[i] : new_offsets[i + 1]]
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths)])
