"""Compare what a server sends in base64 with its plain numbers, before either is trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embedcli.encoders.hosted.canaries import row_cosines

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array

# Two answers to the same text differ by less, also from servers that compute in bfloat16 or int8.
MIN_SAME_COSINE = 0.97
MAX_LENGTH_RATIO = 1.1
# What servers were seen or may be expected to send in place of float32 in little-endian order.
OTHER_FORMATS = {
    "float32 in big-endian order": ">f4",
    "float64": "<f8",
    "float64 in big-endian order": ">f8",
    "float16": "<f2",
    "float16 in big-endian order": ">f2",
    "int8": "i1",
    "uint8": "u1",
}
AskTexts = Callable[[Sequence[str], bool], "Float32Array | None"]


@dataclass(frozen=True)
class EncodingCheck:
    """What two answers to the same texts show.

    Attributes:
        uses_base64: Whether base64 holds the same vectors as plain numbers.
        first: float32 [texts, dim], in the encoding that will be used; None if the server refuses the texts.
        second: float32 [texts, dim], the other answer to the same texts.
        note: What the user should know; "" for nothing.
    """

    uses_base64: bool
    first: Float32Array | None
    second: Float32Array | None
    note: str = ""


def check_float_encoding(ask: AskTexts, texts: Sequence[str], uses_base64: bool, host: str) -> EncodingCheck:
    """Ask some texts twice, once in base64 if the server accepts it and once as plain numbers.

    Args:
        ask: Returns the vectors of texts, float32 [texts, dim], with base64 or without; None if they are refused.
        texts: The texts.
        uses_base64: Whether the server accepts `encoding_format`.
        host: The server's name, for the note.
    """
    first, plain = ask(texts, uses_base64), ask(texts, False)
    if first is None or plain is None or not uses_base64 or not has_numbers(first) or not has_numbers(plain):
        return EncodingCheck(uses_base64, first, plain)
    if is_same(first, plain):
        return EncodingCheck(True, first, plain)
    name = find_number_format(first, plain)
    again = ask(texts, False)
    if name is None and again is not None and not is_same(again, plain):
        lowest = float(row_cosines(again, plain).min()) if again.shape == plain.shape else 0.0
        note = f"{host} answers the same text with different vectors each time (lowest cosine {lowest:.4f})"
        return EncodingCheck(False, plain, again, note)
    what = f"sends {name}" if name else "sends other vectors"
    note = f"{host} {what} in base64, not its float32 numbers in little-endian order; plain numbers are used"
    return EncodingCheck(False, plain, again, note)


def is_same(first: Float32Array, second: Float32Array) -> bool:
    """Whether two arrays [n, dim] hold the same vectors, apart from the noise of a server."""
    if first.shape != second.shape:
        return False
    lengths = np.linalg.norm(first.astype(np.float64), axis=1), np.linalg.norm(second.astype(np.float64), axis=1)
    ratio = np.maximum(lengths[0], 1e-30) / np.maximum(lengths[1], 1e-30)
    is_equally_long = (ratio < MAX_LENGTH_RATIO).all() and (ratio > 1 / MAX_LENGTH_RATIO).all()
    return bool(is_equally_long and (row_cosines(first, second) >= MIN_SAME_COSINE).all())


def has_numbers(vectors: Float32Array) -> bool:
    """Whether a value is a number other than zero: a server whose vectors are NaN shows nothing about its encoding."""
    return bool(np.isfinite(vectors).any() and (np.nan_to_num(vectors) != 0).any())


def find_number_format(decoded: Float32Array, plain: Float32Array) -> str | None:
    """Find the number format of base64 that was decoded as float32.

    Args:
        decoded: float32 [n, any], the bytes read as float32 in little-endian order.
        plain: float32 [n, dim], the same vectors sent as plain numbers.
    """
    for name, dtype in OTHER_FORMATS.items():
        numbers = np.ascontiguousarray(decoded).view(np.uint8).view(dtype)
        if numbers.shape != plain.shape:
            continue
        with np.errstate(all="ignore"):
            values = np.asarray(numbers, np.float64)
            if dtype == "u1":
                values = values - 128
            if np.isfinite(values).all() and (row_cosines(values, plain) >= MIN_SAME_COSINE).all():
                return name
    return None
