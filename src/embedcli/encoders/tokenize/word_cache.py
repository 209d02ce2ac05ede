"""Texts to token ids, a piece at a time where the tokenizer allows it: the same ids, much sooner."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.batching import group_by_size

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from embedcli.core.types import Int32Array, Int64Array

    Ragged = tuple[Int32Array, Int64Array]
    Bytes = NDArray[np.uint8]

# Text of one slice: at least so much that what Python does for each does not count, and, where words are looked up once
# in each, up to twice that, as long as all threads have one: tokens per processor second at 2^17, 2^18 ... 2^21
# characters, of rows of all lengths: 3.5, 4.6, 6.6, 7.0, 7.0 million; a slice takes some 25 bytes per character.
SLICE_CHARACTERS = 1 << 18
MAX_SLICE_CHARACTERS = 1 << 19
# About 200 bytes each. Longer pieces hardly ever come again.
MAX_CACHED_WORDS = 1 << 18
MAX_CACHED_WORD_LENGTH = 64
# Above this, searching every text for them costs more than it saves.
MAX_ADDED_TOKENS = 64

BLANK_CHARACTERS = " \t\n\r"
WORD, SPACE, SINGLE = 0, 1, 2
CHARACTER_CLASSES = np.zeros(256, np.uint8)
CHARACTER_CLASSES[[ord(blank) for blank in BLANK_CHARACTERS]] = SPACE
CHARACTER_CLASSES[[i for i in range(0x21, 0x7F) if not chr(i).isalnum()]] = SINGLE
ASCII_LOWERCASE = np.array([ord(chr(i).lower()) if i < 0x80 else i for i in range(256)], np.uint8)
# UTF-8 begins U+5000..U+9FFF, three bytes each and all Han, with these bytes and nothing else with them.
HAN_FIRST, HAN_LAST, HAN_BYTES = 0xE5, 0xE9, 3


class BatchTokenizer:
    """`encode_batch_fast(texts, add_special_tokens=False)` as a ragged array: ids int32 and row offsets int64 [n + 1].

    Nothing is cut or padded, whatever the tokenizer's own settings.
    """

    def __init__(self, tokenizer: Tokenizer, threads: int = 1) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._threads = threads
        # A tokenizer uses all cores by itself; what Python does with its results, one: with two slices at a time
        # the others need not wait for that.
        self._pool = ThreadPoolExecutor(threads, "tokenize")

    def __call__(self, texts: Sequence[str]) -> Ragged:
        slices = (texts[start:stop] for start, stop in group_by_size(map(len, texts), self._size(texts)))
        return concat_ragged(list(self._pool.map(self._slice, slices)))

    def _size(self, texts: Sequence[str]) -> int:
        """The characters of a slice of these texts."""
        return SLICE_CHARACTERS

    def token_offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text stands, as (start, stop) in characters."""
        offsets: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets

    def _slice(self, texts: Sequence[str]) -> Ragged:
        return self._whole(texts)

    def _whole(self, texts: Sequence[str]) -> Ragged:
        return flatten_rows(
            [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        )

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


class WordCacheTokenizer(BatchTokenizer):
    """The same for a tokenizer that `splits`: each distinct piece of the texts is tokenized once.

    A piece ends at ASCII white space, at an ASCII punctuation mark and around Han characters. BERT's tokenizer ends
    a word there too, and looks at nothing beyond it, so the ids of a text are those of its pieces in a row.
    Texts of up to `few` characters together are tokenized whole.
    """

    def __init__(self, tokenizer: Tokenizer, threads: int = 1, few: int = 0) -> None:
        super().__init__(tokenizer, threads)
        self._few = few
        self._model = tokenizer.model
        self._lower = bool(getattr(tokenizer.normalizer, "lowercase", False))
        self._han = bool(getattr(tokenizer.normalizer, "handle_chinese_chars", False))
        self._added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        self._marks = {token[0] for token in self._added}
        self._known: dict[str, tuple[int, ...]] = {}

    def __call__(self, texts: Sequence[str]) -> Ragged:
        if self._few and sum(map(len, texts)) <= self._few:
            return self._whole(texts)
        return super().__call__(texts)

    def _size(self, texts: Sequence[str]) -> int:
        return min(max(SLICE_CHARACTERS, -(-sum(map(len, texts)) // self._threads)), MAX_SLICE_CHARACTERS)

    def _slice(self, texts: Sequence[str]) -> Ragged:
        # An added token is matched inside a text before any splitting.
        together = "".join(texts)
        if not self._has_added(together):
            return self._split(texts, together)
        whole = [i for i, text in enumerate(texts) if self._has_added(text)]
        there = set(whole)
        others = ["" if i in there else text for i, text in enumerate(texts)]
        made = self._split(others, "".join(others))
        return replace_ragged_rows(made, whole, self._whole([texts[i] for i in whole]))

    def _has_added(self, text: str) -> bool:
        return any(mark in text for mark in self._marks) and any(token in text for token in self._added)

    def _split(self, texts: Sequence[str], together: str) -> Ragged:
        data, rows = encode_utf8(texts, together)
        if not len(data):
            return np.zeros(0, np.int32), np.zeros(len(texts) + 1, np.int64)
        bounds = find_word_boundaries(data, rows, self._han)
        codes, words = number_distinct_words(ASCII_LOWERCASE[data] if self._lower else data, bounds)
        found = self._ids(words)
        flat, starts = flatten_rows(found)
        counts = np.diff(starts)[codes]
        ends = np.concatenate([[0], np.cumsum(counts)])
        return flat[concat_ranges(starts[codes], counts)], ends[np.searchsorted(bounds, rows)]

    def _ids(self, words: list[str]) -> list[tuple[int, ...]]:
        """The token ids of each word, from memory where it has come before."""
        known = self._known
        new = [word for word in words if word not in known]
        made: dict[str, tuple[int, ...]] = {}
        odd = []
        for word in new:
            if word[0] in BLANK_CHARACTERS:
                made[word] = ()
            elif word.isascii() and word.isprintable():
                # A run of letters and digits or one mark: the model is all that is left to do.
                made[word] = tuple([token.id for token in self._model.tokenize(word)])
            else:
                odd.append(word)
        batch = self._tokenizer.encode_batch_fast(odd, add_special_tokens=False)
        made |= {word: tuple(encoding.ids) for word, encoding in zip(odd, batch, strict=True)}
        found = [known[word] if word in known else made[word] for word in words]
        self._remember({word: ids for word, ids in made.items() if len(word) <= MAX_CACHED_WORD_LENGTH})
        return found

    def _remember(self, new: dict[str, tuple[int, ...]]) -> None:
        # A full memory is dropped for a new one, as another thread may be reading it.
        if len(self._known) + len(new) > MAX_CACHED_WORDS:
            self._known = {}
        self._known.update(new)


def choose_tokenizer(tokenizer: Tokenizer, threads: int, few: int = 0) -> BatchTokenizer:
    """The fastest way that gives `tokenizer`'s own ids, up to `threads` parts of the texts at a time."""
    return (
        WordCacheTokenizer(tokenizer, threads, few) if is_bert_style(tokenizer) else BatchTokenizer(tokenizer, threads)
    )


def is_bert_style(tokenizer: Tokenizer) -> bool:
    """Whether the ids of a text are those of its pieces: BERT's normalizer and pre-tokenizer over a word-by-word model.

    Added tokens must be found in the raw text as they are, and lie within a line.
    """
    from tokenizers.models import WordLevel, WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    added = tokenizer.get_added_tokens_decoder().values()
    return (
        isinstance(tokenizer.model, WordPiece | WordLevel)
        and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
        and isinstance(tokenizer.normalizer, BertNormalizer)
        and len(added) <= MAX_ADDED_TOKENS
        and not any(token.normalized or not token.content for token in added)
    )


def encode_utf8(texts: Sequence[str], together: str) -> tuple[Bytes, Int32Array]:
    """The texts' UTF-8 bytes in a row, and where each begins: [n + 1]. `together` are the texts in a row."""
    encoded = together.encode()
    lengths = list(map(len, texts)) if len(encoded) == len(together) else [len(t.encode()) for t in texts]
    rows = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(lengths, out=rows[1:])
    return np.frombuffer(encoded, np.uint8), rows


def find_word_boundaries(data: Bytes, rows: Int32Array, han: bool) -> Int32Array:
    """Where pieces begin and the last one ends, ascending byte positions; every row begins a piece."""
    kind = CHARACTER_CLASSES[data]
    edge = np.zeros(len(data) + 1, np.bool_)
    edge[1:-1] = (kind[1:] != kind[:-1]) | (kind[1:] == SINGLE)
    if han:
        lead = np.flatnonzero((data >= HAN_FIRST) & (data <= HAN_LAST))
        edge[lead] = True
        edge[lead + HAN_BYTES] = True
    edge[rows] = True
    return np.flatnonzero(edge).astype(np.int32)


def number_distinct_words(data: Bytes, bounds: Int32Array) -> tuple[Int32Array, list[str]]:
    """Each piece's number, and the distinct pieces by number."""
    import pyarrow as pa

    pieces = pa.StringArray.from_buffers(len(bounds) - 1, pa.py_buffer(bounds), pa.py_buffer(data))
    coded = pieces.dictionary_encode()
    # `to_numpy` would import pandas, where that is installed: a second on a slow disk.
    return np.frombuffer(coded.indices.buffers()[1], np.int32, len(coded)), coded.dictionary.to_pylist()


def flatten_rows(rows: Sequence[Sequence[int]]) -> Ragged:
    """Rows of ids laid end to end, with their offsets."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    return np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])), offsets


def concat_ranges(starts: Int64Array, counts: Int64Array) -> Int64Array:
    """starts[0], starts[0] + 1, ... `counts[0]` numbers, then those from starts[1], and so on."""
    ends = np.cumsum(counts)
    made = np.repeat(starts - (ends - counts), counts)
    made += np.arange(len(made))
    return made


def concat_ragged(parts: Sequence[Ragged]) -> Ragged:
    """The rows of all parts, in order."""
    if not parts:
        return flatten_rows([])
    lengths = np.concatenate([np.diff(offsets) for _, offsets in parts])
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([[0], np.cumsum(lengths)])


def replace_ragged_rows(made: Ragged, rows: Sequence[int], others: Ragged) -> Ragged:
    """`made` with `rows[i]` replaced by row i of `others`."""
    parts = np.split(made[0], made[1][1:-1])
    for i, row in enumerate(rows):
        parts[row] = others[0][others[1][i] : others[1][i + 1]]
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths)])
