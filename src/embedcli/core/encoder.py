"""What every encoder is: texts to tokens, tokens to vectors. The base class of all of them, with the defaults."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedcli.core.types import Float32Array, Int32Array, Int64Array


@dataclass
class Tokens:
    """A ragged array: row i is `ids[offsets[i]:offsets[i + 1]]`, already cut to the encoder's limit.

    `full` holds the token count of each whole text, special tokens and prompt included. A row whose
    length is 0 has nothing the encoder knows and is rejected.
    """

    ids: Int32Array
    offsets: Int64Array
    untruncated_lengths: Int32Array
    payload: Any = None

    @property
    def lengths(self) -> Int64Array:
        return self.offsets[1:] - self.offsets[:-1]


class TextTokenizer(ABC):
    """Turns texts into tokens. Enough to count tokens and cut texts into windows; a `BaseEncoder` computes vectors too.

    Attributes:
        empty_reason: The reject reason of a row without any token.
    """

    empty_reason: str

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenize each text once, prompt included, truncated to the encoder's limit.

        Args:
            texts: The texts as read from the input, without the prompt.

        Returns:
            One row of tokens per text, in the order of `texts`.
        """

    def split_into_windows(self, text: str, overlap: int = 0) -> Sequence[tuple[int, int]] | None:
        """Split a text into windows that are each read without truncation, for --overflow split and pool.

        Args:
            text: One text, without the prompt.
            overlap: How many tokens successive windows share.

        Returns:
            (start, stop) of each window in characters, in order; together they cover the text. None, the default, if
            the tokenizer cannot split texts.

        Raises:
            UsageError: `overlap` leaves no room for new tokens in a window.
        """
        return None

    def close(self) -> None:  # noqa: B027 - most tokenizers hold nothing
        """Release threads, memory and connections. Does nothing by default."""


class BaseEncoder(TextTokenizer):
    """One model on one device. Every encoder derives from it and passes tests/test_encoder_contract.py.

    Members with a default are optional abilities; the engine calls them all without asking whether they are overridden.

    Attributes:
        dim: The width of the vectors, before --truncate-dim.
        lanes: How many batches may be in flight: started by `forward`, not yet collected.
        batch_tokens: The preferred size of a batch, in padded tokens.
        multiple: Row lengths are padded up to a multiple of this many tokens; 0 if rows are not padded.
        portion_characters: Tokenize a chunk in portions of about this many characters, so that a fast device can start
            on the first while the next is tokenized. None, the default, to tokenize each chunk at once.
    """

    dim: int
    max_in_flight: int
    batch_tokens: int
    pad_to_multiple_of: int
    portion_characters: int | None = None

    @abstractmethod
    def vector_space(self) -> dict[str, Any]:
        """Return the vector space metadata: what decides the vectors, as JSON values, to be stored with them."""

    @abstractmethod
    def forward(self, tokens: Tokens, rows: Int64Array) -> Any:
        """Start one batch without waiting for it.

        Args:
            tokens: What `tokenize` returned.
            rows: int64 [batch]; which of its rows to encode.

        Returns:
            A handle for `collect`.

        Raises:
            OutOfMemory: The batch does not fit on the device.
        """

    @abstractmethod
    def collect(self, output: Any) -> Float32Array:
        """Wait for a batch.

        Args:
            output: What `forward` returned.

        Returns:
            float32 [batch, dim], in the order of the batch's rows. Rows that could not be encoded are NaN.

        Raises:
            OutOfMemory: The batch did not fit on the device.
            ModelError: The device or the server failed for good.
        """

    @abstractmethod
    def encode_float32(self, tokens: Tokens, rows: Int64Array) -> Float32Array:
        """Encode rows again in float32, one by one: the second chance of rows whose vectors are not usable.

        Args:
            tokens: What `tokenize` returned.
            rows: int64 [n]; which of its rows to encode.

        Returns:
            float32 [n, dim], in the order of `rows`.
        """

    def has_verified_vectors(self, output: Any) -> bool:
        """Whether the device has already verified that every vector of a collected batch is finite and not zero.

        Args:
            output: What `forward` returned and `collect` has waited for.

        Returns:
            False, the default, if the engine must check the vectors itself.
        """
        return False

    def reject_reason(self, tokens: Tokens, row: int) -> str | None:
        """Why a row has no vector although it has tokens, for example because a server refused its text.

        Args:
            tokens: What `tokenize` returned; the row's batch is collected.
            row: The number of a row whose collected vector is not usable.

        Returns:
            A reason to reject the row without a second attempt. None, the default, to try it again with `exact`.
        """
        return None

    def usage(self) -> dict[str, Any] | None:
        """Count what the encoder has cost since it was loaded.

        Returns:
            Counts by name, at least `requests` and `tokens`. None, the default, if nothing is billed.
        """
        return None
