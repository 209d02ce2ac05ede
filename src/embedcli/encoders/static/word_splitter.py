"""Split texts into words: jieba for Chinese, runs of letters, marks and digits for other text."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcli.core.batching import group_by_size
from embedcli.core.errors import ModelError
from embedcli.core.ragged import concat_ranges
from embedcli.encoders.static.distinct_words import WordFinder
from embedcli.encoders.tokenize.word_cache import concat_ragged, flatten_rows

if TYPE_CHECKING:
    from embedcli.core.types import Int32Array, Int64Array
    from embedcli.encoders.tokenize.word_cache import Ragged

HAN_PATTERN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]")
# A vocabulary with at least this share of words with Han characters is Chinese; large English ones have some too.
MIN_CHINESE_SHARE = 0.1
# Combining marks and zero-width joiners are not in `\w`, but occur inside words of many scripts.
FIRST_COMBINING_MARK, LAST_COMBINING_MARK = 0x300, 0xFE2F
ZERO_WIDTH_JOINERS = "\u200c\u200d"
CURLY_APOSTROPHE = "\u2019"
# Characters that join two parts of a word; the last one is a hyphen.
JOINERS = f"'{CURLY_APOSTROPHE}-"
# Texts are searched in slices of so many characters: each distinct word of a slice is looked up once, and a slice needs
# about 15 bytes per character. Rows of 80 characters per processor second with slices of 2^18, 2^20 and 2^22
# characters: 220,000, 330,000 and 370,000.
SLICE_CHARACTERS = 1 << 20


class WordSplitter:
    """Finds the words of a vocabulary in texts.

    A word is looked up as it is, then in lower case if the vocabulary has no capitals. An unknown word with an
    apostrophe or hyphen is looked up by its parts; what is still unknown is skipped. A text with Han characters is
    split by jieba if the vocabulary is Chinese.

    Raises:
        ModelError: jieba is needed and not installed.
    """

    def __init__(self, index: Mapping[str, int]) -> None:
        self._index = index
        every = "\n".join(index)
        self._lower = every == every.lower()
        inside = rf"[\w{_combining_marks()}{ZERO_WIDTH_JOINERS}]"
        self._word = re.compile(f"{inside}+(?:[{JOINERS}]{inside}+)*")
        self._finder = WordFinder(lambda character: re.match(inside, character) is not None, JOINERS)
        self.is_chinese = is_chinese_vocabulary(index)
        self._cut = _load_jieba() if self.is_chinese else None

    def word_ids(self, text: str) -> list[int]:
        """Return the vocabulary indices of the words of a text, in order."""
        return self._look_up(self._words(text))

    def find_word_ids(self, texts: Sequence[str]) -> Ragged:
        """The vocabulary indices of the words of each text: int32 [indices], and row offsets, int64 [texts + 1]."""
        slices = group_by_size(map(len, texts), SLICE_CHARACTERS)
        return concat_ragged([self._find_in_slice(texts[start:stop]) for start, stop in slices])

    def _find_in_slice(self, texts: Sequence[str]) -> Ragged:
        cut = self._cut
        if cut is not None and HAN_PATTERN.search("".join(texts)):
            return flatten_rows([self.word_ids(text) for text in texts])
        found = self._finder.find(texts)
        ids, starts, counts = self._look_up_distinct(found.words)
        counts = counts[found.numbers]
        ends = np.concatenate([[0], np.cumsum(counts)])
        return ids[concat_ranges(starts[found.numbers], counts)], ends[found.offsets]

    def _look_up_distinct(self, words: list[str]) -> tuple[Int32Array, Int64Array, Int64Array]:
        """The indices of words: those of word i are `ids[starts[i] : starts[i] + counts[i]]`."""
        ids = np.fromiter(map(self._index.get, words, repeat(-1)), np.int32, len(words))
        starts, counts = np.arange(len(words)), (ids >= 0).astype(np.int64)
        more: list[int] = []
        for number in np.flatnonzero(ids < 0).tolist():
            variants = self._look_up_variants(words[number])
            starts[number], counts[number] = len(words) + len(more), len(variants)
            more += variants
        return np.concatenate([ids, np.array(more, np.int32)]), starts, counts

    def word_spans(self, text: str) -> list[tuple[int, int]]:
        """Return (start, stop) in characters of the word of each index."""
        found: list[tuple[int, int]] = []
        stop = 0
        for word in self._words(text):
            start = text.index(word, stop)
            stop = start + len(word)
            found += [(start, stop)] * len(self._look_up([word]))
        return found

    def _words(self, text: str) -> list[str]:
        return self._cut(text) if self._cut is not None and HAN_PATTERN.search(text) else self._word.findall(text)

    def _look_up(self, words: Sequence[str]) -> list[int]:
        found: list[int] = []
        for word, number in zip(words, map(self._index.get, words), strict=True):
            if number is not None:
                found.append(number)
            else:
                found += self._look_up_variants(word)
        return found

    def _look_up_variants(self, word: str) -> list[int]:
        straight = word.replace(CURLY_APOSTROPHE, "'")
        number = self._index.get(straight.lower() if self._lower else straight)
        if number is not None:
            return [number]
        if "'" not in straight and "-" not in straight:
            return []
        return self._look_up(straight.replace("'", "-").split("-"))


def is_chinese_vocabulary(index: Mapping[str, int]) -> bool:
    """Whether enough words of a vocabulary are written with Han characters."""
    return sum(1 for word in index if HAN_PATTERN.search(word)) >= MIN_CHINESE_SHARE * max(1, len(index))


@cache
def _combining_marks() -> str:
    """Return all combining marks of Unicode."""
    every = map(chr, range(FIRST_COMBINING_MARK, LAST_COMBINING_MARK + 1))
    return "".join(mark for mark in every if unicodedata.category(mark).startswith("M"))


def _load_jieba() -> Callable[[str], list[str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jieba
    except ImportError as error:
        raise ModelError(
            "these word vectors are Chinese, and finding the words of a Chinese text needs jieba",
            "pip install 'embedcli[chinese]'",
        ) from error
    splitter: Any = jieba.Tokenizer()
    # jieba's own `initialize` trusts and writes a file in the shared temporary folder, and prints to stderr.
    splitter.FREQ, splitter.total = splitter.gen_pfdict(splitter.get_dict_file())
    splitter.initialized = True
    cut: Callable[[str], list[str]] = splitter.lcut
    return cut
