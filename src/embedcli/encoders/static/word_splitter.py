"""Split texts into words: jieba for Chinese, runs of letters, marks and digits for other text."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from embedcli.core.errors import ModelError

HAN_PATTERN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]")
# A vocabulary with at least this share of words with Han characters is Chinese; large English ones have some too.
MIN_CHINESE_SHARE = 0.1
# Combining marks and zero-width joiners are not in `\w`, but occur inside words of many scripts.
FIRST_COMBINING_MARK, LAST_COMBINING_MARK = 0x300, 0xFE2F
ZERO_WIDTH_JOINERS = "\u200c\u200d"
CURLY_APOSTROPHE = "\u2019"


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
        inside = rf"[\w{_combining_marks()}{ZERO_WIDTH_JOINERS}]+"
        self._word = re.compile(f"{inside}(?:['{CURLY_APOSTROPHE}-]{inside})*")
        self.is_chinese = is_chinese_vocabulary(index)
        self._cut = _load_jieba() if self.is_chinese else None

    def word_ids(self, text: str) -> list[int]:
        """Return the vocabulary indices of the words of a text, in order."""
        return self._look_up(self._words(text))

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
        parts = re.split("['-]", straight)
        return self._look_up(parts) if len(parts) > 1 else []


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
