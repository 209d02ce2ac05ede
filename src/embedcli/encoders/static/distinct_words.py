"""Find the words of many texts at once: arrays of characters in place of a loop over texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from embedcli.encoders.tokenize.word_cache import number_distinct_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from embedcli.core.types import BoolArray, Int32Array, Int64Array

# No word crosses it, so that texts can be searched as one.
TEXT_SEPARATOR = "\n"
UNICODE_SIZE = 0x110000
# What a character is for words; characters that were not met yet are UNKNOWN.
OTHER, INSIDE, JOINER, UNKNOWN = 0, 1, 2, 3
# Characters from each of these on take one more byte in UTF-8.
LONGER_IN_UTF8 = (0x80, 0x800, 0x10000)


@dataclass(frozen=True)
class DistinctWords:
    """The words of some texts.

    Attributes:
        words: The distinct ones.
        numbers: int32 [words of all texts]; for each word its place in `words`.
        offsets: int64 [texts + 1]; text i has the words `numbers[offsets[i] : offsets[i + 1]]`.
    """

    words: list[str]
    numbers: Int32Array
    offsets: Int64Array


@dataclass
class WordFinder:
    """Finds words: runs of characters that `is_inside`, also joined by single characters of `joiners`."""

    is_inside: Callable[[str], bool]
    joiners: str
    _kinds: NDArray[np.uint8] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._kinds = np.full(UNICODE_SIZE, UNKNOWN, np.uint8)
        self._kinds[[ord(joiner) for joiner in self.joiners]] = JOINER

    def find(self, texts: Sequence[str]) -> DistinctWords:
        """Find the words of texts, of which there is one at least."""
        characters = _to_code_points(TEXT_SEPARATOR.join(texts))
        inside = self._mark_words(characters)
        edges = np.diff(inside.view(np.int8), prepend=0, append=0)
        starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        text_ends = np.cumsum(lengths + len(TEXT_SEPARATOR))
        offsets = np.concatenate([[0], np.searchsorted(starts, text_ends)])
        numbers, words = _number_words(characters[inside], stops - starts)
        return DistinctWords(words, numbers, offsets)

    def _mark_words(self, characters: NDArray[np.unsignedinteger]) -> BoolArray:
        """Which characters belong to a word: bool [characters]."""
        kinds = self._kinds[characters]
        unknown = kinds == UNKNOWN
        if unknown.any():
            for character in set(characters[unknown].tolist()):
                self._kinds[character] = INSIDE if self.is_inside(chr(character)) else OTHER
            kinds = self._kinds[characters]
        inside: BoolArray = kinds == INSIDE
        joins = (kinds[1:-1] == JOINER) & inside[:-2] & inside[2:]
        inside[1:-1] |= joins
        return inside


def _to_code_points(text: str) -> NDArray[np.unsignedinteger]:
    """The code points of a text: uint8 or uint32 [characters]."""
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _number_words(characters: NDArray[np.unsignedinteger], lengths: Int64Array) -> tuple[Int32Array, list[str]]:
    """Number words, given their characters one after the other and their lengths; see `number_distinct_words`."""
    data, ends = characters.tobytes(), np.cumsum(lengths)
    if characters.itemsize > 1:
        data = data.decode("utf-32-le").encode()
        sizes = 1 + sum((characters >= first).astype(np.int64) for first in LONGER_IN_UTF8)
        ends = np.cumsum(sizes)[ends - 1]
    bounds = np.concatenate([[0], ends]).astype(np.int32)
    return number_distinct_words(np.frombuffer(data, np.uint8), bounds)
