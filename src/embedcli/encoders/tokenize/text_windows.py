"""Where a long text is cut into windows: every character in one, none longer than the limit, at an end when near."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A window is cut at the last sentence end, else word end, in this last part of it; else where the tokens run out.
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
    """Windows of `text` as (start, stop) in characters, in order.

    `starts` and `stops` are the text's tokens, in characters; a window takes at most `room` of them, and begins
    about `overlap` tokens before the end of the last. `excess(window)` says by how many tokens a window is too
    long when it is tokenized by itself; the window is then cut shorter.
    """
    found: list[tuple[int, int]] = []
    end = len(text.rstrip())
    start = 0
    while True:
        first = int(np.searchsorted(starts, start))
        stop = _stop(text, end, start, first, stops, room, excess)
        found.append((start, stop))
        if stop == len(text):
            return found
        following = _next_start(text, starts, first, stop, overlap)
        # Several tokens can stand for one character (bytes of an emoji): a window of it alone overlaps nothing.
        start = following if following > start else stop


def _stop(
    text: str, end: int, start: int, first: int, stops: NDArray[np.int64], room: int, excess: Callable[[str], int]
) -> int:
    """The end of the window that begins at `start`, whose first token is `first`; from `end` on all is blank."""
    tokens = room
    while True:
        last = first + tokens
        stop = len(text)
        if last < len(stops):
            stop = _near_end(text, start, max(int(stops[last - 1]), start + 1))
        if stop >= end:
            stop = len(text)
        over = excess(text[start:stop])
        if over <= 0 or tokens == 1:
            return stop
        tokens = max(1, min(tokens, len(stops) - first) - over)


def _near_end(text: str, start: int, stop: int) -> int:
    """The last sentence or word end in the last part of `text[start:stop]`, else `stop`; then past one blank."""
    low = stop - int((stop - start) * BOUNDARY_SEARCH_SHARE)
    for end in (SENTENCE_END, WORD_END):
        # One character more is searched, so that an end right at `stop` is seen.
        ends = [match.end() for match in end.finditer(text, low, min(stop + 1, len(text)))]
        ends = [found for found in ends if found <= stop or text[stop].isspace()]
        if ends:
            stop = ends[-1]
            break
    return stop + 1 if text[stop : stop + 1].isspace() else stop


def _next_start(text: str, starts: NDArray[np.int64], first: int, stop: int, overlap: int) -> int:
    """Where the window after the one that ends at `stop` begins: `overlap` tokens earlier, but always further on.

    Moved to the beginning of a word where that takes no more than as many tokens again.
    """
    after = int(np.searchsorted(starts, stop))
    back = max(after - overlap, first + 1)
    if not overlap or back >= after:
        return stop
    for token in range(back, max(first, back - overlap), -1):
        begin = int(starts[token])
        if text[begin].isspace():
            return begin + 1
        if text[begin - 1].isspace():
            return begin
    return int(starts[back])
