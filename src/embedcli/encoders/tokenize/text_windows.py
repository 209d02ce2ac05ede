"""Split long texts into windows that fit a token limit, at the ends of sentences or words where possible."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from embedcli.core.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A window ends at the last end of a sentence, or else of a word, in this last part of it; or else at the token limit.
BOUNDARY_SEARCH_SHARE = 0.25
SENTENCE_END = re.compile(r"[.!?…]+[\"'»”’)\]]*(?=\s)|[。！？]+[」』”’）]*|\n+")  # noqa: RUF001
WORD_END = re.compile(r"\s+")


def choose_window_spans(
    text: str,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    room: int,
    overlap: int,
    excess: Callable[[str], int],
) -> list[tuple[int, int]]:
    """Choose windows that together cover a text.

    Args:
        text: The text to split.
        starts: int64 [tokens]; the position of each token's first character.
        stops: int64 [tokens]; the position behind each token's last character.
        room: Maximum tokens per window.
        overlap: A window starts about this many tokens before the end of the window before it.
        excess: By how many tokens a window is too long when it is tokenized by itself; it is then shortened.

    Returns:
        (start, stop) of each window in characters, in order.

    Raises:
        UsageError: The overlap leaves a window no new token.
    """
    if overlap >= room:
        raise UsageError(
            f"--split-overlap {overlap} leaves nothing new for a window of {max(room, 0)} tokens",
            "lower --split-overlap, or raise --max-seq-length",
        )
    spans: list[tuple[int, int]] = []
    text_end = len(text.rstrip())
    start = 0
    while True:
        first = int(np.searchsorted(starts, start))
        stop = _find_stop(text, text_end, start, first, stops, room, excess)
        spans.append((start, stop))
        if stop == len(text):
            return spans
        next_start = _find_next_start(text, starts, first, stop, overlap)
        # One character can be several tokens (the bytes of an emoji): a window of it alone overlaps nothing.
        start = next_start if next_start > start else stop


def _find_stop(
    text: str, text_end: int, start: int, first: int, stops: NDArray[np.int64], room: int, excess: Callable[[str], int]
) -> int:
    """The end of the window that starts at `start` with token number `first`; the text is blank from `text_end` on."""
    tokens = room
    while True:
        last = first + tokens
        stop = len(text)
        if last < len(stops):
            stop = _move_to_boundary(text, start, max(int(stops[last - 1]), start + 1))
        if stop >= text_end:
            stop = len(text)
        surplus = excess(text[start:stop])
        if surplus <= 0 or tokens == 1:
            return stop
        tokens = max(1, min(tokens, len(stops) - first) - surplus)


def _move_to_boundary(text: str, start: int, stop: int) -> int:
    """The last end of a sentence or word near the end of `text[start:stop]`, or else `stop`; then past one blank."""
    search_start = stop - int((stop - start) * BOUNDARY_SEARCH_SHARE)
    for pattern in (SENTENCE_END, WORD_END):
        # One more character is searched, so that an end right at `stop` matches.
        ends = [match.end() for match in pattern.finditer(text, search_start, min(stop + 1, len(text)))]
        ends = [end for end in ends if end <= stop or text[stop].isspace()]
        if ends:
            stop = ends[-1]
            break
    return stop + 1 if text[stop : stop + 1].isspace() else stop


def _find_next_start(text: str, starts: NDArray[np.int64], first: int, stop: int, overlap: int) -> int:
    """The start of the window behind the one from token `first` to character `stop`: `overlap` tokens before `stop`.

    It is moved back to the start of a word if that takes at most `overlap` more tokens.
    """
    next_token = int(np.searchsorted(starts, stop))
    overlap_start = max(next_token - overlap, first + 1)
    if not overlap or overlap_start >= next_token:
        return stop
    for token in range(overlap_start, max(first, overlap_start - overlap), -1):
        position = int(starts[token])
        if text[position].isspace():
            return position + 1
        if text[position - 1].isspace():
            return position
    return int(starts[overlap_start])
